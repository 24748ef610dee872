from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig

from pipelines.text import encode_tokens
from snowmelt.errors import UserError
from snowmelt.text import embeddings as states_module
from snowmelt.text.caption_conditioning import token_tables
from snowmelt.text.embeddings import caption_embeddings
from snowmelt.text.pretrained_encoder import load_text_encoder
from tests.text.models import CAPTIONS, save_pretrained, tiny_tokenizer


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_loaded_and_frozen(tmp_path: Path, kind: str, pipeline: bool) -> None:
    encoder, tokenizer = load_text_encoder(str(save_pretrained(tmp_path, kind, pipeline=pipeline)))
    assert type(encoder).__name__ == {"clip": "CLIPTextModel", "t5": "T5EncoderModel"}[kind]
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert tokenizer("a cat")["input_ids"] == tiny_tokenizer()("a cat")["input_ids"]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text encoder there, nor in its sub-folder text_encoder"):
        load_text_encoder(str(tmp_path))
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="a bert model; known are clip, clip_text_model, t5"):
        load_text_encoder(str(tmp_path / "bert"))
    save_pretrained(tmp_path / "other", vocab_size=100)
    with pytest.raises(UserError, match=r"its tokenizer has \d+ tokens and the encoder knows 100: they aren't of one"):
        load_text_encoder(str(tmp_path / "other"))
    alone = save_pretrained(tmp_path / "alone")
    for path in alone.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer beside the encoder"):
        load_text_encoder(str(alone))
    bare = save_pretrained(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't read its weights"):
        load_text_encoder(str(bare))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_states_are_those_of_the_pipeline(
    tmp_path: Path, kind: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "CAPTIONS_PER_PASS", 3)
    encoder, tokenizer = load_text_encoder(str(save_pretrained(tmp_path / "model", kind)))
    kept = caption_embeddings(token_tables(tokenizer, [*CAPTIONS, ""], masked), encoder, tmp_path / "cache")
    assert kept.dtype == np.float16
    assert kept.shape == (5, 16, 32)
    tokens = tokenizer([*CAPTIONS, ""], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        mask = tokens["attention_mask"] if masked else None
        expected = encode_tokens(encoder, tokens["input_ids"], mask)
    assert torch.allclose(torch.from_numpy(np.array(kept)).float(), expected, atol=2e-3)


def test_states_are_computed_once(tmp_path: Path) -> None:
    encoder, tokenizer = load_text_encoder(str(save_pretrained(tmp_path / "model")))
    passes: list[int] = []
    encoder.register_forward_hook(lambda *_: passes.append(1))
    root = tmp_path / "cache"
    tokens = token_tables(tokenizer, CAPTIONS)
    first = np.array(caption_embeddings(tokens, encoder, root))
    assert len(passes) == 1
    assert np.array_equal(caption_embeddings(tokens, encoder, root), first)
    assert len(passes) == 1
    caption_embeddings(token_tables(tokenizer, CAPTIONS[:2]), encoder, root)
    caption_embeddings(token_tables(tokenizer, CAPTIONS, masked=False), encoder, root)
    tokenizer.model_max_length = 7
    tokens = token_tables(tokenizer, CAPTIONS)
    caption_embeddings(tokens, encoder, root)
    assert len(passes) == 4
    encoder.get_parameter(next(name for name, _ in encoder.named_parameters())).data.mul_(2)
    changed = caption_embeddings(tokens, encoder, root)
    assert len(passes) == 5
    assert not np.array_equal(changed, first[:, :7])


def test_states_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    encoder, tokenizer = load_text_encoder(str(save_pretrained(tmp_path / "model")))
    for parameter in encoder.parameters():
        parameter.data.mul_(1e6)
    for _ in range(2):
        with pytest.raises(UserError, match="its embeddings of the captions aren't finite in float16"):
            caption_embeddings(token_tables(tokenizer, CAPTIONS), encoder, tmp_path / "cache")


def test_passes_are_of_one_size(tmp_path: Path) -> None:
    """Sums of a matrix product depend on its shape: an embedding is the same whatever is encoded with it."""
    encoder, tokenizer = load_text_encoder(str(save_pretrained(tmp_path / "model")))
    sizes: list[int] = []
    encoder.register_forward_hook(lambda _module, _inputs, outputs: sizes.append(len(outputs[0])))
    tokens = token_tables(tokenizer, [*CAPTIONS] * 5)
    found = [*states_module.embed(tokens, encoder, np.dtype(np.float16))]
    assert sizes == [16, 16]
    assert [len(states) for states in found] == [16, 4]
    alone = next(
        states_module.embed({name: table[1:2] for name, table in tokens.items()}, encoder, np.dtype(np.float32))
    )
    assert np.array_equal(alone[0].astype(np.float16), found[0][1])
