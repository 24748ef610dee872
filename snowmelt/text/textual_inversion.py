"""Textual inversion: embeddings of new words, trained in a text encoder that stays as it is (Gal et al. 2023)."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.text import converted, max_tokens
from snowmelt.errors import UserError
from snowmelt.text.prompt_templates import tokens_of

EMBEDDINGS_FILE = "learned_embeds.safetensors"
"""diffusers' name."""


class ExtendedEmbedding(nn.Module):
    """A frozen table of embeddings, followed by learned ones.

    Args:
        known: the table, of which the first `first` rows are used.
        learned: initial values of those that are learned, (V, D).
        first: the token that the first of these stands for.
        word: that they stand for.
    """

    def __init__(self, known: nn.Embedding, learned: Tensor, first: int, word: str) -> None:
        super().__init__()
        self.word = word
        self.known = known.requires_grad_(False)
        self.learned = nn.Parameter(learned.clone())
        self.first = first

    @property
    def weight(self) -> Tensor:
        """The frozen table, whose type and place transformers asks for."""
        return self.known.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of tokens (B, L)."""
        new = input_ids >= self.first
        known = self.known(input_ids.masked_fill(new, 0))
        learned = nn.functional.embedding((input_ids - self.first).clamp(min=0), self.learned)
        return torch.where(new[..., None], learned.to(known.dtype), known)


def add_word(pipeline: Any, placeholder: str, initializer: str, num_vectors: int, prompts: list[str]) -> list[str]:
    """Give a pipeline's tokenizer a new word, and its frozen text encoder embeddings of it, which can be trained.

    Args:
        pipeline: with a `tokenizer` and a `text_encoder` of transformers, which are changed.
        placeholder: the word.
        initializer: a known word, of one token, whose embedding they all begin as.
        num_vectors: embeddings, and tokens, of the word.
        prompts: to train it by.

    Returns:
        Those of the prompts that hold the whole word where the model cuts them.

    Raises:
        UserError: for a word that is known already, an initializer that isn't one token, or prompts that all lose it.
    """
    tokenizer, text_encoder = pipeline.tokenizer, pipeline.text_encoder
    begin = tokenizer(initializer, add_special_tokens=False)["input_ids"]
    if len(begin) != 1 or begin[0] == tokenizer.unk_token_id and initializer != tokenizer.unk_token:
        shown = ", ".join(tokenizer.convert_ids_to_tokens(begin)) or "nothing"
        raise UserError(
            f"--initializer_token {initializer!r}: must be one token of the model's tokenizer, and is {len(begin)} "
            f"({shown}); take a simpler word"
        )
    tokens, first = tokens_of(placeholder, num_vectors), len(tokenizer)
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known or tokenizer.add_tokens(tokens) != num_vectors:
        raise UserError(
            f"--placeholder_token {placeholder}: {(known or tokens)[0]} is in the vocabulary already; take another word"
        )
    length, new = max_tokens(text_encoder, tokenizer), list(range(first, first + num_vectors))
    given = tokenizer(converted(prompts, tokenizer), truncation=True, max_length=length)["input_ids"]
    fitting = [prompt for prompt, ids in zip(prompts, given, strict=True) if [i for i in ids if i >= first] == new]
    if not fitting:
        raise UserError(
            f"--placeholder_token {placeholder}: its {num_vectors} tokens aren't all in any prompt, of which the model "
            f"takes {length} tokens; take fewer --num_vectors, or another word"
        )
    text_encoder.requires_grad_(False)
    table = text_encoder.get_input_embeddings()
    learned = table.weight.data[begin].repeat(num_vectors, 1)
    text_encoder.set_input_embeddings(ExtendedEmbedding(table, learned, first, placeholder))
    return fitting


def save_word(folder: Path, parts: dict[str, Any]) -> None:
    """Write the embeddings as `EMBEDDINGS_FILE`, for `load_textual_inversion`, of the `text_encoder` in parts."""
    folder.mkdir(parents=True, exist_ok=True)
    table = parts["text_encoder"].get_input_embeddings()
    save_file({table.word: table.learned.detach().cpu().contiguous()}, folder / EMBEDDINGS_FILE)
