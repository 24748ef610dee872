"""Pretrained text-to-image models in training on two processes: the steps of one with twice the accumulation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from snowmelt.tracking import read_metrics
from tests.text.stable_diffusion import tiny_sd

COUNT, STEPS = 8, 3
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    # Options, and the file of what is trained.
    "ControlNet": (
        {"controlnet": True, "condition": "edges", "learning_rate": 1e-3},
        "controlnet/diffusion_pytorch_model.safetensors",
    ),
    "LoRA": ({"rank": 2, "learning_rate": 1e-3}, "pytorch_lora_weights.safetensors"),
    "textual inversion": (
        {"placeholder_token": "<thing>", "initializer_token": "cat", "learning_rate": 1e-2},
        "learned_embeds.safetensors",
    ),
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options that name pictures with captions, and a tiny Stable Diffusion."""
    photos, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    lines = []
    for n in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(photos / f"{n}.png")
        lines.append(json.dumps({"file_name": f"{n}.png", "text": f"{'red' if n % 2 else 'blue'} cat"}))
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    return {
        "script": "train_text2img",
        "pretrained_model_name_or_path": tiny_sd(tmp_path_factory.mktemp("sd")),
        "train_data_dir": photos,
        "dataset_name": None,
        "class_conditional": None,
        "model_config_name_or_path": None,
        "resolution": 16,
        "lr_warmup_steps": 0,
        "train_batch_size": 2,
        "max_train_steps": STEPS,
        "logging_steps": 1,
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_are_one(
    variant: str, usual: dict[str, Any], train: Callable[..., Path], launch: Callable[..., Any], tmp_path: Path
) -> None:
    options, file = VARIANTS[variant]
    one = train(tmp_path / "one", **usual, **options, gradient_accumulation_steps=2)
    status, printed = launch(tmp_path / "two", 2, **usual, **options)
    assert status == [0, 0], printed
    losses = [[line["loss"] for line in read_metrics(run) if "loss" in line] for run in (one, tmp_path / "two")]
    assert len(losses[0]) == STEPS
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    found = [load_file(run / file) for run in (one, tmp_path / "two")]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], atol=2e-5, err_msg=name)
