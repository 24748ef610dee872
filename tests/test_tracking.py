"""What a run says of itself."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trackio.sqlite_storage import SQLiteStorage
from trackio.utils import TRACKIO_DIR

from snowmelt.config import parse
from snowmelt.errors import UserError
from snowmelt.options import UnconditionalConfig
from snowmelt.tracking import check_logger, log_samples, read_metrics

TOKEN = "hf_" + "Secret" * 6


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    options = {"max_train_steps": 6, "logging_steps": 2, "train_batch_size": 64, "eval_batch_size": 10}
    return train(folder, **options, logger="tensorboard", hub_token=TOKEN)


def test_metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        quartiles = [line[f"loss_q{q}"] for q in (1, 2, 3, 4)]
        assert min(quartiles) <= line["loss"] <= max(quartiles)
        assert all(line[k] > 0 for k in ("grad_norm", "lr", "images_per_second", "peak_memory_mb"))
        assert all(math.isfinite(value) for value in line.values())


def test_trackio(train, tmp_path):
    """What its page reads: the numbers of each logged step, and the grid of samples, ten digits of 8 pixels."""
    options = {"max_train_steps": 4, "logging_steps": 2, "eval_batch_size": 10, "tracker_project_name": tmp_path.name}
    run = train(tmp_path / "run", **options, logger="trackio")
    (name,) = SQLiteStorage.get_runs(tmp_path.name)
    logged = SQLiteStorage.get_logs(tmp_path.name, name)
    for line in read_metrics(run):
        (found,) = [entry for entry in logged if entry["step"] == line["step"] and "loss" in entry]
        assert [found[key] for key in ("loss", "lr")] == pytest.approx([line["loss"], line["lr"]])
    (samples,) = [entry["samples"] for entry in logged if "samples" in entry]
    with Image.open(TRACKIO_DIR / "media" / samples["file_path"]) as grid:
        assert grid.size == (38, 28)


def test_trackers_that_take_no_images():
    class Numbers:
        name = "comet_ml"

    log_samples(SimpleNamespace(trackers=[Numbers()]), np.zeros((1, 2, 2, 3), np.uint8), 1)


def test_images(run):
    with Image.open(run / "samples" / "step-000006.png") as grid, Image.open(run / "loss.png") as plot:
        assert grid.size == (98, 8)  # the ten classes in turn
        assert plot.width > 400


def test_the_loss_is_drawn_with_each_grid(train, tmp_path, monkeypatch):
    """So that both can be looked at while training goes on."""
    drawn = []
    monkeypatch.setattr("snowmelt.trainer.plot_loss", lambda folder: drawn.append(read_metrics(folder)[-1]["step"]))
    options = {"split": "train[:192]", "train_batch_size": 64, "save_images_epochs": 1, "eval_batch_size": 1}
    run = train(tmp_path / "run", max_train_steps=6, logging_steps=1, ddpm_num_inference_steps=1, **options)
    assert drawn == [int(path.stem.removeprefix("step-")) for path in sorted((run / "samples").glob("*.png"))] == [3, 6]


def test_tensorboard(run):
    (events,) = (run / "logs" / "snowmelt").glob("events.out.*")
    accumulator = EventAccumulator(str(events)).Reload()
    lines = read_metrics(run)
    for name in ("loss", "loss_q1", "lr", "images_per_second"):
        logged = [(event.step, event.value) for event in accumulator.Scalars(name)]
        assert logged == [(line["step"], pytest.approx(line[name])) for line in lines]
    (samples,) = accumulator.Tags()["images"]
    assert [image.step for image in accumulator.Images(samples)] == [6] * len(accumulator.Images(samples))
    assert accumulator.Images(samples)


def test_the_token_is_written_nowhere(run):
    assert all(TOKEN.encode() not in path.read_bytes() for path in run.rglob("*") if path.is_file())


def test_a_cut_line_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize("name", ["wandb", "comet_ml"])
def test_missing_logger(name, train, tmp_path):
    try:
        check_logger(name)
    except UserError:
        with pytest.raises(UserError, match=rf"--logger {name} isn't installed; pip install -e '.\[{name}\]'"):
            train(tmp_path / "run", logger=name)
        assert not (tmp_path / "run").exists()
    else:
        pytest.skip(f"{name} is installed")


def test_unknown_logger():
    with pytest.raises(UserError, match="--logger/--report_to: invalid choice: 'comet'"):
        parse(UnconditionalConfig, ["--logger", "comet"])
