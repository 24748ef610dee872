"""Captions as conditions of a network, the empty one in place of those that are dropped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.text import converted, text_conditions
from snowmelt.data.captions import Captions
from snowmelt.data.loader import to_device
from snowmelt.text.embeddings import caption_embeddings
from snowmelt.text.tokens import fit_length

CAPTION = 0xCA  # the purpose of the random numbers here, so that they are no others'


class CaptionConditioning:
    """A caption of each image, drawn where it has several, by its row in tables of tokens or embeddings.

    Draws follow from the seed that the generator was given for the pass, on the host, which knows the rows before
    the device does.

    Args:
        captions: of all images.
        dropout: the fraction of captions replaced by the empty one, in [0, 1) (Ho & Salimans 2022, algorithm 1).
    """

    num_class_embeds = None

    def __init__(self, captions: Captions, dropout: float) -> None:
        distinct = {text: row for row, text in enumerate(dict.fromkeys([*captions.texts, ""]))}
        self.texts = list(distinct)
        """Each caption once, and the empty one: what the tables must have rows for."""
        self.captions = captions
        self.dropout = dropout
        self._rows = np.array([distinct[text] for text in captions.texts], np.int64)
        self._null = distinct[""]
        self._tables: dict[str, np.ndarray] = {}
        self._network: Any = None

    def use_tables(self, **tables: np.ndarray) -> "CaptionConditioning":
        """Set what the network is conditioned on: arrays with a row for each of `texts`, by its arguments' names."""
        self._tables = tables
        return self

    def embed_with(self, network: Any, tokens: dict[str, np.ndarray], embeddings: np.ndarray) -> None:
        """Condition a network on text embeddings that were computed before.

        Args:
            network: the network.
            tokens: of `token_tables`.
            embeddings: of these tokens, (texts, L, D), by `caption_embeddings`.
        """
        self._network = network
        masks = {name: table for name, table in tokens.items() if name == "attention_mask"}
        self.use_tables(encoder_hidden_states=embeddings, **masks)

    def fit(self, tokenizer: Any, text_encoder: Any) -> None:
        """Make a tokenizer pad to the longest caption, if the text encoder takes as many tokens."""
        fit_length(tokenizer, self.texts, getattr(text_encoder.config, "max_position_embeddings", None))

    def tabulate(
        self, tokenizer: Any, network: Any, text_encoder: Any, root: Path, *, masked: bool = True
    ) -> "CaptionConditioning":
        """Set the tables of a model: tokens, or where its text encoder isn't trained what that says of them.

        Args:
            tokenizer: of the text encoder.
            network: that is conditioned.
            text_encoder: that stays as it is, on the device that it is to run on; None if it is trained.
            root: where embeddings are kept; see `caption_embeddings`.
            masked: whether the encoder masks padding.

        Raises:
            UserError: as `caption_embeddings`.
        """
        tokens = token_tables(tokenizer, self.texts, masked)
        if text_encoder is None:
            return self.use_tables(**tokens)
        self.embed_with(network, tokens, caption_embeddings(tokens, text_encoder, root))
        return self

    def draw(self, indices: Tensor, seed: int) -> np.ndarray:
        """Rows (B,) of `texts` for images `indices` (B,)."""
        starts, which = self.captions.starts, indices.numpy()
        chosen, dropped = draw_captions(starts[which + 1] - starts[which], self.dropout, seed)
        return np.where(dropped, self._null, self._rows[starts[which] + chosen])

    def embed(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Tokens or embeddings (B, L) or (B, L, D) of a drawn caption each, as the network's arguments."""
        rows = self.draw(batch["indices"], generator.initial_seed())
        conditions = on_device({name: table[rows] for name, table in self._tables.items()}, generator.device)
        if self._network is None:
            return conditions
        return text_conditions(self._network, conditions["encoder_hidden_states"], conditions.get("attention_mask"))


def draw_captions(counts: np.ndarray, dropout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of its captions each image is shown with, (B,) int64, and whether that is dropped, (B,) bool.

    Args:
        counts: of the captions of each, (B,).
        dropout: the fraction that is dropped.
        seed: of the pass.
    """
    rng = np.random.default_rng([CAPTION, seed])
    return rng.integers(counts), rng.random(len(counts)) < dropout


def on_device(tables: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Arguments of a network on its device; embeddings are kept in half precision, noise and losses never are."""
    tensors = {name: torch.from_numpy(table) for name, table in tables.items()}
    return {name: to_device(t.float() if t.is_floating_point() else t, device) for name, t in tensors.items()}


def token_tables(tokenizer: object, texts: Sequence[str], masked: bool = True) -> dict[str, np.ndarray]:
    """Arguments of `encode_tokens` for captions, each int64 (captions, L).

    Args:
        tokenizer: pads captions to L tokens, and cuts them there.
        texts: the captions.
        masked: whether the encoder masks padding: `attention_mask` is then beside `input_ids`.
    """
    tokens = tokenizer(  # type: ignore[operator]
        converted(list(texts), tokenizer), padding="max_length", truncation=True, return_tensors="np"
    )
    names = ("input_ids", "attention_mask") if masked else ("input_ids",)
    return {name: tokens[name].astype(np.int64) for name in names}
