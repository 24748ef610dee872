"""Tokenizers: one for the captions at hand, and the length that captions are cut or padded to."""

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizerFast

BEGIN, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

LONGEST = 77
"""Tokens of a caption, its marks included, that CLIP reads, and the most that is kept for any encoder."""

TOGETHER = 10_000
"""Captions that are made tokens at once, where only the longest matters."""


def train_tokenizer(captions: Sequence[str], vocab_size: int) -> CLIPTokenizerFast:
    """CLIP's tokenizer, lower case and byte-level BPE, with pairs merged as the captions have them.

    Args:
        captions: all of them.
        vocab_size: the most tokens; of them 514 are marks, bytes, and bytes that end a word.
    """
    letters = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        # Letters that end a word would else be numbered, and ties among merges broken, in the order of a hash table
        # that differs from run to run.
        special_tokens=[BEGIN, END, *(letter + WORD_END for letter in letters)],
        initial_alphabet=letters,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend = CLIPTokenizerFast().backend_tokenizer
    backend.train_from_iterator(captions, trainer)
    model = json.loads(backend.to_str())["model"]
    return CLIPTokenizerFast(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def fit_length(tokenizer: Any, captions: Iterable[str], most: int | None = None) -> None:
    """Set the length that a tokenizer cuts and pads to: of the longest caption, at most 77 and what it allows itself.

    Args:
        tokenizer: the tokenizer, whose `model_max_length` is set.
        captions: all captions, at least one.
        most: the most tokens that the text encoder takes; None for no limit of its own.
    """
    remaining, longest = iter(captions), 0
    while part := list(islice(remaining, TOGETHER)):
        longest = max(longest, *map(len, tokenizer(part, verbose=False)["input_ids"]))
    tokenizer.model_max_length = min(longest, most or LONGEST, LONGEST, tokenizer.model_max_length)
