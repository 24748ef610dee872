"""What the page of a training reads from the run's folder."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.app.conftest import NEEDS_GRADIO

LINE = {"loss": 0.1, "loss_q1": 0.01, "loss_q4": None, "images_per_second": 50.0}


@pytest.fixture
def training() -> Any:
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)
    from snowmelt.app import training

    return training


def test_progress(training: Any, tmp_path: Path) -> None:
    """The time left is that of the images to come; without run.json nothing is said of it."""
    lines = [{"step": 0, "eval_loss": 1.0}, {"step": 10, **LINE}]
    assert training.read_progress(tmp_path, lines[:1]) is None
    assert training.read_progress(tmp_path, lines).shown() == "<p>step 10 · loss 0.1 · 50 images/s</p>"
    run = {"config": {"num_epochs": 3, "max_train_steps": None}, "num_images": 1001, "images_per_step": 10}
    (tmp_path / "run.json").write_text(json.dumps(run))
    progress = training.read_progress(tmp_path, lines)
    assert progress.total == 301  # 3 epochs of 1001 images, ten a step
    assert progress.seconds_left == (301 - 10) * 10 / 50
    assert "58 s left" in progress.shown()
    assert "done" in training.read_progress(tmp_path, [{"step": 301, **LINE}]).shown()
    assert [training.duration(s) for s in (59, 61, 7300)] == ["59 s", "1 min 1 s", "2 h 1 min"]


def test_curves_and_grids(training: Any, tmp_path: Path) -> None:
    """Long runs are thinned, the last step stays; a part without a value has no point."""
    curves = training.loss_curves([{"step": step, **LINE} for step in range(1, 2001)])
    assert set(curves["noise"]) == {"all", "least noise"}
    assert len(curves) <= 2 * (training.POINTS + 1)
    assert curves["step"].max() == 2000
    assert curves["log10 loss"].iloc[0] == pytest.approx(-1)
    (tmp_path / "samples").mkdir()
    for name in ("step-000002.png", "step-000010.png", "prompts.png"):
        PIL.Image.new("L", (2, 2)).save(tmp_path / "samples" / name)
    assert [caption for _, caption in training.grids(tmp_path)] == ["step 10", "step 2"]
