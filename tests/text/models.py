"""Small real text encoders, saved as pretrained ones are."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from snowmelt.text.tokens import train_tokenizer

CAPTIONS = ["a red circle at the left", "two blue squares", "a cat", "a dog and a cat"]


def tiny_tokenizer(length: int = 16) -> Any:
    tokenizer = train_tokenizer(CAPTIONS, 560)
    tokenizer.model_max_length = length
    return tokenizer


def tiny_encoder(kind: str, vocab_size: int) -> Any:
    torch.manual_seed(0)
    if kind == "t5":
        return T5EncoderModel(
            T5Config(vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.5)
        )
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            eos_token_id=1,
        )
    )


def save_pretrained(folder: Path, kind: str = "clip", vocab_size: int | None = None, pipeline: bool = False) -> Path:
    """A folder as `--text_encoder` takes it: of a model, or of a pipeline."""
    tokenizer = tiny_tokenizer()
    encoder = tiny_encoder(kind, vocab_size or len(tokenizer))
    encoder.save_pretrained(folder / "text_encoder" if pipeline else folder)
    tokenizer.save_pretrained(folder / "tokenizer" if pipeline else folder)
    return folder
