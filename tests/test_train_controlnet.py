"""train_text2img.py --controlnet, on tiny Stable Diffusion pipelines and on ours."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import evaluate
import generate
from pipelines import TextToImageControlNetPipeline, image_generators
from pipelines.controlnet import control_image
from pipelines.image_conditions import make_condition
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from snowmelt.objectives import RECIPES
from snowmelt.publishing.export import export
from snowmelt.tasks.controlnet import ControlNetTask
from snowmelt.text.options import TextToImageConfig
from snowmelt.tracking import read_metrics
from tests.conftest import trained
from tests.pipelines import test_text2img
from tests.pipelines.models import quiet
from tests.publishing.test_self_contained import stranger
from tests.test_resume import interrupted
from tests.text.stable_diffusion import tiny_sd

PROMPTS = ["a red cat", "a blue cat", "two cats", "a dog"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with their captions, and a map of one channel beside each."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in PROMPTS]
    rows = {"image": images, "map": [image.convert("L") for image in images], "text": PROMPTS}
    folder = tmp_path_factory.mktemp("pictures") / "data"
    datasets.Dataset.from_dict(rows).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("sd"))


def own(folder: Path, objective: str = "flow", latent: bool = False) -> Path:
    """A pipeline of ours as a base; its network masks padding and sees the pooled text."""
    recipe = RECIPES[objective]
    base = test_text2img.make(recipe.scheduler(), latent, prediction_type=recipe.pipeline_prediction_type)
    pooled = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 32}
    unet = test_text2img.unet(4 if latent else 3, **pooled, resnet_time_scale_shift="scale_shift")
    base.register_modules(unet=unet)
    base.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def control(train: Callable[..., Path], photos: Path, sd: Path) -> Callable[..., Path]:
    """A run of a ControlNet for the tiny Stable Diffusion; options replace the usual ones."""
    usual = {
        "script": "train_text2img",
        "pretrained_model_name_or_path": sd,
        "controlnet": True,
        "condition": "edges",
        "dataset_name": photos,
        "image_column": "image",
        "class_conditional": None,
        "model_config_name_or_path": None,
        "resolution": 16,
        "lr_warmup_steps": 0,
        "learning_rate": 1e-2,
        "validation_prompts": PROMPTS[:2],
        "ddpm_num_inference_steps": 2,
        "train_batch_size": 4,
    }
    return lambda folder, **options: train(folder, **usual | options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_of_stable_diffusion(control: Callable[..., Path], sd: Path, tmp_path: Path) -> None:
    run = control(tmp_path / "run", use_ema=True, max_train_steps=3, checkpointing_steps=1)
    print(sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file()))
    resumed = interrupted(run, 1, tmp_path / "resumed")
    control(resumed, use_ema=True, max_train_steps=3, checkpointing_steps=1, resume_from_checkpoint="latest")
    assert trained(resumed, since=1) == trained(run, since=1)


@pytest.mark.parametrize("latent", [False, True])
def test_of_ours(latent: bool, control: Callable[..., Path], tmp_path: Path) -> None:
    base = own(tmp_path / "base", latent=latent)
    run = control(
        tmp_path / "run", pretrained_model_name_or_path=base, resolution=32 if latent else 16, max_train_steps=2
    )
    print(sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file()))
    load_pipeline(str(run))
