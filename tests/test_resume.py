"""A run that is interrupted and resumed is the run that wasn't, to the last bit."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from snowmelt import architectures
from snowmelt.tracking import read_metrics
from tests.conftest import trained

STEPS = 8
EVERYTHING = {
    "max_train_steps": STEPS,
    "train_batch_size": 150,
    "gradient_accumulation_steps": 2,  # 300 of the 1,797 digits a step: the epoch ends inside the sixth
    "checkpointing_steps": 1,
    "label_dropout": 0.3,
    "random_flip": True,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 3,
    "learning_rate": 1e-3,
}
VARIANTS = {
    "fp32": {},
    "bf16, EMAs of several widths": {"mixed_precision": "bf16", "ema_widths": [0.05, 0.1, 0.2]},
    "no average, stratified epsilon": {
        "use_ema": False,
        "objective": "epsilon",
        "loss_weight": "min_snr",
        "low_discrepancy": True,
    },
    "muon, noise by optimal transport": {
        "optimizer": "muon",
        "objective": "flow",
        "coupling": "ot",
        "contrastive_weight": 0.05,
    },
    "self-conditioned, the nearest noise": {"self_condition": True, "objective": "epsilon", "coupling": "nearest"},
    "no classes, a score-based SDE": {"class_conditional": False, "objective": "ve"},
    "dropout, augmentation, clipped spikes": {
        "dropout": 0.2,
        "augment_p": 0.3,
        "objective": "edm",
        "max_grad_norm_ratio": 1.05,
    },
    "given images": {
        "condition": "mask",
        "conditioning_dropout_prob": 0.2,
        "max_noise_level": 0.5,
        "objective": "flow",
    },
    "importance sampling": {
        "objective": "improved_ddpm",
        "ddpm_num_steps": 10,  # so that each has had its losses before the interruption
        "ddpm_num_inference_steps": 5,
        "timestep_sampling": "loss_second_moment",
    },
}


def interrupted(run: Path, step: int, folder: Path) -> Path:
    """What `run` had left if it had been killed after the checkpoint of a step."""
    shutil.copytree(run / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: step + 2]) + '{"step": 5, "lo')
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact(variant, train, tmp_path):
    options = EVERYTHING | VARIANTS[variant]
    whole = train(tmp_path / "whole", **options)
    for step in (1, 5, 7) if variant == "fp32" else (6,):
        resumed = interrupted(whole, step, tmp_path / str(step))
        train(resumed, **options, resume_from_checkpoint="latest")
        assert trained(resumed) == trained(whole, since=step)
        for before, after in zip(read_metrics(whole), read_metrics(resumed), strict=True):
            same = ("step", "loss", "loss_q1", "grad_norm", "lr")
            assert {k: before[k] for k in same} == {k: after[k] for k in same}


def test_saving_changes_nothing(train, tmp_path):
    often = train(tmp_path / "often", max_train_steps=3, checkpointing_steps=1, save_model_epochs=1)
    once = train(tmp_path / "once", max_train_steps=3)
    assert trained(often, since=3) == trained(once, since=3)


def test_noise_is_fresh(train, tmp_path):
    """One image and a network that stays as it is: only the noise can tell steps, and passes of a step, apart."""
    (tmp_path / "pictures").mkdir()
    Image.new("L", (8, 8), 99).save(tmp_path / "pictures" / "a.png")
    options = {"dataset_name": None, "train_data_dir": tmp_path / "pictures", "class_conditional": False}
    options |= {"learning_rate": 0.0, "train_batch_size": 1, "max_train_steps": 6}
    once = train(tmp_path / "once", **options)
    twice = train(tmp_path / "twice", **options, gradient_accumulation_steps=2)
    losses = [line["loss"] for run in (once, twice) for line in read_metrics(run)]
    assert len(set(losses)) == 12


@pytest.mark.parametrize("variant", ["fp32", "importance sampling"])
def test_two_processes(variant, train, launch, tmp_path):
    """They resume exactly too, and take the steps that one process takes with twice the accumulation."""
    options = EVERYTHING | VARIANTS[variant] | {"max_train_steps": 4, "gradient_accumulation_steps": 1}
    options |= {"train_batch_size": 150 if variant == "importance sampling" else 16}
    assert launch(tmp_path / "two", 2, **options)[0] == [0, 0]
    resumed = interrupted(tmp_path / "two", 2, tmp_path / "resumed")
    assert launch(resumed, 2, **options, resume_from_checkpoint="checkpoint-2")[0] == [0, 0]
    assert trained(resumed) == trained(tmp_path / "two", since=2)

    one = train(tmp_path / "one", **options | {"gradient_accumulation_steps": 2})
    for name in ("unet/diffusion_pytorch_model", "checkpoint-4/unet/diffusion_pytorch_model"):
        expected = load_file(one / f"{name}.safetensors")
        assert_close(load_file(tmp_path / "two" / f"{name}.safetensors"), expected, rtol=0, atol=1e-6)
    lines = zip(read_metrics(tmp_path / "two"), read_metrics(one), strict=True)
    for two, single in lines:
        assert two["lr"] == single["lr"]
        assert two["loss"] == pytest.approx(single["loss"], rel=1e-5)


def test_a_resumed_run_keeps_its_network(train, tmp_path, monkeypatch):
    """Whatever its size's name means by then."""
    options = {"model_config_name_or_path": None, "model_size": "tiny", "max_train_steps": 2, "checkpointing_steps": 1}
    whole = train(tmp_path / "whole", **options)
    monkeypatch.setattr(architectures, "CHANNELS_PER_GROUP", 8)
    resumed = interrupted(whole, 1, tmp_path / "resumed")
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=1) == trained(whole, since=1)
    groups = [json.loads((folder / "unet/config.json").read_text())["norm_num_groups"] for folder in (whole, resumed)]
    assert groups == [8, 8]
