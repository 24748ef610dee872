"""A loss that isn't a number ends the run in one line that says where to look."""

import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel

from snowmelt.checkpoint import complete
from snowmelt.errors import UserError
from snowmelt.meter import Meter
from snowmelt.objectives.objective import Losses


@pytest.fixture
def poisoned(tmp_path):
    """Options of a run on float images; rows 3 and 5 are so far apart that float32 can't hold their difference."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    images = np.random.default_rng(0).random((20, 8, 8, 1), np.float32)
    images[3, 0, 0], images[5, 0, 0] = 3e38, -3e38
    for row, image in enumerate(images):
        np.save(folder / f"{row:02d}.npy", image)
    return {"dataset_name": None, "train_data_dir": folder, "class_conditional": False, "max_train_steps": 9}


def assert_refused(message: str) -> None:
    assert re.search(r"the loss is not finite at step 1: row \d+ at 0\.\d{3}", message)
    assert "\n" not in message


def test_values(poisoned, train, tmp_path):
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", **poisoned)
    assert_refused(str(caught.value))
    assert "row 3 at" in str(caught.value)
    assert not complete(tmp_path / "run")
    assert not (tmp_path / "run" / "model_index.json").exists()


def test_two_processes(poisoned, launch, tmp_path):
    statuses, printed = launch(tmp_path / "run", 2, **poisoned | {"train_batch_size": 10})
    assert statuses == [2, 2]
    errors = [line for line in printed.splitlines() if "error" in line]
    assert [line.split(":")[0] for line in errors] == ["error", "error (process 1)"]
    for line in errors:
        assert_refused(line)


def test_nothing_is_saved_between_log_lines_unseen(poisoned, train, tmp_path):
    """The pipeline and samples of an epoch's end wait for the losses before them, as checkpoints do."""
    saves = {"save_model_epochs": 1, "save_images_epochs": 1, "logging_steps": 1000, "checkpointing_steps": 1000}
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", **poisoned, **saves)
    assert_refused(str(caught.value))
    assert not (tmp_path / "run" / "model_index.json").exists()


def test_learning_rate(train, tmp_path):
    """The last good checkpoint is kept, and no other is written."""
    options = {"max_train_steps": 30, "checkpointing_steps": 1, "lr_warmup_steps": 0, "learning_rate": 1e30}
    with pytest.raises(UserError, match="not finite at step .* lower --learning_rate") as caught:
        train(tmp_path / "run", **options)
    step = int(re.search(r"at step (\d+)", str(caught.value))[1])
    assert [p.name for p in complete(tmp_path / "run")] == [f"checkpoint-{k}" for k in range(1, step)]
    weights = UNet2DModel.from_pretrained(tmp_path / "run" / f"checkpoint-{step - 1}" / "unet").state_dict()
    assert all(value.isfinite().all() for value in weights.values())


@pytest.fixture
def meter():
    """One that has seen steps 5 and 6, each of two passes over two images, of a set whose even rows were left out."""
    meter = Meter(Accelerator(cpu=True), micro_steps=2, rows=np.arange(1, 41, 2))
    for first in range(0, 8, 2):
        add(meter, [0.5, 0.5], first)
    return meter


def add(meter: Meter, losses: list[float], first: int) -> None:
    meter.add(Losses(torch.tensor(losses), torch.tensor([0.125, 0.25])), torch.arange(first, first + 2))


def test_where(meter):
    """Step 7 is the one, its second pass, the second image of it: the set's tenth image but its row 23."""
    for norm in (1.0, 1.0, float("nan"), 1.0):
        meter.add_norm(torch.tensor(norm))
    for losses, first in (([1, 1], 8), ([1, float("nan")], 10), ([float("inf"), 1], 12), ([1, 1], 14)):
        add(meter, losses, first)
    with pytest.raises(UserError, match=r"^the loss is not finite at step 7: row 23 at 0.250 \(rows"):
        meter.flush(8, None)


def test_gradient(meter):
    """One that overflows, though the losses are numbers, would leave weights that aren't."""
    for norm in (1.0, float("inf")):
        meter.add_norm(torch.tensor(norm))
    expected = "^the gradient is not finite at step 6: row 9 at 0.125, row 11 at 0.250 "
    with pytest.raises(UserError, match=expected):
        meter.flush(6, None)


def test_finite(meter):
    for norm in (1.0, 3.0):
        meter.add_norm(torch.tensor(norm))
    values, stop = meter.flush(6, "SIGTERM")
    assert stop == "SIGTERM"
    assert values["loss"] == 0.5
    assert values["grad_norm"] == 2
    assert (values["loss_q1"], values["loss_q2"], values["loss_q3"]) == (0.5, 0.5, None)
    assert values["images_per_second"] > 0
    assert 10 < values["peak_memory_mb"] < 1e6


def test_losses_without_noise_levels():
    """A criterion may log values of its own, per pass or per image; rows are named without a level."""
    meter = Meter(Accelerator(cpu=True), micro_steps=1, rows=np.arange(40))
    for a, losses in ((1.0, [1.0, 3.0]), (4.0, [5.0, 7.0])):
        values = {"pass": torch.tensor(a), "image": torch.tensor(losses) / 2}
        meter.add(Losses(torch.tensor(losses), values=values), torch.arange(2))
        meter.add_norm(torch.tensor(1.0))
    values = meter.flush(2, None)[0]
    assert (values["loss"], values["pass"], values["image"]) == (4, 2.5, 2)
    assert not any(name.startswith("loss_q") for name in values)
    meter.add(Losses(torch.tensor([1.0, float("nan")])), torch.tensor([7, 9]))
    meter.add_norm(torch.tensor(1.0))
    with pytest.raises(UserError, match=r"not finite at step 3: row 9 \(rows of the data set\)\. Checkpoints"):
        meter.flush(3, None)
