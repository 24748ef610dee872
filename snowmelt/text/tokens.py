"""Tokenizers: one for the captions at hand, and the length that captions are cut or padded to."""

from collections.abc import Sequence
from typing import Any

from transformers import CLIPTokenizerFast

LONGEST = 77
"""Tokens of a caption, its marks included, that CLIP reads, and the most that is kept for any encoder."""


def train_tokenizer(captions: Sequence[str], vocab_size: int) -> CLIPTokenizerFast:
    """CLIP's tokenizer, lower case and byte-level BPE, with pairs merged as the captions have them.

    Args:
        captions: all of them.
        vocab_size: the most tokens, of which 258 are bytes and marks.
    """
    return CLIPTokenizerFast().train_new_from_iterator(captions, vocab_size, show_progress=False)


def fit_length(tokenizer: Any, captions: Sequence[str], most: int | None = None) -> None:
    """Let a tokenizer pad to the longest caption, but cut at 77 tokens, at what it allows itself and at `most`."""
    longest = max(map(len, tokenizer(list(captions), verbose=False)["input_ids"]))
    tokenizer.model_max_length = min(longest, most or LONGEST, LONGEST, tokenizer.model_max_length)
