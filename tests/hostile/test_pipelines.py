"""Arguments that the pipelines' code refuses: by a TypeError or ValueError that names them, before anything runs."""

import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, IPNDMScheduler

from pipelines import (
    LatentDiffusionPipeline,
    PixelDiffusionPipeline,
    TextToImagePipeline,
    image_generators,
    image_grid,
    make_scheduler,
    save_gif,
    save_strip,
)
from tests.autoencoders import tiny_vae
from tests.pipelines.models import quiet, tiny_pipeline, tiny_unet
from tests.pipelines.test_text2img import make as make_text2img

NAN, INF = math.nan, math.inf
NOISE = torch.zeros(1, 1, 16, 16)
EMBEDS = torch.zeros(1, 8, 32)
PIXELS = np.zeros((2, 4, 4, 3), np.uint8)
TRAJECTORY = SimpleNamespace(
    timesteps=torch.zeros(2), noisy=torch.zeros(2, 1, 1, 4, 4), denoised=torch.zeros(2, 1, 1, 4, 4)
)


@pytest.fixture(scope="module")
def targets() -> dict[str, Any]:
    """What is called: pipelines of each kind, and functions."""
    names = {0: "ant", 1: "bee", 2: "cat"}
    text, bare = make_text2img(latent=False), make_text2img(latent=False)
    bare.register_modules(text_encoder=None, tokenizer=None)
    latent = quiet(LatentDiffusionPipeline(tiny_vae(), tiny_unet(4), DDPMScheduler()))
    return {
        "pixel": tiny_pipeline(num_class_embeds=4, id2label=names),
        "plain": tiny_pipeline(),
        "ddim": tiny_pipeline(DDIMScheduler()),
        "flow": tiny_pipeline(FlowMatchEulerDiscreteScheduler()),
        "dpm": tiny_pipeline(make_scheduler("dpmsolver++", FlowMatchEulerDiscreteScheduler())),
        "text": quiet(text),
        "bare": quiet(bare),
        "latent": latent,
        "encode": latent.encode,
        "decode": latent.decode,
        "to_images": latent.to_images,
        "image_grid": image_grid,
        "save_strip": save_strip,
        "save_gif": save_gif,
        "image_generators": image_generators,
        "make_scheduler": make_scheduler,
        "Pixel": PixelDiffusionPipeline,
        "Latent": LatentDiffusionPipeline,
        "Text": TextToImagePipeline,
        "from_pretrained": PixelDiffusionPipeline.from_pretrained,
    }


def rows(target: str, name: str, /, *cases: tuple[Any, str], **others: Any) -> list[Any]:
    """Values of an argument, what is said of each, and the other arguments."""
    return [
        pytest.param(target, others | {name: value}, f"{name}.*{said}", id=f"{target}-{name}-{i}")
        for i, (value, said) in enumerate(cases)
    ]


CALL = [
    *rows("pixel", "batch_size", (0, "at least 1, got 0"), (-1, "at least 1"), ("2", "whole number"), (1.0, "whole")),
    *rows("pixel", "batch_size", (True, "whole number"), (None, "whole number"), (torch.tensor(2), "whole number")),
    *rows("pixel", "num_inference_steps", (0, "from 1 to 1000"), (-1, "from 1"), (1.5, "whole"), ("x", "whole")),
    *rows("pixel", "num_inference_steps", (True, "whole"), (1001, "from 1 to 1000, got 1001")),
    *rows("flow", "num_inference_steps", (10**9, "from 1 to 100000"), (0, "from 1")),
    *rows("pixel", "timesteps", (5, "list of timesteps"), ([], "is empty"), ([1, 5], "must decrease"), ("95", "list")),
    *rows("pixel", "timesteps", ([5, 5], "decrease"), ([1000], "from 0 to 999"), ([-1], "from 0"), ([1.5], "whole")),
    *rows("pixel", "timesteps", ([NAN], "finite"), (["9"], "number"), ([None], "number"), ([[9, 5]], "number")),
    *rows("flow", "timesteps", ([1001], "above 0 and at most 1000"), ([500, 0], "above 0"), ({9: 5}, "list")),
    *rows("ddim", "timesteps", ([9, 5], "DDIMScheduler takes no list")),
    *rows(
        "pixel", "class_labels", ([1.7], "whole number, got 1.7"), (True, "whole"), ([[0, 1]], "whole"), (1.0, "whole")
    ),
    *rows(
        "pixel",
        "class_labels",
        (3, "not among 0 to 2"),
        (-1, "not among"),
        ("dog", "'dog' is not among"),
        ([], "empty"),
    ),
    *rows(
        "pixel", "class_labels", ([None], "whole"), ({}, "list"), (torch.tensor([1.5]), "whole"), ([0, 1], "2 given")
    ),
    *rows(
        "pixel", "class_labels", (torch.zeros(1, 1, dtype=torch.long), "whole"), (b"ant", "list"), (2**80, "not among")
    ),
    *rows("plain", "class_labels", (0, "unconditional; leave them out")),
    *rows("pixel", "guidance_scale", (NAN, "finite number"), (INF, "finite"), ("x", "number"), (1j, "number")),
    *rows("pixel", "guidance_scale", (None, "number"), (True, "number"), ([2], "number")),
    *rows("plain", "guidance_scale", (2.0, "must be 1, since this model was not trained with dropped labels")),
    *rows("pixel", "guidance_interval", ((3, 1), "less than the highest"), ((NAN, 1), "finite"), (1.0, "list of two")),
    *rows(
        "pixel", "guidance_interval", ((1,), "two numbers"), ((1, 2, 3), "two"), (("a", "b"), "number"), ((-1, 1), "0")
    ),
    *rows("pixel", "guidance_interval", ((1, 1), "less than"), ("12", "list"), ((0, NAN), "finite")),
    *rows(
        "ddim", "eta", (NAN, "from 0 to 1"), (-0.1, "from 0 to 1"), (1.1, "from 0 to 1"), ("x", "number"), (1j, "numb")
    ),
    *rows("flow", "eta", (0.5, "FlowMatchEulerDiscreteScheduler takes none"), (None, "number")),
    *rows("pixel", "generator", (5, "torch.Generator or a list"), ("x", "torch.Generator"), ([5], "torch.Generator")),
    *rows(
        "pixel", "generator", ([], "0 given for 1"), (image_generators(0, [0, 1]), "2 given for 1"), ([None], "torch")
    ),
    *rows("pixel", "latents", ("x", "tensor"), (NOISE + 1j, "floating point"), (NOISE * NAN, "finite"), (5, "tensor")),
    *rows("pixel", "latents", (NOISE.long(), "floating"), (NOISE.bool(), "floating"), (NOISE[0], r"\(B, C, H, W\)")),
    *rows("pixel", "latents", (NOISE.numpy(), "tensor"), (NOISE[:, :, :8], "is to be generated"), (NOISE[:0], "shape")),
    *rows(
        "pixel",
        "height",
        (16.0, "whole"),
        (0, "at least 1"),
        (-2, "at least 1"),
        (17, "multiple of 2"),
        ("16", "whole"),
    ),
    *rows("pixel", "width", (16.5, "whole"), (0, "at least 1"), (True, "whole"), (15, "multiple of 2")),
    *rows(
        "pixel", "output_type", (5, "text"), (None, "text"), ("jpg", "not one of pil, np, pt"), ("latent", "not one of")
    ),
    *rows("pixel", "return_dict", ("no", "True or False"), (None, "True or False")),
    *rows("pixel", "return_trajectory", (1, "True or False")),
    *rows("pixel", "callback_on_step_end", (5, "function"), ("f", "function"), (lambda *_: None, "must return a dict")),
    *rows(
        "pixel", "callback_on_step_end", (lambda *_: {"latents": 5}, "tensor"), (lambda *_: [], "must return a dict")
    ),
    *rows("pixel", "callback_on_step_end", (lambda *_: {"latents": NOISE[:, :, :8]}, "of shape")),
    *rows("pixel", "callback_on_step_end", (lambda *_: {"latents": NOISE * NAN}, "finite"), ([print], "function")),
    *rows(
        "pixel",
        "callback_on_step_end_tensor_inputs",
        ("latents", "list of names"),
        (["x"], "'x' is not among"),
        (5, "list"),
    ),
    *rows("pixel", "callback_on_step_end_tensor_inputs", ([5], "5 is not among"), ([["latents"]], "is not among")),
]
TEXT = [
    *rows("text", "prompt", (5, "list of texts"), ([5], "text"), (None, "give it or prompt_embeds"), ([], "empty")),
    *rows("text", "prompt", (b"a", "list"), (["a", None], "text"), ({"a": 1}, "list"), (True, "list")),
    *rows("text", "negative_prompt", (5, "list"), ([None], "text"), (["a", "b"], "2 given for 1 prompts"), prompt="a"),
    *rows("text", "num_images_per_prompt", (0, "at least 1"), (1.5, "whole"), ("2", "whole"), (True, "wh"), prompt="a"),
    *rows("text", "guidance_scale", (NAN, "finite"), ("x", "number"), (None, "number"), prompt="a"),
    *rows(
        "text", "guidance_rescale", (NAN, "from 0 to 1"), (-1, "from 0"), (1.5, "from 0"), ("x", "number"), prompt="a"
    ),
    *rows(
        "text", "prompt_embeds", ("x", "tensor"), (EMBEDS[0], "shape"), (EMBEDS[..., :5], "5 channels.*attends to 32")
    ),
    *rows("text", "prompt_embeds", (EMBEDS.long(), "floating"), (EMBEDS * NAN, "finite"), (EMBEDS + 1j, "floating")),
    *rows("text", "prompt_attention_mask", (torch.ones(1, 3), "shape"), ("x", "tensor"), prompt_embeds=EMBEDS),
    *rows(
        "text",
        "prompt_attention_mask",
        (torch.zeros(1, 8), "token"),
        (torch.full((1, 8), 2), "0 and 1"),
        prompt_embeds=EMBEDS,
    ),
    *rows("text", "prompt_attention_mask", (torch.ones(1, 8), "belongs to prompt_embeds"), prompt="a"),
    *rows("text", "negative_prompt_embeds", (EMBEDS[:, :3], "but prompt_embeds are"), ("x", "tensor"), prompt="a"),
    *rows(
        "text",
        "image",
        (5, "PIL image"),
        ("x.png", "PIL"),
        ([], "PIL"),
        (np.zeros((16, 16, 3), np.uint8), "divide"),
        prompt="a",
    ),
    *rows(
        "text",
        "image",
        (torch.full((1, 3, 16, 16), 2.0), "outside"),
        (torch.full((1, 3, 16, 16), NAN), "outside"),
        prompt="a",
    ),
    *rows(
        "text", "image", (torch.zeros(5), "no image"), ([torch.zeros(3, 16, 16), 5], "PIL"), ([None], "PIL"), prompt="a"
    ),
    *rows(
        "text",
        "strength",
        (NAN, "from 0 to 1"),
        (0.01, "from 1 /"),
        (1.5, "from 0"),
        ("x", "number"),
        prompt="a",
        image=torch.zeros(1, 3, 16, 16),
    ),
    *rows(
        "text",
        "height",
        (17, "multiple"),
        (0, "at least 1"),
        (16.0, "whole"),
        prompt="a",
        image=torch.zeros(1, 3, 16, 16),
    ),
    *rows("text", "image", (torch.zeros(16, 16), "no image"), (torch.zeros(3, 1, 1), "side of 1 pixels"), prompt="a"),
    *rows("text", "image", ([np.zeros((16, 16, 3)), np.zeros((8, 8, 3))], "different shapes"), prompt="a"),
    *rows("text", "image", ([torch.zeros(3, 16, 16), torch.zeros(1, 3, 16, 16)], "different shapes"), prompt="a"),
    *rows(
        "text", "image", (PIL.Image.new("RGB", (1, 16)), "side of 1"), (np.zeros((0, 16, 3)), "side of 0"), prompt="a"
    ),
    *rows("bare", "prompt", ("a", "has no text encoder; give prompt_embeds")),
]
PARTS = [
    *rows(
        "encode",
        "images",
        ("x", "tensor"),
        (torch.zeros(3, 16, 16), "shape"),
        (torch.zeros(1, 1, 16, 16), "3 channels"),
    ),
    *rows(
        "encode", "images", (torch.zeros(1, 3, 17, 16), "multiples of 4"), (torch.zeros(1, 3, 16, 16) * NAN, "finite")
    ),
    *rows("encode", "images", (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floating"), (None, "tensor")),
    *rows("decode", "latents", ("x", "tensor"), (torch.zeros(1, 3, 16, 16), "4 channels"), (torch.zeros(4), "shape")),
    *rows("decode", "latents", (torch.full((1, 4, 4, 4), INF), "finite"), (torch.zeros(0, 4, 4, 4), "shape")),
    *rows("to_images", "output_type", ("jpg", "not one of"), (5, "text"), x0=torch.zeros(1, 3, 4, 4)),
    *rows("to_images", "x0", (5, "tensor"), (torch.zeros(3, 4, 4), "shape"), output_type="np"),
    *rows("image_grid", "pixels", (5, "uint8"), (PIXELS / 2, "uint8"), (PIXELS[0], "N, H, W, C"), (PIXELS[:0], "N, H")),
    *rows("image_grid", "pixels", (PIXELS[..., :2], "PIL has no image of 2 channels"), ([[0]], "uint8")),
    *rows("image_grid", "columns", (0, "at least 1"), (-1, "at least"), (1.5, "whole"), ("2", "whole"), pixels=PIXELS),
    *rows("image_grid", "gap", (-1, "at least 0"), (0.5, "whole"), (None, "whole"), pixels=PIXELS),
    *rows(
        "save_strip",
        "trajectory",
        (None, "return_trajectory=True asks for, got NoneType"),
        (5, "got int"),
        path="a.png",
    ),
    *rows(
        "save_strip",
        "path",
        ("a.xyz", "PIL writes no files like 'a.xyz'"),
        (5, "Path"),
        ("a", "PIL"),
        trajectory=TRAJECTORY,
    ),
    *rows("save_strip", "columns", (0, "at least 1"), (1.5, "whole"), trajectory=TRAJECTORY, path="a.png"),
    *rows("save_gif", "trajectory", (None, "return_trajectory"), path="a.gif"),
    *rows(
        "save_gif",
        "milliseconds",
        (0, "at least 1"),
        ("x", "whole"),
        (-5, "at least"),
        trajectory=TRAJECTORY,
        path="a.gif",
    ),
    *rows("save_gif", "path", ("a.mp4", "PIL writes no"), (None, "Path"), trajectory=TRAJECTORY),
    *rows("image_generators", "seed", (-1, "at least 0"), (0.5, "whole"), ("x", "whole"), (True, "whole"), indices=[0]),
    *rows(
        "image_generators",
        "indices",
        (5, "whole numbers"),
        ("01", "whole"),
        ([-1], "from 0"),
        ([2**32], "from 0"),
        seed=0,
    ),
    *rows(
        "image_generators", "indices", ([0.5], "whole"), ([None], "whole"), ([True], "whole"), (None, "whole"), seed=0
    ),
    *rows(
        "make_scheduler",
        "scheduler",
        ("ddim", "scheduler of diffusers"),
        (None, "scheduler"),
        (IPNDMScheduler(), "kind"),
        name="ddim",
    ),
    *rows("Pixel", "unet", (None, "network of diffusers"), ("x", "network"), scheduler=DDPMScheduler()),
    *rows("Pixel", "scheduler", (None, "scheduler of diffusers"), ("ddpm", "scheduler"), unet=tiny_unet()),
    *rows(
        "Pixel", "prediction_type", ("noise", "not one of"), (5, "text"), unet=tiny_unet(), scheduler=DDPMScheduler()
    ),
    *rows(
        "Pixel",
        "value_range",
        ((1, 0), "less than"),
        ((0,), "two"),
        ((0, NAN), "finite"),
        (5, "list"),
        unet=tiny_unet(),
        scheduler=DDPMScheduler(),
    ),
    *rows(
        "Pixel",
        "id2label",
        ([], "map"),
        ({"x": "a"}, "whole"),
        ({1: "a"}, "from 0"),
        ({0: 5}, "text"),
        unet=tiny_unet(),
        scheduler=DDPMScheduler(),
    ),
    *rows(
        "Pixel",
        "id2label",
        ({0: "a", 1: "b"}, "2 classes, and the network has no rows"),
        unet=tiny_unet(),
        scheduler=DDPMScheduler(),
    ),
    *rows(
        "Latent",
        "vae",
        (None, "autoencoder"),
        ("vae", "autoencoder"),
        unet=tiny_unet(4),
        scheduler=DDPMScheduler(),
    ),
    *rows("Text", "unet", (None, "network"), scheduler=DDPMScheduler()),
    *rows(
        "from_pretrained",
        "pretrained_model_name_or_path",
        (5, "folder or a name"),
        (None, "folder or a name"),
        ("", "empty"),
    ),
]


@pytest.mark.parametrize(("target", "arguments", "said"), [*CALL, *TEXT, *PARTS])
def test_refused(targets: dict[str, Any], target: str, arguments: dict[str, Any], said: str) -> None:
    if target in ("pixel", "plain", "ddim", "flow", "dpm", "text", "bare", "latent"):
        arguments = {"num_inference_steps": 2} | arguments
    with pytest.raises((TypeError, ValueError), match=f"^{said}") as raised:
        targets[target](**arguments)
    assert "\n" not in str(raised.value)


def test_a_samplers_name_is_a_text(targets: dict[str, Any]) -> None:
    for name in (5, None, ["ddim"]):
        with pytest.raises(TypeError, match="^scheduler: must be named by a text"):
            make_scheduler(name, DDPMScheduler())
    with pytest.raises(ValueError, match="^scheduler: 'dim' doesn't fit this discrete model; these do: ddpm, .*ddim"):
        make_scheduler("dim", DDPMScheduler())


VALUES = [
    *(
        None,
        True,
        0,
        -1,
        2,
        1.5,
        NAN,
        INF,
        1j,
        "x",
        "",
        b"x",
        [],
        [0],
        [1.5],
        [None],
        ["x"],
        [[0]],
        (1, 0),
        {},
        {"a": 1},
    ),
    *(object(), print, np.zeros(2), np.float32(1.5), torch.tensor(1), torch.zeros(0), NOISE, NOISE * NAN, EMBEDS),
    *(torch.Generator(), 10**30, "9" * 50, "\n", range(3), {0}),
]


def test_every_argument_with_every_kind_of_value(targets: dict[str, Any]) -> None:
    """What isn't in the tables either works or is refused in a line that names the argument."""
    pipeline = targets["pixel"]
    said = []
    for name in inspect.signature(pipeline.__call__).parameters:
        for value in VALUES:
            if name == "callback_on_step_end" and callable(value):
                continue  # what others' functions raise is theirs
            try:
                pipeline(**{"num_inference_steps": 2, "output_type": "pt", name: value})
            except (TypeError, ValueError) as error:
                said.append((name, str(error)))
    assert len(said) > 300
    assert not [line for name, line in said if not line.startswith(name) or "\n" in line]


def change(name: str, **values: Any) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change("model_index.json", id2label={"x": "a"}), "id2label: must be a whole number, got 'x'"),
        (change("model_index.json", id2label=5), "id2label: must map numbers to names"),
        (change("model_index.json", value_range=[1, 0]), "value_range: the lowest must be less"),
        (change("model_index.json", unet=["evil", "Network"]), "unet: must be a class of diffusers, transformers, is"),
        (change("model_index.json", prediction_type="noise"), "prediction_type: 'noise' is not one of"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json"),
        (lambda f: (f / "unet/config.json").write_text("{"), "config.json"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "diffusion_pytorch_model"),
    ],
)
def test_folders_that_are_not_what_was_saved(tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    tiny_pipeline(FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises((TypeError, ValueError, OSError), match=re.escape(said)):
        PixelDiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change("vae/config.json", scaling_factor="x"), "vae: scaling_factor: must be a number, got 'x'"),
        (change("vae/config.json", scaling_factor=0), "vae: its latents are scaled by [0.0], which can't be undone"),
        (change("vae/config.json", scaling_factor=None), "vae: scaling_factor: must be a number"),
        (change("vae/config.json", latents_mean=[0] * 4, latents_std=[1, 0, 1, 1]), "which can't be undone"),
        (change("vae/config.json", shift_factor=[[1]]), "vae: must be a number"),
        (change("tokenizer/tokenizer_config.json", model_max_length="x"), "tokenizer: model_max_length: must be a num"),
        (
            change("tokenizer/tokenizer_config.json", model_max_length=0),
            "tokenizer: model_max_length: must be a finite",
        ),
    ],
)
def test_text_models_that_are_not_what_was_saved(tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    make_text2img(latent=True).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises((TypeError, ValueError, OSError), match=re.escape(said)):
        TextToImagePipeline.from_pretrained(tmp_path, use_safetensors=True)
