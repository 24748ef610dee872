"""The page that samples a model, without gradio: what it offers, and what its button does."""

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.pipelines.models import tiny_pipeline
from tests.pipelines.test_text2img import make as make_text2img

MODELS = {
    "text": (lambda: make_text2img(latent=False), 1.25, "a cat"),
    "classes": (
        lambda: tiny_pipeline(FlowMatchEulerDiscreteScheduler(), 3, 3, id2label={0: "ant", 1: "bee"}),
        1.0,
        "bee",
    ),
    "plain": (lambda: tiny_pipeline(channels=3), 1, None),
}


@pytest.fixture
def gradio(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """In its place, what it is asked for is remembered."""
    made = MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", made)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    return made


@pytest.mark.parametrize("name", MODELS)
def test_page(name: str, gradio: MagicMock, tmp_path: Path) -> None:
    """It starts at the guidance of the pipeline's own default, and samples as the pipeline does when it is called."""
    make, guidance, condition = MODELS[name]
    make().save_pretrained(tmp_path)
    importlib.import_module("app").make_page(str(tmp_path))
    slider = next(call for call in gradio.Slider.call_args_list if call.kwargs["label"] == "Guidance")
    assert slider.args[2] == guidance
    assert slider.kwargs["visible"] == (name != "plain")
    sample = gradio.Button.return_value.click.call_args.args[0]
    images = sample(condition, guidance, 2, 2, 5)
    from pipelines import PixelDiffusionPipeline, TextToImagePipeline

    ours: Any = (TextToImagePipeline if name == "text" else PixelDiffusionPipeline).from_pretrained(tmp_path)
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(5)}
    if name == "text":
        expected = ours(condition, num_images_per_prompt=2, **options).images
    else:
        expected = ours(2, class_labels=condition, **options).images
    assert len(images) == 2
    for a, b in zip(images, expected, strict=True):
        assert abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1
