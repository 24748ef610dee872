from typing import Any

import numpy as np
import pytest
import torch

from snowmelt.data.captions import Captions
from snowmelt.text.caption_conditioning import CaptionConditioning, token_tables
from tests.text.models import tiny_tokenizer

CAPTIONS = Captions(["a cat", "a dog", "a cat", "two blue squares"], np.array([0, 1, 3, 4]))
MANY = 4000


def rows(conditioning: CaptionConditioning, image: int, seed: int = 0) -> list[str]:
    drawn = conditioning.draw(torch.full((MANY,), image), seed)
    return [conditioning.texts[row] for row in drawn]


def test_each_text_is_kept_once() -> None:
    conditioning = CaptionConditioning(CAPTIONS, 0.1)
    assert conditioning.texts == ["a cat", "a dog", "two blue squares", ""]


def test_captions_are_drawn_evenly_and_dropped_at_the_given_rate() -> None:
    conditioning = CaptionConditioning(CAPTIONS, 0.2)
    texts = rows(conditioning, 1)
    shares = {text: texts.count(text) / MANY for text in set(texts)}
    assert shares == pytest.approx({"a dog": 0.4, "a cat": 0.4, "": 0.2}, abs=0.03)
    assert set(rows(CaptionConditioning(CAPTIONS, 0.0), 2)) == {"two blue squares"}


def test_draws_follow_from_the_seed_of_the_pass() -> None:
    conditioning = CaptionConditioning(CAPTIONS, 0.2)
    assert rows(conditioning, 1, 5) == rows(conditioning, 1, 5)
    assert rows(conditioning, 1, 5) != rows(conditioning, 1, 6)
    generator, batch = torch.Generator().manual_seed(5), {"indices": torch.ones(MANY, dtype=torch.int64)}
    conditioning.use_tables(row=np.arange(4))
    first = conditioning.embed(batch, generator)["row"]
    torch.rand(3, generator=generator)  # what else draws from it doesn't matter
    assert torch.equal(conditioning.embed(batch, generator)["row"], first)
    assert [conditioning.texts[row] for row in first] == rows(conditioning, 1, 5)


def test_tokens_are_conditions() -> None:
    conditioning, tokenizer = CaptionConditioning(CAPTIONS, 0.0), tiny_tokenizer(8)
    conditioning.use_tables(**token_tables(tokenizer, conditioning.texts))
    conditions = conditioning.embed({"indices": torch.tensor([2, 0])}, torch.Generator())
    expected: Any = tokenizer(["two blue squares", "a cat"], padding="max_length", return_tensors="pt")
    assert conditions.keys() == {"input_ids", "attention_mask"}
    assert all(torch.equal(conditions[name], expected[name]) for name in conditions)


def test_embeddings_are_conditions_in_full_precision() -> None:
    conditioning = CaptionConditioning(CAPTIONS, 0.0)
    states = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float16)
    conditioning.use_tables(encoder_hidden_states=states)
    conditions = conditioning.embed({"indices": torch.tensor([2, 0])}, torch.Generator())["encoder_hidden_states"]
    assert conditions.dtype == torch.float32
    assert np.array_equal(conditions.numpy(), states[[2, 0]].astype(np.float32))
