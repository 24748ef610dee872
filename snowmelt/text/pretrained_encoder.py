"""Pretrained text encoders with their tokenizers."""

import contextlib
import hashlib
import json
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, T5EncoderModel

from snowmelt.errors import UserError, one_line

ENCODERS = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
"""By the type of model that their configuration names."""
INCIDENTAL = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""What a configuration says that changes no embedding."""


def load_text_encoder(name: str) -> tuple[Any, Any]:
    """A text encoder, float32 and not to be trained, and its tokenizer.

    Args:
        name: the folder or the Hub repository of a model, or of a pipeline that has one.

    Raises:
        UserError: if there is none, it is of another kind, or its tokenizer is missing or another model's.
    """
    flag = f"--text_encoder {name}"
    subfolder, config = _config(name)
    if config.model_type not in ENCODERS:
        raise UserError(f"{flag}: a {config.model_type} model; known are {', '.join(ENCODERS)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder="tokenizer" if subfolder else "")
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: no tokenizer beside the encoder ({one_line(error)})") from error
    try:
        encoder = ENCODERS[config.model_type].from_pretrained(name, subfolder=subfolder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: can't read its weights ({one_line(error)})") from error
    if len(tokenizer) > encoder.config.vocab_size:
        raise UserError(
            f"{flag}: its tokenizer has {len(tokenizer)} tokens and the encoder knows {encoder.config.vocab_size}: "
            "they aren't of one model"
        )
    if tokenizer.pad_token is None:
        raise UserError(f"{flag}: its tokenizer has no token for padding; it isn't a text encoder's")
    return encoder.float().eval().requires_grad_(False), tokenizer


def _config(name: str) -> tuple[str, Any]:
    """The sub-folder of the encoder, "" for none, and its configuration."""
    for subfolder in ("", "text_encoder"):
        with contextlib.suppress(OSError, ValueError):
            return subfolder, AutoConfig.from_pretrained(name, subfolder=subfolder)
    raise UserError(f"--text_encoder {name}: no text encoder there, nor in its sub-folder text_encoder")


def fingerprint_of(text_encoder: Any, tokenizer: Any) -> str:
    """A key of a text encoder's weights and configuration and of its tokenizer, but for the length that this cuts to.

    Args:
        text_encoder: of transformers.
        tokenizer: of transformers.
    """
    config = {k: v for k, v in text_encoder.config.to_dict().items() if k not in INCIDENTAL and not k.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(text_encoder).__name__, config], sort_keys=True).encode())
    for name, tensor in sorted(text_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    words = {name: value for name, value in backend.items() if name not in ("truncation", "padding")}
    digest.update(json.dumps([words, tokenizer.pad_token, tokenizer.padding_side], sort_keys=True).encode())
    return digest.hexdigest()[:32]
