"""Trainings whose images are streamed: exact resumes, on one process and two, and what the log says of waiting."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from snowmelt.tracking import read_metrics
from tests.conftest import trained
from tests.data.shards import write_parquet
from tests.test_resume import interrupted

STEPS = 6


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    folder = write_parquet(tmp_path_factory.mktemp("data") / "set")
    return {
        "dataset_name": None,
        "train_data_dir": folder,
        "streaming": True,
        "shuffle_buffer_size": 32,
        "max_train_steps": STEPS,
        "train_batch_size": 10,
        "gradient_accumulation_steps": 2,  # 20 of the 100 rows a step: the second epoch begins with the sixth
        "checkpointing_steps": 1,
        "random_flip": True,
        "learning_rate": 1e-3,
    }


@pytest.fixture(scope="module")
def whole(options, train, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("whole") / "run", **options)


@pytest.mark.parametrize("step", [1, 5])
def test_resume_is_exact(options, whole, train, tmp_path, step):
    resumed = interrupted(whole, step, tmp_path / "run")
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed) == trained(whole, since=step)


def test_what_waits_for_data_is_logged(whole):
    assert all(0 <= line["data_wait_percent"] <= 100 for line in read_metrics(whole))
    assert json.loads((whole / "run.json").read_text())["num_images"] == 100


def test_another_order_of_data_is_refused(options, whole, train, tmp_path):
    resumed = interrupted(whole, 1, tmp_path / "run")
    with pytest.raises(ValueError, match=r"was made with --shuffle_buffer_size 32 \(now 64\)"):
        train(resumed, **options | {"shuffle_buffer_size": 64}, resume_from_checkpoint="latest")


def test_validation(options, train, tmp_path):
    given = {"validation_share": 0.2, "eval_steps": 2, "max_train_steps": 2, "condition": "mask"}
    folder = train(tmp_path / "run", **options | given)
    assert read_metrics(folder)[-1]["eval_loss"] > 0


def test_two_processes_take_the_steps_of_one(options, launch, train, tmp_path):
    given = options | {"max_train_steps": 3}
    one = train(tmp_path / "one", **given | {"gradient_accumulation_steps": 2})
    statuses, printed = launch(tmp_path / "two", 2, **given | {"gradient_accumulation_steps": 1})
    assert statuses == [0, 0], printed
    name = "unet/diffusion_pytorch_model.safetensors"
    assert_close(load_file(tmp_path / "two" / name), load_file(one / name), rtol=0, atol=1e-6)
    for first, second in zip(read_metrics(one), read_metrics(tmp_path / "two"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
