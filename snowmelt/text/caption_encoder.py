"""Captions to what encode.py keeps of a text encoder's embeddings of them."""

import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from pipelines.text import max_tokens
from snowmelt.data.store import cache_root, open_store
from snowmelt.data.to_encode import ToEncode
from snowmelt.errors import UserError
from snowmelt.options import ImageOptions
from snowmelt.text.caption_conditioning import token_tables
from snowmelt.text.embeddings import embed
from snowmelt.text.pretrained_encoder import fingerprint_of
from snowmelt.text.tokens import fit_length


class CaptionEncoder:
    """A text encoder, as models are conditioned on it.

    Args:
        tokenizer: which pads to the length of all captions.
        text_encoder: on the device that it is to run on.
        masked: whether it masks padding, whose embeddings then aren't kept.
        dtype: in which embeddings are kept, float16 or float32.

    Raises:
        UserError: if padding that is masked comes before captions.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, *, masked: bool, dtype: np.dtype) -> None:
        if masked and tokenizer.padding_side != "right":
            raise UserError(f"--text_encoder: its tokenizer pads at the {tokenizer.padding_side}; known is the right")
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._masked = masked
        self._dtype = dtype
        self.key = {
            "encoder": fingerprint_of(text_encoder, tokenizer),
            "length": max_tokens(text_encoder, tokenizer),
            "width": text_encoder.config.hidden_size,
            "masked": masked,
        }

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Embeddings (tokens, D) of each caption.

        Raises:
            UserError: if one isn't finite.
        """
        tokens = token_tables(self._tokenizer, captions, self._masked)
        states = chain.from_iterable(embed(tokens, self._text_encoder, self._dtype))
        if not self._masked:
            return list(states)
        return [own[:count] for own, count in zip(states, tokens["attention_mask"].sum(1).tolist(), strict=True)]


def fit_to(tokenizer: Any, text_encoder: Any, data: ToEncode, options: ImageOptions) -> None:
    """Make a tokenizer pad to the longest caption of a data set; of captions in shards it is looked for once.

    Args:
        tokenizer: whose `model_max_length` is set.
        text_encoder: which may take fewer tokens.
        data: the captions.
        options: where what was found is kept.

    Raises:
        UserError: for a row without a caption.
    """

    def fit() -> dict[str, Any]:
        fit_length(tokenizer, chain([""], data.texts()), getattr(text_encoder.config, "max_position_embeddings", None))
        return {"length": tokenizer.model_max_length}

    if data.captions is not None:
        fit()
        return
    key = {"images": data.images.fingerprint, "captions": data.key, "encoder": fingerprint_of(text_encoder, tokenizer)}
    folder = cache_root(options) / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    tokenizer.model_max_length = open_store(folder, key, (), lambda _: fit())["length"]
