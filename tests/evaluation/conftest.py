"""Real images, and what sees them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from snowmelt.data.sources import load_images
from snowmelt.evaluation import classifier
from snowmelt.evaluation.real import RealImages
from snowmelt.options import DataOptions
from tests.evaluation.vision import MAKERS, save_vision_model


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
    """Folders of untrained models."""
    folder = tmp_path_factory.mktemp("vision")
    for name in MAKERS:
        save_vision_model(name, folder / name)
    return folder
