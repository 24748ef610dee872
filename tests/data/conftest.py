from collections.abc import Callable
from pathlib import Path

import pytest

from snowmelt.data.cache import ImageCache
from snowmelt.data.sources import load_images
from snowmelt.options import DataOptions


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageCache]:
    """`load_images` of the given options, with all that is kept on disk under tmp_path."""

    def load(**options: object) -> ImageCache:
        return load_images(DataOptions(cache_dir=str(tmp_path / "cache"), **options))  # type: ignore[arg-type]

    return load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for --train_data_dir."""
    path = tmp_path / "pictures"
    path.mkdir()
    return path
