from pathlib import Path

import pytest
from transformers import AutoTokenizer, CLIPTokenizerFast

from snowmelt.text.networks import make_text_encoder
from snowmelt.text.tokens import fit_length, train_tokenizer
from tests.text.models import CAPTIONS


def test_words_that_are_often_there_are_tokens() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 600)
    assert tokenizer.tokenize("A Red CIRCLE") == ["a</w>", "red</w>", "circle</w>"]
    assert len(tokenizer) <= 600
    ids = tokenizer("a cat")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_the_same_captions_give_the_same_tokenizer() -> None:
    """A resumed run trains it again. Many ties among merges, and letters at the ends of words."""
    words = [f"{a}{b}{c}" for a in "abcde" for b in "fghij" for c in "klmno"]
    first, *others = (train_tokenizer(words, 620).backend_tokenizer.to_str() for _ in range(4))
    assert all(other == first for other in others)


@pytest.mark.parametrize("word", ["tacos", "żółw", "雪", "xyz"])
def test_unseen_words_fall_apart_but_none_is_unknown(word: str) -> None:
    tokenizer = train_tokenizer(CAPTIONS, 600)
    ids = tokenizer(word)["input_ids"]
    assert tokenizer.eos_token_id not in ids[:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == word


def test_length() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 600)
    fit_length(tokenizer, CAPTIONS)
    assert tokenizer.model_max_length == 8  # six words and two marks
    fit_length(tokenizer, ["a cat " * 100])
    assert tokenizer.model_max_length == 8  # what it says that it allows by now
    long = train_tokenizer(CAPTIONS, 600)
    fit_length(long, ["a cat " * 100])
    assert long.model_max_length == 77
    fit_length(long, ["a cat " * 100], most=20)
    assert long.model_max_length == 20


def test_transformers_load_it(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CAPTIONS, 600)
    fit_length(tokenizer, CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    for kind in (AutoTokenizer, CLIPTokenizerFast):
        again = kind.from_pretrained(tmp_path)
        assert again.model_max_length == 8
        assert (
            again(CAPTIONS, padding="max_length")["input_ids"] == tokenizer(CAPTIONS, padding="max_length")["input_ids"]
        )


def test_the_encoder_fits_its_tokenizer() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 600)
    fit_length(tokenizer, CAPTIONS)
    encoder = make_text_encoder(tokenizer, hidden_size=64, layers=1, seed=0)
    config = encoder.config
    assert (config.vocab_size, config.max_position_embeddings) == (len(tokenizer), 8)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 1, 1)
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
