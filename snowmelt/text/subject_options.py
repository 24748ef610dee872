"""Options of fine-tuning on a few pictures of one thing or in one style."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowmelt.config import Config, option
from snowmelt.errors import UserError
from snowmelt.text.prompt_templates import PROPERTIES, templates

OF_CLASS_IMAGES = ("class_prompt", "class_data_dir", "num_class_images", "prior_loss_weight", "sample_batch_size")
OF_NEW_TOKENS = ("initializer_token", "num_vectors", "learnable_property")
NOT_WITH_NEW_TOKENS = (
    "rank",
    "train_text_encoder",
    "text_encoder_lr",
    "instance_prompt",
    "caption_column",
    "with_prior_preservation",
)


@dataclass(kw_only=True)
class DreamBoothOptions(Config):
    """DreamBooth (Ruiz et al. 2023)."""

    instance_prompt: str | None = option(None, "caption of all images, such as 'a photo of sks dog'")
    with_prior_preservation: bool = option(
        False, "train on images of the class too, that the model itself made before, so that it keeps what it knows"
    )
    class_prompt: str | None = option(None, "caption of these, such as 'a photo of a dog'")
    class_data_dir: str | None = option(None, "folder of these; those that are missing are made there", path=True)
    num_class_images: int = option(100, "so many of them", minimum=1, maximum=1_000_000)
    prior_loss_weight: float = option(1.0, "weight of their mean loss", minimum=0, maximum=1000)
    sample_batch_size: int = option(4, "images of the class that a process makes at once", minimum=1, resumable=True)


@dataclass(kw_only=True)
class TextualInversionOptions(Config):
    """Textual inversion (Gal et al. 2023)."""

    placeholder_token: str | None = option(
        None, "new word, such as <cat-toy>: its embedding is trained on the images, and nothing else"
    )
    initializer_token: str | None = option(None, "known word, a single token, that it begins as")
    num_vectors: int = option(1, "embeddings that the word stands for", minimum=1, maximum=64)
    learnable_property: str = option("object", "what the images have in common", choices=PROPERTIES)


@dataclass(kw_only=True)
class SubjectOptions(DreamBoothOptions, TextualInversionOptions):
    """What fine-tuning on a few pictures takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.instance_prompt is not None and not self.instance_prompt.strip():
            raise UserError("--instance_prompt: is empty; say what all images show")
        if self.instance_prompt is not None and getattr(self, "caption_column", None) is not None:
            raise UserError("--instance_prompt and --caption_column: each says what the images show; give one of them")
        self._check_class_images()
        self._check_new_tokens()

    @property
    def shared_captions(self) -> list[str] | None:
        """Captions that all images have, in place of those of a column; None where there are none such."""
        if self.placeholder_token is not None:
            return templates(self.learnable_property, self.placeholder_token)
        return None if self.instance_prompt is None else [self.instance_prompt]

    def _check_class_images(self) -> None:
        if not self.with_prior_preservation:
            if name := self._changed(OF_CLASS_IMAGES):
                raise UserError(f"--{name}: is of --with_prior_preservation; give that too, or leave it out")
            return
        for name, what in (("class_prompt", "what they show"), ("class_data_dir", "the folder to keep them in")):
            if not (getattr(self, name) or "").strip():
                raise UserError(f"--with_prior_preservation: trains on images of a class; give --{name}, {what}")
        if getattr(self, "aspect_ratio_buckets", None):
            raise UserError(
                "--with_prior_preservation: not with --aspect_ratio_buckets, of which a batch is one; drop one"
            )
        own = Path(str(self.class_data_dir)).resolve()
        for name in ("train_data_dir", "output_dir"):
            folder = getattr(self, name, None)
            if folder and (own == Path(folder).resolve() or Path(folder).resolve() in own.parents):
                raise UserError(f"--class_data_dir {self.class_data_dir}: is inside --{name}; give a folder of its own")

    def _check_new_tokens(self) -> None:
        if self.placeholder_token is None:
            if name := self._changed(OF_NEW_TOKENS):
                raise UserError(f"--{name}: is of --placeholder_token; give that too, or leave it out")
            return
        if self.initializer_token is None:
            raise UserError("--placeholder_token: begins as a known word; name it by --initializer_token")
        if len(self.placeholder_token.split()) != 1 or self.placeholder_token != self.placeholder_token.strip():
            raise UserError(f"--placeholder_token {self.placeholder_token!r}: must be one word")
        if name := self._changed(NOT_WITH_NEW_TOKENS):
            raise UserError(
                f"--{name}: not with --placeholder_token, which trains new embeddings alone, by prompts of its own; "
                "drop one"
            )

    def _changed(self, names: tuple[str, ...]) -> str | None:
        """The first of these options that isn't at its default."""
        fields: dict[str, Any] = self.fields()
        return next((n for n in names if n in fields and getattr(self, n) != fields[n].default), None)
