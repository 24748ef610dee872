"""Losses and images are those on record, whatever has been rearranged since. See runs.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.golden.runs import FOLDER, TRAININGS, images, losses

RECORDED = json.loads((FOLDER / "losses.json").read_text())


@pytest.mark.parametrize("name", TRAININGS)
def test_losses(name: str, tmp_path: Path) -> None:
    """To the last digit on the machine that recorded them; others round sums differently."""
    assert losses(name, tmp_path) == pytest.approx(RECORDED[name], rel=1e-3)


def test_images() -> None:
    made = {name: values[:, ::2, ::2] for name, values in images().items()}
    recorded = np.load(FOLDER / "images.npz")
    assert made.keys() == set(recorded)
    for name, values in made.items():
        np.testing.assert_allclose(values, recorded[name], atol=5e-3, err_msg=name)
