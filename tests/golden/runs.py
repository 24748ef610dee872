"""What is recorded of the mathematics: losses of short trainings, and images of every sampler, at tiny size.

`python -m tests.golden.runs` records all of it anew. On one machine, with one thread, the files then are the same to
the last bit unless the mathematics has changed; a change that is meant shows elsewhere that it is better.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from pipelines import (
    LatentDiffusionPipeline,
    PixelDiffusionPipeline,
    TextToImagePipeline,
    fitting_schedulers,
    image_generators,
    make_scheduler,
)
from snowmelt.objectives import RECIPES
from snowmelt.tracking import read_metrics
from tests.autoencoders import tiny_vae
from tests.conftest import TINY_UNET, run_in_process
from tests.pipelines.models import quiet, tiny_unet
from tests.test_train_text2img import TINY_UNET as TINY_TEXT_UNET
from tests.text.models import tiny_encoder, tiny_tokenizer
from tests.text.stable_diffusion import tiny_sd
from tests.text.stable_diffusion import tiny_unet as tiny_text_unet

FOLDER = Path(__file__).parent
STEPS = 20

TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (script, options besides those of `losses`)
    "digits": ("train_unconditional", {"config": "digits"}),
    "mnist": ("train_unconditional", {"config": "mnist", "dataset_name": "digits"}),
    "digits-autoencoder": ("train_autoencoder", {"config": "digits-autoencoder"}),
    # At the recipe's rate rounding grows to 3% in 20 such steps, by which instructions the CPU has.
    "cifar10-autoencoder": ("train_autoencoder", {"config": "cifar10-autoencoder", "learning_rate": 2e-4}),
    "emoji-autoencoder": ("train_autoencoder", {"config": "emoji-autoencoder"}),
    "scenes": ("train_text2img", {"config": "scenes"}),
    "emoji": ("train_text2img", {"config": "emoji"}),
    "finetune": ("train_text2img", {}),
    "latents": ("train_unconditional", {"random_flip": True}),
    "mixed noise": (
        "train_unconditional",
        {
            "objective": "v",
            "noise_offset": 0.1,
            "input_perturbation": 0.1,
            "low_discrepancy": True,
            "random_flip": True,
        },
    ),
    "dream": ("train_unconditional", {"objective": "epsilon", "dream_training": True, "snr_gamma": 5.0}),
} | {f"objective {name}": ("train_unconditional", {"objective": name}) for name in RECIPES}

TRAINED: dict[str, Any] = {
    "epsilon": DDPMScheduler(timestep_spacing="trailing"),
    "v": DDPMScheduler(timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    "sample": DDPMScheduler(timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
    "zero snr": DDPMScheduler(timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "shifted flow": FlowMatchEulerDiscreteScheduler(shift=2.0),
    "edm": EDMEulerScheduler(),
}


def losses(name: str, folder: Path) -> list[float]:
    """The losses of the first steps of a training."""
    script, options = TRAININGS[name]
    words = {
        "resolution": 8,
        "train_batch_size": 4,
        "max_train_steps": STEPS,
        "max_train_minutes": None,
        "lr_warmup_steps": 5,
        "mixed_precision": "no",
        "logging_steps": 1,
        "eval_batch_size": 2,
        "cache_dir": folder / "cache",
        "output_dir": folder / "run",
    }
    if script == "train_unconditional":
        (folder / "unet.json").write_text(json.dumps(TINY_UNET))
        words |= {"dataset_name": "digits", "model_config_name_or_path": folder / "unet.json"}
    if script == "train_autoencoder":
        words |= {"resolution": 16, "disc_start": 10, "disc_width": 8, "perceptual": "none", "eval_features": "none"}
        words |= {"dataset_name": _captioned(folder / "pictures", 4 if name.startswith("emoji") else 3)}
    else:
        words |= {"ddpm_num_inference_steps": 2}
    if script == "train_text2img":
        (folder / "unet.json").write_text(json.dumps(TINY_TEXT_UNET))
        words |= {"dataset_name": _captioned(folder / "pictures", 4 if name == "emoji" else 3)}
        words |= {"caption_column": "text", "text_hidden_size": 64, "text_layers": 1}
        words |= {"model_config_name_or_path": folder / "unet.json"}
    if name == "finetune":
        words = {k: v for k, v in words.items() if k not in ("text_hidden_size", "text_layers")}
        words |= {"model_config_name_or_path": None, "pretrained_model_name_or_path": tiny_sd(folder / "sd")}
        words |= {"learning_rate": 1e-4}
    if name == "latents":
        tiny_vae("sd", 1).save_pretrained(folder / "vae")
        words |= {"resolution": 16, "autoencoder": folder / "vae"}
    line = []
    for key, value in (words | options).items():
        if value is True:
            line.append(f"--{key}")
        elif value is not None:
            line += [f"--{key}", str(value)]
    run_in_process(line, script)
    return [metrics["loss"] for metrics in read_metrics(folder / "run") if "loss" in metrics]


def _captioned(folder: Path, channels: int) -> Path:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(256, size=(8, 8, channels), dtype=np.uint8)) for _ in range(40)]
    rows = datasets.Dataset.from_dict({"image": images, "text": [f"picture {i} of some" for i in range(len(images))]})
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(folder)
    return folder


def images() -> dict[str, np.ndarray]:
    """Images of every sampler and every pipeline, each (B, H, W, C) float32."""
    made = {}
    for model, scheduler in TRAINED.items():
        for name in fitting_schedulers(scheduler):
            pipeline = quiet(PixelDiffusionPipeline(tiny_unet(), make_scheduler(name, scheduler)))
            made[f"{model}, {name}"] = _draw(pipeline)
    labelled = {"class_labels": [1, 2], "guidance_scale": 2.0}
    for model in ("epsilon", "flow", "edm"):
        unet = tiny_unet(3, num_class_embeds=4)
        pipeline = quiet(PixelDiffusionPipeline(unet, TRAINED[model], id2label={0: "a", 1: "b", 2: "c"}))
        made[f"{model}, guided"] = _draw(pipeline, **labelled)
        made[f"{model}, guided between"] = _draw(pipeline, **labelled, guidance_interval=(0.5, 3.0))
    for model, prediction in (("flow", "sample"), ("edm", "epsilon"), ("flow", "v_prediction")):
        pipeline = quiet(PixelDiffusionPipeline(tiny_unet(), TRAINED[model], prediction))
        made[f"{prediction} on {model}"] = _draw(pipeline)
    ddim = DDIMScheduler(timestep_spacing="trailing")
    made["eta"] = _draw(quiet(PixelDiffusionPipeline(tiny_unet(), ddim)), eta=0.5)
    made["timesteps"] = _draw(quiet(PixelDiffusionPipeline(tiny_unet(), TRAINED["epsilon"])), timesteps=[900, 500, 7])
    for kind in ("sd", "vq"):
        vae = tiny_vae(kind)
        unet = tiny_unet(4 if kind == "sd" else 3)
        made[f"latent, {kind}"] = _draw(quiet(LatentDiffusionPipeline(vae, unet, TRAINED["flow"])))
    tokenizer = tiny_tokenizer()
    parts = {"text_encoder": tiny_encoder("clip", len(tokenizer)), "tokenizer": tokenizer}
    start = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    for model, scheduler in TRAINED.items():
        text = {"prompt": ["a cat", "a red circle at the left"], "batch_size": None}
        pipeline = quiet(TextToImagePipeline(tiny_text_unet(3), scheduler, **parts))
        made[f"text, {model}"] = _draw(pipeline, **text, guidance_scale=3.0, guidance_rescale=0.5)
        for name in fitting_schedulers(scheduler) if model in ("epsilon", "shifted flow", "edm") else ():
            pipeline.scheduler = make_scheduler(name, scheduler)
            made[f"image to image, {model}, {name}"] = _draw(pipeline, **text, image=start, strength=0.7)
    return made


def _draw(pipeline: Any, **arguments: Any) -> np.ndarray:
    usual = {"batch_size": 2, "num_inference_steps": 8, "generator": image_generators(0, range(2)), "output_type": "np"}
    chosen = {k: v for k, v in (usual | arguments).items() if v is not None}
    array: np.ndarray = pipeline(**chosen).images
    return array


def record() -> None:
    """Write losses.json and images.npz."""
    recorded = {}
    for name in TRAININGS:
        with tempfile.TemporaryDirectory() as folder:
            recorded[name] = losses(name, Path(folder))
    (FOLDER / "losses.json").write_text(json.dumps(recorded, indent=1) + "\n")
    # Four pixels of each row are enough to see a change by.
    np.savez_compressed(FOLDER / "images.npz", **{k: v[:, ::2, ::2] for k, v in images().items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(record())
