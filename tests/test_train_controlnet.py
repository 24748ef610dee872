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
from snowmelt.errors import UserError
from snowmelt.evaluation import validation
from snowmelt.loading import load_pipeline
from snowmelt.objectives import RECIPES
from snowmelt.publishing.export import export
from snowmelt.tasks.controlnet import ControlNetTask
from snowmelt.tracking import read_metrics
from tests.conftest import trained
from tests.pipelines import test_text2img, test_transformer
from tests.pipelines.models import quiet
from tests.test_resume import interrupted
from tests.text.stable_diffusion import tiny_sd

PROMPTS = ["a red cat", "a blue cat", "two cats", "a dog"]
POOLED = {
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 32,
    "resnet_time_scale_shift": "scale_shift",
}
"""Of networks that are trained from scratch here: they mask padding and see the pooled text."""


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
    """A pipeline of ours as a base."""
    recipe = RECIPES[objective]
    base = test_text2img.make(recipe.scheduler(), latent, prediction_type=recipe.pipeline_prediction_type)
    base.register_modules(unet=test_text2img.unet(4 if latent else 3, **POOLED))
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


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is made for the runs of a test."""
    made: list[Any] = []
    make = ControlNetTask.make

    def recorded(*args: Any) -> Any:
        made.append(make(*args))
        return made[-1]

    monkeypatch.setattr(ControlNetTask, "make", recorded)
    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(next(folder.glob("*.safetensors")))
    return found


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


RESUMED = {"max_train_steps": 3, "checkpointing_steps": 1, "caption_dropout": 0.3, "random_flip": True}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_of_stable_diffusion(
    precision: str, control: Callable[..., Path], tasks: list[Any], sd: Path, tmp_path: Path
) -> None:
    """Resumed exactly; all that is trained and saved is the ControlNet, and diffusers draws with it what we drew."""
    options = RESUMED | {"use_ema": True, "mixed_precision": precision, "gradient_checkpointing": precision == "bf16"}
    run = control(tmp_path / "run", **options)
    if precision == "no":
        resumed = interrupted(run, 2, tmp_path / "resumed")
        control(resumed, **options, resume_from_checkpoint="latest")
        assert trained(resumed, since=2) == trained(run, since=2)
    saved = {path.relative_to(run).parts[0] for path in run.rglob("*.safetensors")}
    assert saved == {"controlnet", *(f"checkpoint-{i}" for i in range(1, 4))}
    in_checkpoint = {path.name for path in (run / "checkpoint-3").iterdir()}
    assert in_checkpoint == {"controlnet", "controlnet_ema", "optimizer", "trainer_state.json"}

    task = tasks[0]
    frozen = {"no": torch.float32, "bf16": torch.bfloat16}[precision]
    base = StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    for name, dtype in (("unet", frozen), ("vae", torch.float32), ("text_encoder", torch.float32)):
        part, before = getattr(task.source, name), getattr(base, name).state_dict()
        assert not differ(part.state_dict(), {key: value.to(dtype) for key, value in before.items()})
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    controlnet = ControlNetModel.from_pretrained(run, subfolder="controlnet")
    assert {p.dtype for p in controlnet.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in task.networks["controlnet"].parameters())

    pipeline = quiet(StableDiffusionControlNetPipeline.from_pretrained(sd, controlnet=controlnet, safety_checker=None))
    drawn = np.asarray(Image.open(run / "samples" / "step-000003.png"))
    given = torch.from_numpy(drawn[:16, :16]).movedim(-1, 0)[None] / 255
    made = pipeline(
        PROMPTS[0], given, num_inference_steps=2, generator=image_generators(0, [0]), output_type="np"
    ).images
    width = drawn.shape[1] // 3 + 1
    theirs = drawn[:16, width : width + 16] / 255
    assert np.abs(made[0] - theirs).max() < (0.02 if precision == "no" else 0.1)


def test_what_is_given_is_learned(control: Callable[..., Path], tmp_path: Path) -> None:
    """Beside a network that has learned nothing, a ControlNet makes images of what it is shown, whatever the prompt."""
    base = own(tmp_path / "base")
    options = {"learning_rate": 3e-3, "condition": "noise:0.01", "max_train_steps": 80, "logging_steps": 10}
    run = control(tmp_path / "run", **options, pretrained_model_name_or_path=base)
    losses = [line["loss"] for line in read_metrics(run)]
    assert losses[-1] < 0.6 * losses[0]
    assert not differ(weights(run / "unet"), weights(base / "unet"))
    pipeline = quiet(load_pipeline(str(run)))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)).movedim(-1, 1) / 255
    call: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 1.0, "output_type": "pt"}
    for given, expected in ((images, [0, 1, 2, 3]), (images.flip(0), [3, 2, 1, 0])):
        made = pipeline(PROMPTS, given, **call, generator=torch.Generator().manual_seed(0)).images
        distances = (made[:, None] - images).square().mean((2, 3, 4))
        assert distances.argmin(1).tolist() == expected


@pytest.mark.parametrize("latent", [pytest.param(False, marks=pytest.mark.slow), True])
def test_of_ours(
    latent: bool,
    control: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In pixels or latents: resumed, watched, generated with, by a checkpoint too, and evaluated."""
    base, side = own(tmp_path / "base", "v" if latent else "flow", latent), 32 if latent else 16
    options = RESUMED | {"pretrained_model_name_or_path": base, "resolution": side, "validation_share": 0.5}
    options |= {"eval_steps": 3, "condition": "lowres:2" if latent else "mask"}
    monkeypatch.setattr(validation, "LEAST", 8)
    run = control(tmp_path / "run", **options)
    if not latent:
        resumed = interrupted(run, 2, tmp_path / "resumed")
        control(resumed, **options, resume_from_checkpoint="latest")
        assert trained(resumed, since=2) == trained(run, since=2)
    assert sum("eval_loss" in line for line in read_metrics(run)) == 1
    for part in ("unet", "text_encoder", *(["vae"] if latent else [])):
        assert not differ(weights(run / part), weights(base / part))
    pipeline = load_pipeline(str(run))
    assert type(pipeline) is TextToImageControlNetPipeline
    assert pipeline.config.get("prediction_type") == RECIPES["v" if latent else "flow"].pipeline_prediction_type
    Image.new("RGB", (side // (2 if latent else 1),) * 2, "red").save(tmp_path / "image.png")
    Image.new("L", (side, side), "white").save(tmp_path / "mask.png")

    def generated(name: str, *more: object) -> np.ndarray:
        words = ["--model", run, "--image", tmp_path / "image.png", "--prompt", "a cat", "--num_images", 2]
        words += [] if latent else ["--mask", tmp_path / "mask.png"]
        words += ["--num_inference_steps", 2, "--output_dir", tmp_path / name, *more]
        monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, words)])
        generate.main()
        return np.asarray(Image.open(tmp_path / name / "000001.png")).astype(int)

    whole = generated("whole", "--torch_dtype", "bfloat16")
    assert whole.shape == (side, side, 3)
    if latent:
        return
    plain, early = generated("plain", "--controlnet_conditioning_scale", 0), generated("early", "--checkpoint", 1)
    assert np.abs(whole - plain).max() > 2
    assert np.abs(whole - early).max() > 2
    words = ["--model", run, "--dataset_name", photos, "--image_column", "image", "--metrics", "psnr"]
    words += ["--num_images", 4, "--num_inference_steps", 2, "--output", tmp_path / "report"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, [*words, "--controlnet_conditioning_scale", 0.5])])
    evaluate.main()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["sampler"]["controlnet_conditioning_scale"] == 0.5
    for option in ("--image_guidance_scale", "--noise_level"):
        with pytest.raises(UserError, match=f"{option}: is for models of a --condition, and this is a TextToImageC"):
            generated("no", option, 0.5)


@pytest.mark.parametrize(
    ("condition", "of_ours"), [("edges", 1), ("gray", 1), ("lowres:4", 3), ("mask", 4), ("column:map", 1)]
)
def test_channels(
    condition: str, of_ours: int, control: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A condition keeps its own with a pipeline of ours; one of diffusers makes images RGB, and has no mask."""
    make, made = ControlNetTask.make, []

    def only_made(*args: Any) -> Any:
        made.append(make(*args))
        raise InterruptedError

    def task_of(**options: Any) -> Any:
        with pytest.raises(InterruptedError):
            control(tmp_path / "run", condition=condition, **options)
        return made.pop()

    monkeypatch.setattr(ControlNetTask, "make", only_made)
    task = task_of(pretrained_model_name_or_path=own(tmp_path / "base"))
    assert task.networks["controlnet"].config.conditioning_channels == of_ours
    assert task.networks["controlnet"].config.conditioning_embedding_out_channels == (16,)
    fields = {name: torch.from_numpy(f.gather(np.arange(2), None)) for name, f in task.fields.items()}
    shown = task.given(fields, torch.Generator().manual_seed(0))
    assert shown.shape == (2, of_ours, 16, 16)
    assert 0 <= shown.min() < 0.4
    assert 0.6 < shown.max() <= 1
    if condition == "mask":
        with pytest.raises(UserError, match="^--condition mask: has 4 channels, and a StableDiffusionControlNetPipeli"):
            control(tmp_path / "run", condition=condition)
        return
    config = task_of().networks["controlnet"].config
    assert config.conditioning_channels == 3
    assert config.conditioning_embedding_out_channels == (16, 32)


@pytest.mark.parametrize("ours", [pytest.param(False, marks=pytest.mark.slow), True])
def test_published(ours: bool, control: Callable[..., Path], sd: Path, tmp_path: Path) -> None:
    """With what it was given and what came of it side by side, and code that loads it."""
    base = own(tmp_path / "base") if ours else sd
    first = control(tmp_path / "first", pretrained_model_name_or_path=base, max_train_steps=1)
    options = {"pretrained_model_name_or_path": base, "controlnet_model_name_or_path": first, "max_train_steps": 1}
    run = control(tmp_path / "run", **options, learning_rate=0.0)  # which goes on from the first, and leaves it
    assert not differ(weights(run / "controlnet"), weights(first / "controlnet"))
    facts = json.loads((run / "run.json").read_text())
    facts["config"]["pretrained_model_name_or_path"] = "alice/base"  # as if it had come from there
    (run / "run.json").write_text(json.dumps(facts))
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out", "alice/edges", license="mit")
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not [p for p in files if str(tmp_path).encode() in p.read_bytes() or str(sd).encode() in p.read_bytes()]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.base_model, card.data.pipeline_tag) == ("alice/base", "image-to-image")
    assert "controlnet" in card.data.tags
    assert "lora" not in card.data.tags
    assert "Images from a text and an image (`edges`), 16 pixels wide" in card.text
    assert "In threes: what it is given, what it makes of that" in card.text
    assert 'pipeline("a red circle", image=Image.open("input.png"), num_inference_steps=50)' in card.text
    assert (tmp_path / "out" / "samples.png").is_file()
    code = card.text[card.text.index("```python\n") + 10 :]
    code = code[: code.index("```")].replace("=50", "=1").replace("alice/edges", str(tmp_path / "out"))
    code = code.replace('"alice/base"', f'"{base}"').replace("input.png", str(tmp_path / "input.png"))
    Image.new("RGB", (16, 16)).save(tmp_path / "input.png")
    made: dict[str, Any] = {}
    exec(code, made)
    assert made["images"][0].size == (16, 16)
    if not ours:
        assert {p.parent.name for p in files if p.suffix == ".safetensors"} == {"controlnet"}
        with pytest.raises(UserError, match="--stock_pipeline: this is a ControlNet, which any pipeline takes"):
            export(run, tmp_path / "out", "alice/edges", stock_pipeline=True)
        with pytest.raises(UserError, match="run holds a ControlNet, and no pipeline; in Python, StableDiffusionContr"):
            load_pipeline(str(run))


def pixart(folder: Path) -> Path:
    test_transformer.text_pipeline().save_pretrained(folder)
    return folder


def other(folder: Path, **changes: Any) -> Path:
    """A ControlNet for the tiny Stable Diffusion, but for what is changed."""
    sd = StableDiffusionPipeline.from_pretrained(tiny_sd(folder / "base"), safety_checker=None)
    settings = {"conditioning_embedding_out_channels": (16, 32), "conditioning_channels": 3}
    unet = sd.unet if "in_channels" not in changes else test_text2img.unet(changes.pop("in_channels"))
    ControlNetModel.from_unet(unet, **settings | changes).save_pretrained(folder / "other")
    return folder / "other"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained_model_name_or_path": None}, "--controlnet: needs --pretrained_model_name_or_path"),
        ({"condition": None}, "--controlnet: needs a --condition that it is shown, such as edges"),
        ({"condition": "blur"}, "--condition: 'blur' is not one of"),
        ({"condition": "lowres:3"}, "--condition lowres:3: images of 16 x 16 pixels can't be divided by 3"),
        ({"condition": "column:depth"}, "--condition column:depth"),
        ({"rank": 4}, "--rank: isn't for --controlnet; drop one of the two"),
        ({"train_text_encoder": True}, "--train_text_encoder: isn't for --controlnet; drop"),
        ({"max_noise_level": 0.5}, "--max_noise_level: isn't for --controlnet; drop"),
        ({"conditioning_dropout_prob": 0.5}, "--conditioning_dropout_prob: isn't for --controlnet; drop"),
        ({"controlnet": False}, "--condition: a pretrained model takes one by a ControlNet; add --controlnet"),
        (
            {"controlnet": False, "condition": None, "controlnet_model_name_or_path": "x"},
            "--controlnet_model_name_or_path: is of a --controlnet; give that too",
        ),
        (
            {"pretrained_model_name_or_path": pixart},
            "--pretrained_model_name_or_path .*: a TextToImageTransformerPipeline; known are StableDiffusionPipeline",
        ),
        ({"controlnet_model_name_or_path": "/no/such"}, "--controlnet_model_name_or_path /no/such: no such folder"),
        (
            {"controlnet_model_name_or_path": lambda folder: tiny_sd(folder) / "unet"},
            "--controlnet_model_name_or_path .*: no ControlNetModel there, nor in .*: a UNet2DConditionModel",
        ),
        (
            {"controlnet_model_name_or_path": lambda folder: other(folder, conditioning_channels=1)},
            "--controlnet_model_name_or_path .*: controlnet: takes images of 1 channels, and the condition has 3",
        ),
        (
            {"controlnet_model_name_or_path": lambda folder: other(folder, in_channels=3)},
            "--controlnet_model_name_or_path .*: controlnet: its in_channels is 3, and the unet's 4; it is another's",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, control: Callable[..., Path], tmp_path: Path) -> None:
    """In one line, before anything is written."""
    given = {name: value(tmp_path / "given") if callable(value) else value for name, value in options.items()}
    with pytest.raises(UserError, match="^" + message) as raised:
        control(tmp_path / "run", **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
