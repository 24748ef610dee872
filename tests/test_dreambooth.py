"""train_text2img.py on a few pictures of one thing, with images of its class."""

import json
import shlex
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from pipelines import TextToImagePipeline, image_generators
from snowmelt.config import parse
from snowmelt.data.mixture import Mixture
from snowmelt.errors import UserError
from snowmelt.evaluation.validation import SampleMetrics
from snowmelt.objectives import StepContext
from snowmelt.tasks.finetuning import FinetuningTask
from snowmelt.text.options import TextToImageConfig
from snowmelt.tracking import read_metrics
from tests.conftest import trained
from tests.evaluation.vision import save_clip
from tests.pipelines import test_text2img
from tests.pipelines.models import quiet
from tests.test_resume import interrupted
from tests.text.stable_diffusion import tiny_sd

OF_DIFFUSERS = """
    --pretrained_model_name_or_path CompVis/stable-diffusion-v1-4 --instance_data_dir dog --output_dir saved
    --class_data_dir path-to-class-images --with_prior_preservation --prior_loss_weight 1.0
    --instance_prompt "a photo of sks dog" --class_prompt "a photo of dog" --resolution 512 --train_batch_size 1
    --sample_batch_size 4 --gradient_accumulation_steps 1 --gradient_checkpointing --learning_rate 5e-6
    --lr_scheduler constant --lr_warmup_steps 0 --num_class_images 200 --max_train_steps 800 --train_text_encoder
    --use_8bit_adam --mixed_precision fp16
"""
PROMPTS = {"instance_prompt": "a red cat", "class_prompt": "a cat", "with_prior_preservation": True}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of one thing, of unequal shapes, without captions."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16 + n, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def options(photos: Path, sd: Path) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": sd,
        "train_data_dir": photos,
        "dataset_name": None,
        "class_conditional": None,
        "model_config_name_or_path": None,
        "resolution": 16,
        "center_crop": True,
        "lr_warmup_steps": 0,
        "train_batch_size": 2,
        "learning_rate": 1e-3,
        "num_class_images": 3,
        "max_train_steps": 1,
    } | PROMPTS


@pytest.fixture(scope="module")
def tune(train: Callable[..., Path], options: dict[str, Any]) -> Callable[..., Path]:
    return lambda folder, **changes: train(folder, script="train_text2img", **options | changes)


def pixels(folder: Path) -> dict[str, bytes]:
    """Of the images in a folder."""
    return {path.name: Image.open(path).tobytes() for path in sorted(folder.glob("*.png"))}


def test_the_command_line_of_diffusers() -> None:
    defaults = {"defaults_with": ("pretrained_model_name_or_path", "finetune")}
    config = parse(TextToImageConfig, shlex.split(OF_DIFFUSERS), **defaults)
    assert (config.train_data_dir, config.num_class_images, config.class_prompt) == ("dog", 200, "a photo of dog")
    plain = parse(TextToImageConfig, ["--pretrained_model_name_or_path", "x", "--instance_prompt", "it"], **defaults)
    assert (plain.num_class_images, plain.prior_loss_weight, plain.sample_batch_size) == (100, 1.0, 4)


def test_class_images_are_those_of_the_pipeline(tune: Callable[..., Path], sd: Path, tmp_path: Path) -> None:
    """Made once, and only those that are missing; the user's own count."""
    tune(tmp_path / "run", class_data_dir=tmp_path / "class")
    made = pixels(tmp_path / "class")
    assert sorted(made) == [f"class-{n:06d}.png" for n in range(3)]
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(sd, safety_checker=None))
    expected = pipeline(["a cat"], height=16, width=16, generator=image_generators(0, [1])).images[0]
    found = np.asarray(Image.open(tmp_path / "class" / "class-000001.png"))
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "class").iterdir()}
    (tmp_path / "class" / "class-000002.png").unlink()
    tune(tmp_path / "again", class_data_dir=tmp_path / "class")
    assert pixels(tmp_path / "class") == made
    new = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "class").iterdir()}
    assert {name for name in made if new[name] != stamps[name]} == {"class-000002.png"}
    own = tmp_path / "own"
    own.mkdir()
    for n in range(2):
        Image.new("RGB", (16, 16)).save(own / f"{n}.png")
    tune(tmp_path / "third", class_data_dir=own)
    assert sorted(pixels(own)) == ["0.png", "1.png", "class-000000.png"]


@pytest.mark.slow
def test_several_processes_make_the_same(
    tune: Callable[..., Path], launch: Callable, options: dict[str, Any], tmp_path: Path
) -> None:
    given = {"sample_batch_size": 1}
    statuses, printed = launch(
        tmp_path / "two", 2, script="train_text2img", **options | given, class_data_dir=tmp_path / "class"
    )
    assert statuses == [0, 0], printed
    tune(tmp_path / "one", **given, class_data_dir=tmp_path / "alone")
    assert pixels(tmp_path / "class") == pixels(tmp_path / "alone")


@pytest.fixture(scope="module")
def class_data_dir(tune: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("class")
    tune(folder.parent / "first run", class_data_dir=folder / "images")
    return folder / "images"


def made_task(options: dict[str, Any], cache_dir: Path, **changes: Any) -> FinetuningTask:
    skipped = ("class_conditional", "lr_warmup_steps")
    given = {n: str(v) if isinstance(v, Path) else v for n, v in (options | changes).items() if n not in skipped}
    return FinetuningTask.make(TextToImageConfig(**given, cache_dir=str(cache_dir)), Accelerator(cpu=True))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_that_of_the_paper(
    weight: float, options: dict[str, Any], class_data_dir: Path, cache_dir: Path
) -> None:
    """Mean over the images of the thing, plus the weight times the mean over those of the class; so the gradients."""
    task = made_task(options, cache_dir, class_data_dir=class_data_dir, prior_loss_weight=weight, caption_dropout=0.0)
    how = {"start_step": 0, "rank": 0, "world_size": 1, "accumulation": 1, "num_workers": 0}
    stream = Mixture(task.fields, task.prior).batches(
        device=torch.device("cpu"), seed=0, batch_size=4, random_flip=False, labels=False, **how
    )
    net = task.networks["unet"]

    def losses(batch: dict[str, Any]) -> torch.Tensor:
        context = StepContext(net, torch.Generator().manual_seed(1), 0, 0)
        return task.loss(batch, context).loss

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    for batch in islice(stream, 2):
        plain = losses({name: value for name, value in batch.items() if name != "loss_weight"})
        of_class = batch["indices"] >= 3
        assert of_class.sum() == 4
        expected = plain[~of_class].mean() + weight * plain[of_class].mean()
        found = losses(batch).mean()
        assert torch.allclose(found, expected)
        torch.testing.assert_close(gradient(found), gradient(expected), rtol=1e-3, atol=1e-6)
        texts = [task.conditioning.captions.of(int(i)) for i in batch["indices"]]
        assert texts == [["a cat"] if other else ["a red cat"] for other in of_class]


def test_samples_are_judged_by_captions_of_the_thing(
    options: dict[str, Any], class_data_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    scored = {"eval_metrics": ["clip_score"], "eval_steps": 1, "eval_num_images": 4}
    scored["eval_clip_model_name_or_path"] = str(save_clip(tmp_path / "clip"))
    task = made_task(options, cache_dir, class_data_dir=class_data_dir, **scored)
    assert len(task.conditioning.captions) == 6
    assert SampleMetrics(task.config, task, Accelerator(cpu=True)).prompts == ["a red cat"] * 4


def test_it_learns_the_thing(tune: Callable[..., Path], class_data_dir: Path, tmp_path: Path) -> None:
    run = tune(tmp_path / "run", class_data_dir=class_data_dir, max_train_steps=40, learning_rate=5e-3, logging_steps=4)
    values = [line["loss"] for line in read_metrics(run)]
    assert np.mean(values[-2:]) < np.mean(values[:2]) / 1.5
    facts = json.loads((run / "run.json").read_text())
    assert facts["images_per_step"] == 4
    assert facts["num_images"] == 3
    assert "class_data_dir" not in facts["config"]


VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {"use_ema": True},
    "lora": {"rank": 2, "train_text_encoder": True, "random_flip": True, "low_discrepancy": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact(variant: str, tune: Callable[..., Path], class_data_dir: Path, tmp_path: Path) -> None:
    given = VARIANTS[variant] | {"class_data_dir": class_data_dir, "max_train_steps": 4, "checkpointing_steps": 1}
    whole = tune(tmp_path / "whole", **given)
    resumed = interrupted(whole, 2, tmp_path / "resumed")
    tune(resumed, **given, resume_from_checkpoint="latest")
    assert trained(resumed, since=2) == trained(whole, since=2)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(whole)]


def test_our_pipelines_of_pixels(tune: Callable[..., Path], photos: Path, tmp_path: Path) -> None:
    """Images of any shape are cropped at random, as ever."""
    test_text2img.make().save_pretrained(tmp_path / "model")
    channels, size = 3, test_text2img.make().unet.config.sample_size
    given = {"pretrained_model_name_or_path": tmp_path / "model", "resolution": size, "center_crop": False}
    run = tune(tmp_path / "run", **given, class_data_dir=tmp_path / "class", num_class_images=2)
    assert all(Image.open(p).size == (size, size) for p in (tmp_path / "class").glob("*.png"))
    assert TextToImagePipeline.from_pretrained(run).channels == channels
    weights = [load_file(next((f / "unet").glob("*.safetensors"))) for f in (run, tmp_path / "model")]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_prompt_alone_is_everybodys_caption(tune: Callable[..., Path], tmp_path: Path) -> None:
    """Without images of the class; and for a new model."""
    alone = {"with_prior_preservation": None, "class_prompt": None, "num_class_images": None}
    run = tune(tmp_path / "run", **alone)
    assert set((run / "samples" / "prompts.txt").read_text().splitlines()) == {"a red cat"}
    scratch = {"pretrained_model_name_or_path": None, "model_size": "tiny", "vocab_size": 514}
    new = tune(tmp_path / "new", **alone | scratch)
    assert set((new / "samples" / "prompts.txt").read_text().splitlines()) == {"a red cat"}


def not_an_image(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"not an image")


def of_another_prompt(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "class-000000.png")
    settings = {"class_prompt": "a dog"}
    (folder / "class_images.json").write_text(json.dumps(settings))


def of_unknown_origin(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "class-000000.png")


@pytest.mark.parametrize(
    ("prepare", "changes", "message"),
    [
        (None, {"class_prompt": None}, "^--with_prior_preservation: .* give --class_prompt, what they show"),
        (None, {"class_data_dir": None}, "^--with_prior_preservation: .* give --class_data_dir, the folder"),
        (None, {"with_prior_preservation": None}, "^--class_prompt: is of --with_prior_preservation; give that too"),
        (
            None,
            {"pretrained_model_name_or_path": None},
            "^--with_prior_preservation: needs --pretrained_model_name_or_path",
        ),
        (None, {"caption_column": "text"}, "^--instance_prompt and --caption_column: .* give one of them"),
        (None, {"instance_prompt": " "}, "^--instance_prompt: is empty"),
        (None, {"instance_prompt": None}, "^no column holds captions; "),
        (None, {"aspect_ratio_buckets": "16,16"}, "^--with_prior_preservation: not with --aspect_ratio_buckets"),
        (None, {"prior_loss_weight": -1}, "^--prior_loss_weight: must be at least 0"),
        (None, {"num_class_images": 0}, "^--num_class_images: must be at least 1"),
        (not_an_image, {"num_class_images": 1}, r"^--class_data_dir .*broken\.png"),
        (of_another_prompt, {}, "^--class_data_dir .* made with --class_prompt 'a dog' .now 'a cat'.; give another"),
        (of_unknown_origin, {}, "^--class_data_dir .* made by nobody knows what"),
    ],
)
def test_what_is_refused(
    prepare: Callable[[Path], None] | None,
    changes: dict[str, Any],
    message: str,
    tune: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    if prepare is not None:
        prepare(folder)
    with pytest.raises(UserError, match=message) as raised:
        tune(tmp_path / "run", **{"class_data_dir": folder} | changes)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_class_images_are_kept_apart(tune: Callable[..., Path], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^--class_data_dir .* is inside --train_data_dir; give a folder of its own"):
        tune(tmp_path / "run", class_data_dir=photos / "class")
    with pytest.raises(UserError, match="^--class_data_dir .* is inside --output_dir; give a folder of its own"):
        tune(tmp_path / "run", class_data_dir=tmp_path / "run")
