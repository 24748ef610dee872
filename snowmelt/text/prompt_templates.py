"""Prompts that textual inversion shows images with: what is said around the new word varies, the word stays."""

OBJECT = (
    "a photo of a {}",
    "a photo of {}",
    "a {}",
    "the {}",
    "{}",
    "a photo of the {}",
    "a picture of one {}",
    "a picture of my {}",
    "a sharp photo of a {}",
    "a blurred photo of a {}",
    "a bright photo of the {}",
    "a dark photo of the {}",
    "a close view of a {}",
    "a {} from far away",
    "a {} seen from the side",
    "a small picture of a {}",
    "a cropped picture of the {}",
    "a good photo of a {}",
    "an image of a clean {}",
    "an image of a {} in the middle",
)
STYLE = (
    "a painting in the style of {}",
    "in the style of {}",
    "a drawing in the style of {}",
    "a picture in the style of {}",
    "an image in the style of {}",
    "a work of art in the style of {}",
    "the style of {}",
    "a small painting in the style of {}",
    "a large painting in the style of {}",
    "a bright picture in the style of {}",
    "a dark picture in the style of {}",
    "a detail of a painting in the style of {}",
    "a study in the style of {}",
    "a print in the style of {}",
)
PROPERTIES = ("object", "style")


def templates(learnable_property: str, word: str) -> list[str]:
    """Prompts of a thing or a style, by `PROPERTIES`, that goes by a new word."""
    return [text.format(word) for text in (OBJECT if learnable_property == "object" else STYLE)]


def tokens_of(word: str, num_vectors: int) -> list[str]:
    """The tokens of a word of so many embeddings, by the names that diffusers' `load_textual_inversion` gives them."""
    return [word, *(f"{word}_{i}" for i in range(1, num_vectors))]
