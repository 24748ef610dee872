"""Real images, and vision models of the sizes that a test can pay for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from snowmelt.data.sources import load_images
from snowmelt.evaluation import classifier
from snowmelt.evaluation.real import RealImages
from snowmelt.options import DataOptions

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


@pytest.fixture(scope="session")
def digits(cache_dir: Path) -> Callable[..., RealImages]:
    """`digits(split="train", **options)`: 8 x 8 pixels, gray."""

    def digits(**options: object) -> RealImages:
        data = {"dataset_name": "digits", "resolution": 8, "center_crop": True, "cache_dir": str(cache_dir)}
        cache = load_images(DataOptions(**data | options))
        return RealImages(cache, "train", cache.value_range)

    return digits


@pytest.fixture(scope="session")
def quick_classifier() -> None:
    """Classifiers train for a second rather than a minute."""
    patch = pytest.MonkeyPatch()
    patch.setattr(classifier, "STEPS", 150)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def vision_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of untrained models, with what their image processors do: 32 pixels, mean 0.5, deviation 0.25."""
    folder = tmp_path_factory.mktemp("vision")
    for name, make in MAKERS.items():
        torch.manual_seed(0)
        make().eval().save_pretrained(folder / name)
        settings = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
