"""Vision models of the sizes that a test can pay for."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MAKERS: dict[str, Callable] = {
    "vit": lambda: ViTModel(ViTConfig(**TINY, image_size=32, patch_size=8)),
    "vit-without-pooler": lambda: ViTForImageClassification(ViTConfig(**TINY, image_size=32, patch_size=8)),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "clip": lambda: CLIPModel(
        CLIPConfig(
            text_config={**TINY, "vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 99},
            vision_config={**TINY, "image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
    ),
}


def save_vision_model(name: str, folder: Path) -> Path:
    """An untrained model, with what its image processor does: 32 pixels, mean 0.5, std 0.25."""
    torch.manual_seed(0)
    MAKERS[name]().eval().save_pretrained(folder)
    settings = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_clip(folder: Path) -> Path:
    """An untrained CLIP model that tells one text from another, with a tokenizer that knows letters."""
    save_vision_model("clip", folder)
    model = CLIPModel.from_pretrained(folder)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = {"<|startoftext|>": 98, "<|endoftext|>": 99} | {letter: i for i, letter in enumerate(letters)}
    words |= {f"{letter}</w>": i + len(letters) for i, letter in enumerate(letters)}
    CLIPTokenizer(vocab=words, merges=[], model_max_length=16).save_pretrained(folder)
    return folder
