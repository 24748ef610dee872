"""Images that aren't square, from the command line to samples, their evaluation and what is published."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

import generate
from pipelines import image_generators
from snowmelt.data.captions import load_captioned
from snowmelt.errors import UserError
from snowmelt.evaluation import classifier, validation
from snowmelt.evaluation.process import check_images
from snowmelt.loading import load_pipeline
from snowmelt.text.options import TextToImageConfig
from snowmelt.tracking import read_metrics
from tests.autoencoders import tiny_vae
from tests.conftest import run_in_process, trained
from tests.pipelines.models import quiet
from tests.test_resume import interrupted
from tests.test_train_text2img import TINY_UNET as TEXT_UNET

UNCONDITIONAL = {"dataset_name": None, "label_column": None, "resolution": "16x24", "max_train_steps": 4}
UNCONDITIONAL |= {"checkpointing_steps": 1, "eval_batch_size": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of gray images of several shapes, each with a caption: ramps to the right and ramps down."""
    folder = tmp_path_factory.mktemp("photos")
    shapes = [(16, 24), (20, 24), (40, 48), (16, 30)]
    for name, axis in (("right", 1), ("down", 0)):
        (folder / name).mkdir()
        for n, shape in enumerate(shapes * 3):
            ramp = np.indices(shape)[axis] * (200 // shape[axis]) + 3 * n
            Image.fromarray(ramp.astype(np.uint8)).save(folder / name / f"{n:02d}.png")
    return folder


@pytest.fixture(scope="module")
def captioned(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import datasets

    files = sorted(photos.rglob("*.png"))
    rows = {"image": [Image.open(path) for path in files], "text": [f"a ramp {path.parent.name}" for path in files]}
    folder = tmp_path_factory.mktemp("captioned")
    datasets.Dataset.from_dict(rows).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def run(train: Callable[..., Path], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "pixels", train_data_dir=photos, **UNCONDITIONAL)


def resumes(train: Callable[..., Path], whole: Path, folder: Path, **options: object) -> None:
    resumed = interrupted(whole, 2, folder)
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=2) == trained(whole, since=2)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(whole)]


def sizes(folder: Path) -> set[tuple[int, int]]:
    """(width, height) of numbered images."""
    return {Image.open(path).size for path in folder.glob("0*.png")}


def generated(monkeypatch: pytest.MonkeyPatch, model: Path, output: Path, *flags: str) -> Path:
    words = ["--model", str(model), "--output_dir", str(output), "--num_inference_steps", "1", "--num_images", "2"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *words, *flags])
    generate.main()
    return output


def test_pixels(train, photos, run, tmp_path):
    """Random crops, which resume with the rest, and samples of the trained size, here and with diffusers alone."""
    resumes(train, run, tmp_path / "resumed", train_data_dir=photos, **UNCONDITIONAL)
    assert "resolution: 16x24\n" in (run / "config.yaml").read_text()
    assert json.loads((run / "unet/config.json").read_text())["sample_size"] == [16, 24]
    grid = Image.open(max((run / "samples").iterdir()))
    assert grid.size == (24 + 2 + 24, 16)  # two, and what is between them
    pipeline = quiet(load_pipeline(str(run)))
    call: dict[str, Any] = {"num_inference_steps": 2, "class_labels": 1, "output_type": "np"}
    images = pipeline(generator=image_generators(0, [0]), **call).images
    assert images.shape == (1, 16, 24, 1)
    pipeline.complete(run)
    theirs = quiet(DiffusionPipeline.from_pretrained(run, trust_remote_code=True))
    assert np.array_equal(theirs(generator=image_generators(0, [0]), **call).images, images)


def test_samples_of_other_sizes(run, tmp_path, monkeypatch, capfd):
    assert sizes(generated(monkeypatch, run, tmp_path / "own")) == {(24, 16)}
    assert "trained on" not in capfd.readouterr().out
    generated(monkeypatch, run, tmp_path / "same", "--height", "16", "--width", "24")
    assert "trained on" not in capfd.readouterr().out
    assert sizes(generated(monkeypatch, run, tmp_path / "tall", "--height", "32")) == {(24, 32)}
    assert "images of 32x24 pixels; the network was trained on 16x24, and may make worse" in capfd.readouterr().out
    for flags, message in (
        (["--width", "25"], "width: 25 is not a multiple of 2, by which the network divides it"),
        (["--height", "0"], "--height: must be at least 1 and at most 65536, got 0"),
        (["--height", "16", "--image", "it.png"], "--height: not with --image, which takes the model's own size"),
    ):
        with pytest.raises(UserError, match=message):
            generated(monkeypatch, run, tmp_path / "bad", *flags)


def test_images_to_start_from(run, photos, tmp_path, monkeypatch):
    folder = generated(monkeypatch, run, tmp_path, "--image", str(photos / "right"), "--strength", "0")
    images = [np.asarray(Image.open(path)) for path in (folder / "000000.png", photos / "right/00.png")]
    assert np.array_equal(*images)


def test_evaluation(run, photos, tmp_path, monkeypatch, cache_dir):
    """By a classifier of such images, with all that looks at pixels."""
    monkeypatch.setattr(classifier, "STEPS", 3)
    words = ["--model", run, "--train_data_dir", photos, "--cache_dir", cache_dir, "--output", tmp_path / "report"]
    words += ["--num_images", 8, "--num_inference_steps", 1, "--metrics", "fd", "memorization"]
    run_in_process([*map(str, words), "--split", "train[:18]", "--held_out_split", "train[18:]"], "evaluate")
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert {"fd", "memorization"} <= {result["metric"] for result in report["results"]}
    check_images(load_pipeline(str(run)), torch.zeros(2, 1, 16, 24, dtype=torch.uint8), None)  # as likelihoods do


def test_evaluation_during_training_and_augmentation(train, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 3)
    options = {"validation_share": 0.2, "eval_steps": 4, "eval_metrics": ["fd"], "eval_num_images": 4}
    run = train(tmp_path / "run", train_data_dir=photos, **UNCONDITIONAL | options, augment_p=0.5)
    assert any("fd" in key for line in read_metrics(run) for key in line)


def test_published(run, tmp_path):
    run_in_process(["--model", str(run), "--output_dir", str(tmp_path / "out"), "--hub_model_id", "me/it"], "publish")
    card = (tmp_path / "out/README.md").read_text()
    assert "24 pixels wide and 16 high, from a diffusion model" in card
    assert "| preparation | 16 x 24 pixels, random crop where they aren't of that shape |" in card


def test_published_as_a_pipeline_of_diffusers(train, photos, tmp_path):
    options = {"train_data_dir": photos, "class_conditional": False, "objective": "epsilon", "max_train_steps": 1}
    run = train(tmp_path / "run", **UNCONDITIONAL | options)
    words = ["--model", run, "--output_dir", tmp_path / "out", "--hub_model_id", "me/it", "--stock_pipeline"]
    run_in_process([*map(str, words)], "publish")
    pipeline = quiet(DiffusionPipeline.from_pretrained(tmp_path / "out"))
    assert "snowmelt" not in type(pipeline).__module__
    assert pipeline(num_inference_steps=1, output_type="np").images.shape == (1, 16, 24, 1)


def test_latents(train, photos, tmp_path):
    """Of an autoencoder that is trained on such images first."""
    usual = {"train_data_dir": photos, "dataset_name": None, "center_crop": True, "resolution": "16x24"}
    words = {"class_conditional": None, "model_config_name_or_path": None, "ddpm_num_inference_steps": None}
    words |= {"eval_features": "none", "disc_width": 4, "disc_start": 1, "model_size": "tiny", "downsample_factor": 2}
    words |= {"perceptual": "none", "eval_batch_size": 2, "script": "train_autoencoder"}
    vae = train(tmp_path / "vae", **usual | words)
    assert Image.open(max((vae / "samples").iterdir())).size == (2 * 24 + 2, 2 * 16 + 2)
    options = UNCONDITIONAL | usual | {"autoencoder": vae, "random_flip": True}
    run = train(tmp_path / "run", **options)
    resumes(train, run, tmp_path / "resumed", **options)
    pipeline = quiet(load_pipeline(str(run)))
    assert tuple(pipeline.network.config.sample_size) == (8, 12)
    assert pipeline(num_inference_steps=1, output_type="np").images.shape == (1, 16, 24, 1)


def test_texts(train, captioned, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TEXT_UNET))
    options = {"dataset_name": captioned, "class_conditional": None, "resolution": "16x24", "text_hidden_size": 64}
    options |= {"model_config_name_or_path": tmp_path / "config.json", "text_layers": 1, "vocab_size": 560}
    options |= {"script": "train_text2img", "max_train_steps": 4, "checkpointing_steps": 1}
    run = train(tmp_path / "run", **options)
    resumes(train, run, tmp_path / "resumed", **options)
    pipeline = quiet(load_pipeline(str(run)))
    assert pipeline("a ramp down", num_inference_steps=1, output_type="np").images.shape == (1, 16, 24, 1)


def test_reflow(train, photos, tmp_path):
    options = UNCONDITIONAL | {"train_data_dir": photos, "objective": "flow", "center_crop": True}
    options |= {"max_train_steps": 1}
    teacher = train(tmp_path / "teacher", **options)
    student = train(tmp_path / "student", **options, reflow_from=teacher, reflow_pairs=6, reflow_steps=2)
    assert load_pipeline(str(student)).unet.config.sample_size == [16, 24]


def test_squares_are_as_they_were(train, tmp_path, cache_dir):
    """64x64 is 64, in files too."""
    run = train(tmp_path / "run", resolution="8x8")
    assert "resolution: 8\n" in (run / "config.yaml").read_text()
    assert load_pipeline(str(run)).unet.config.sample_size == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": "64x"}, "--resolution: must be a whole number, or HEIGHTxWIDTH such as 64x96, got '64x'"),
        ({"resolution": "0x8"}, "--resolution: must be at least 1, got 0"),
        ({"resolution": "16x25"}, "--resolution 16x25: this network divides 25 by 2; take 24 or 26 for 25"),
        (
            {"resolution": "16x24", "backbone": "dit", "model_config_name_or_path": None},
            "--resolution 16x24: a DiTTransformer2DModel is made for squares; take one number, or --backbone unet",
        ),
        (
            {"resolution": "16x18", "autoencoder": "sd"},
            "--resolution 16x18: not a multiple of 4, by which --autoencoder divides it",
        ),
        (
            {"resolution": "16x20", "autoencoder": "sd", "center_crop": True},
            "--resolution 16x20: this network divides the latents' side, 5, by 2; take 16 or 24 for 20",
        ),
        (
            {"resolution": "16x24", "autoencoder": "sd"},
            "the images aren't all of the shape 16x24, and each is encoded once; add --center_crop",
        ),
    ],
)
def test_bad_input(train, photos, tmp_path, options, message):
    if "autoencoder" in options:
        tiny_vae("sd", channels=1).save_pretrained(tmp_path / "vae")
        options = options | {"autoencoder": tmp_path / "vae"}
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", **UNCONDITIONAL | {"train_data_dir": photos} | options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": "16x25"}, "--resolution 16x25: not a multiple of the factor 4; take 24 or 28 for 25"),
        ({"resolution": "4x24"}, "--resolution 4x24: too small for the discriminator"),
        (
            {"resolution": "16x24", "equivariance_prob": 0.5},
            "--equivariance_prob: turns images, so they must be squ",
        ),
    ],
)
def test_autoencoders_bad_input(train, photos, tmp_path, options, message):
    words = {"class_conditional": None, "model_config_name_or_path": None, "ddpm_num_inference_steps": None}
    words |= {"dataset_name": None, "train_data_dir": photos, "script": "train_autoencoder", "perceptual": "none"}
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", **words | options)


BUCKETS = {"aspect_ratio_buckets": "16,24;24,16;20,20", "random_flip": True, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def mixed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, and the same turned and cut to squares."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in photos.rglob("*.png"):
        image = Image.open(path)
        for name, made in (("wide", image), ("tall", image.rotate(90, expand=True)), ("even", image.resize((20, 20)))):
            (folder / path.parent.name).mkdir(exist_ok=True)
            made.save(folder / path.parent.name / f"{name}-{path.name}")
    return folder


@pytest.mark.parametrize("variant", ["pixels", "latents", "augmented"])
def test_buckets(train, mixed, tmp_path, monkeypatch, capfd, variant):
    options = UNCONDITIONAL | BUCKETS | {"train_data_dir": mixed}
    if variant == "latents":
        tiny_vae("vq", channels=1).save_pretrained(tmp_path / "vae")
        options |= {"autoencoder": tmp_path / "vae", "center_crop": True}
    elif variant != "pixels":
        options |= {"augment_p": 0.5, "low_discrepancy": True, "coupling": "ot"}
    run = train(tmp_path / "run", **options)
    out = capfd.readouterr().out
    shape = "x 12 x 8, mean" if variant == "latents" else "12 images of 1 x 24 x 16"
    assert shape in out
    resumes(train, run, tmp_path / "resumed", **options)
    assert quiet(load_pipeline(str(run)))(num_inference_steps=1, output_type="np").images.shape == (1, 16, 24, 1)
    if variant == "pixels":
        capfd.readouterr()
        assert sizes(generated(monkeypatch, run, tmp_path / "a", "--height", "24", "--width", "16")) == {(16, 24)}
        assert "trained on" not in capfd.readouterr().out
        generated(monkeypatch, run, tmp_path / "b", "--height", "24")
        assert "images of 24 pixels; the network was trained on 16x24" in capfd.readouterr().out
        words = ["--model", run, "--output_dir", tmp_path / "out", "--hub_model_id", "me/it"]
        run_in_process([*map(str, words)], "publish")
        assert "| shapes | 16,24; 24,16; 20,20 (height, width)" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("latent", [False, True])
def test_held_out_images_of_buckets(train, mixed, tmp_path, monkeypatch, latent):
    """Each batch is of one bucket, and all images are judged; a bucket without any is left out."""
    tall = tmp_path / "data/test/a"
    tall.mkdir(parents=True)
    shutil.copytree(mixed, tmp_path / "data/train")
    for path in sorted(mixed.rglob("tall-*.png")):
        Image.open(path).rotate(180).save(tall / path.name)
    options = UNCONDITIONAL | BUCKETS | {"train_data_dir": tmp_path / "data", "eval_steps": 1, "max_train_steps": 2}
    if latent:
        tiny_vae("vq", channels=1).save_pretrained(tmp_path / "vae")
        options |= {"autoencoder": tmp_path / "vae", "center_crop": True}
    monkeypatch.setattr(validation, "LEAST", 8)
    made = []
    make = validation.ValidationLoss.__init__
    monkeypatch.setattr(validation.ValidationLoss, "__init__", lambda self, *a: (make(self, *a), made.append(self))[0])
    for name, changes in (("split", {"validation_split": "test"}), ("share", {"validation_share": 0.4})):
        run = train(tmp_path / name, **options | changes)
        lines = [line for line in read_metrics(run) if "eval_loss" in line]
        assert len(lines) == 2
        assert all(math.isfinite(line["eval_loss"]) for line in lines)
    split, share = ([part.size for part in judged.fields["image"].parts] for judged in made)
    assert 0 < len(split) < len(share) == 3  # none of the tall ones is wide
    for judged in made:
        data = judged.fields["image"]
        counts = [len(part) for part in data.parts]
        bucket = np.repeat(np.arange(len(counts)), counts)
        assert sorted({row for batch in judged.batches for row in batch}) == list(range(sum(counts)))
        assert all(len(set(bucket[batch])) == 1 for batch in judged.batches)


def test_buckets_and_texts(train, mixed, tmp_path):
    """Each image keeps its caption."""
    import datasets

    files = sorted(mixed.rglob("*.png"))
    rows = {"image": [Image.open(path) for path in files], "text": [f"a ramp {path.parent.name}" for path in files]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "data")
    given = TextToImageConfig(
        dataset_name=str(tmp_path / "data"),
        resolution="16x24",
        aspect_ratio_buckets=BUCKETS["aspect_ratio_buckets"],
        cache_dir=str(tmp_path / "cache"),
        output_dir=str(tmp_path / "out"),
    )
    images, captions = load_captioned(given, None, skip_empty=False)
    assert [captions.of(n)[0] for n in range(len(images))] == [rows["text"][row] for row in images.rows]
    (tmp_path / "config.json").write_text(json.dumps(TEXT_UNET))
    options = {"dataset_name": tmp_path / "data", "class_conditional": None, "resolution": "16x24"} | BUCKETS
    options |= {"model_config_name_or_path": tmp_path / "config.json", "text_layers": 1, "vocab_size": 560}
    options |= {"script": "train_text2img", "text_hidden_size": 64}
    run = train(tmp_path / "run", **options)
    assert quiet(load_pipeline(str(run)))("a", num_inference_steps=1, output_type="np").images.shape == (1, 16, 24, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"aspect_ratio_buckets": "16,24;25,16"},
            "--aspect_ratio_buckets: 25,16 has a side that isn't a multiple of 2, by which",
        ),
        (
            {"resolution": 20, "backbone": "dit", "model_config_name_or_path": None},
            "--aspect_ratio_buckets: 16,24 isn't square, and this network makes squares alone; take --backbone unet",
        ),
        ({"eval_metrics": ["fd"], "eval_steps": 1}, "--aspect_ratio_buckets: isn't for --eval_metrics"),
        (
            {"reflow_from": "it", "objective": "flow", "random_flip": False},
            "--aspect_ratio_buckets: isn't for --reflow_from",
        ),
    ],
)
def test_bad_buckets(train, mixed, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", **UNCONDITIONAL | BUCKETS | {"train_data_dir": mixed} | options)
