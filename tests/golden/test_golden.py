"""Losses and images are those on record, whatever has been rearranged since. See runs.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import PixelDiffusionPipeline, image_generators
from snowmelt.checkpoint import STATE_FILE, _state_digest
from snowmelt.tracking import read_metrics
from tests.golden.runs import FOLDER, TRAININGS, images, losses
from tests.pipelines.models import quiet

OLD = FOLDER / "version-0.1"
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


def test_a_model_of_version_0_1_gives_the_same_images() -> None:
    pipeline = quiet(PixelDiffusionPipeline.from_pretrained(OLD))
    made = pipeline(
        batch_size=2,
        class_labels=[1, 7],
        guidance_scale=2.0,
        num_inference_steps=4,
        generator=image_generators(0, range(2)),
        output_type="np",
    ).images
    np.testing.assert_allclose(made, np.load(OLD / "images.npy"), atol=1e-4)


def test_a_checkpoint_of_version_0_1_resumes(tmp_path: Path, train: Callable[..., Path]) -> None:
    """Its run took these two steps itself; a network's configuration is known by its path, which is another here."""
    run = tmp_path / "run"
    shutil.copytree(OLD, run)
    path = run / "checkpoint-4" / STATE_FILE
    state = json.loads(path.read_text())
    del state["sha256"]
    state["config"]["model_config_name_or_path"] = str(OLD / "unet.json")
    path.write_text(json.dumps(state | {"sha256": _state_digest(state)}))
    train(
        run,
        resume_from_checkpoint="latest",
        max_train_steps=6,
        model_config_name_or_path=OLD / "unet.json",
        train_batch_size=4,
        eval_batch_size=2,
        ddpm_num_inference_steps=2,
        lr_warmup_steps=2,
        lr_scheduler="constant_with_warmup",
        checkpointing_steps=2,
        checkpoints_total_limit=1,
        save_images_epochs=10,
        save_model_epochs=10,
    )
    assert [line["loss"] for line in read_metrics(run)] == pytest.approx([2.0452215671539307, 2.119764566421509])
