"""train_unconditional.py --condition: from the command line to a published model."""

import io
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

import generate
from pipelines import ImageToImagePipeline, SuperResolutionPipeline, image_generators
from pipelines.denoiser import CONCATENATED
from snowmelt.cascade import SEED
from snowmelt.data.loader import batches
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from snowmelt.objectives import Objective
from snowmelt.publishing.export import export
from tests.autoencoders import tiny_vae
from tests.conftest import trained
from tests.publishing.test_self_contained import stranger
from tests.test_resume import interrupted

SIDE = 16


def png(array: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    PIL.Image.fromarray(array).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def write(folder: Path, maps: list[np.ndarray], images: list[np.ndarray], split: str = "train") -> None:
    """A data set of images, each with another beside it, as it lies on the Hub."""
    feature = datasets.Features({"image": datasets.Image(), "map": datasets.Image(), "name": datasets.Value("string")})
    rows = {"image": [png(i) for i in images], "map": [png(m) for m in maps], "name": ["x"] * len(images)}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, feature).to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve RGB images, each of one colour on the left and its negative on the right, with its left as a gray map."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    rng, images, maps = np.random.default_rng(0), [], []
    for colour in rng.integers(0, 256, (12, 3), np.uint8):
        image = np.broadcast_to(colour, (SIDE, SIDE, 3)).copy()
        image[:, SIDE // 2 :] = 255 - colour
        images.append(image)
        maps.append(np.where(np.arange(SIDE) < SIDE // 2, 255, 0).astype(np.uint8)[None].repeat(SIDE, 0))
        maps[-1][0, 0] = colour[0]
    write(folder, maps, images)
    write(folder, [255 - m for m in maps[:4]], images[:4], "test")
    return folder


def options(data: Path, **more: Any) -> dict[str, Any]:
    usual = {
        "dataset_name": data,
        "image_column": "image",
        "resolution": SIDE,
        "class_conditional": False,
        "train_batch_size": 4,
    }
    return usual | {"eval_batch_size": 2, "max_train_steps": 2} | more


def call(pipeline: Any, **more: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    images: np.ndarray = pipeline(num_inference_steps=2, output_type="np", **more).images
    return images


@pytest.mark.parametrize(
    ("condition", "kind", "given", "joined"),
    [
        ("lowres:4", SuperResolutionPipeline, (4, 4, 3), 3),
        ("gray", ImageToImagePipeline, (SIDE, SIDE, 1), 1),
        ("noise:0.3", ImageToImagePipeline, (SIDE, SIDE, 3), 3),
        ("edges", ImageToImagePipeline, (SIDE, SIDE, 1), 1),
        ("column:map", ImageToImagePipeline, (SIDE, SIDE, 1), 1),
        ("mask", ImageToImagePipeline, (SIDE, SIDE, 3), 4),
    ],
)
@pytest.mark.parametrize("objective", ["epsilon", pytest.param("edm", marks=pytest.mark.slow)])
def test_every_condition_trains_and_samples(condition, kind, given, joined, objective, pairs, train, tmp_path):
    run = train(tmp_path / "run", **options(pairs, condition=condition, objective=objective))
    pipeline = load_pipeline(str(run))
    assert type(pipeline) is kind
    assert pipeline.config["condition"] == condition
    assert pipeline.unet.config.in_channels == 3 + joined
    mask = {"mask_image": np.ones((SIDE, SIDE), np.float32)} if condition == "mask" else {}
    assert call(pipeline, image=np.full((1, *given), 0.5, np.float32), **mask).shape == (1, SIDE, SIDE, 3)
    grid = PIL.Image.open(run / "samples" / "step-000002.png")
    assert grid.size == (3 * SIDE + 4, 2 * SIDE + 2)  # of two images, in threes, with lines between them


def test_what_training_is_given(pairs, train, tmp_path, monkeypatch):
    """The gray image of each, at its noise level; and nothing for some."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = Objective.loss

    def recorded(self, x0, conditions, *rest):
        seen.append((x0, conditions[CONCATENATED]))
        return loss(self, x0, conditions, *rest)

    monkeypatch.setattr(Objective, "loss", recorded)
    more = {"conditioning_dropout_prob": 0.4, "max_noise_level": 0.5, "max_train_steps": 8}
    run = train(tmp_path / "run", **options(pairs, condition="gray", **more))
    x0, given = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert given.shape == (32, 2, SIDE, SIDE)
    dropped = (given == 0).all((1, 2, 3))
    assert 4 <= dropped.sum() <= 22
    s = given[~dropped, 1:]
    assert torch.equal(s, s[..., :1, :1].expand_as(s))
    assert 0 < s.min() < 0.2
    assert 0.3 < s.max() < 0.5
    gray = (x0 * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)[~dropped]
    noise = (given[~dropped, :1] - (1 - s**2).sqrt() * gray) / s
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert load_pipeline(str(run)).config["image_guidance"]


def test_pairs_are_mirrored_together(pairs, train, tmp_path, monkeypatch):
    """A map is white where the image of its row has its colour, on whichever side that is."""
    seen: list[dict[str, torch.Tensor]] = []

    def recorded(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            seen.append(batch)
            yield batch

    monkeypatch.setattr("snowmelt.data.mixture.batches", recorded)
    train(tmp_path / "run", **options(pairs, condition="column:map", random_flip=True, max_train_steps=4))
    mirrored = [row[0, 8, 0].item() < 128 for batch in seen for row in batch["condition"]]
    assert len(set(mirrored)) == 2
    for batch in seen:
        for image, given in zip(batch["image"], batch["condition"], strict=True):
            corner = given[0, 0, 0] if given[0, 8, 0] > 128 else given[0, 0, -1]
            left = image[:, 0, 0] if given[0, 8, 0] > 128 else image[:, 0, -1]
            assert corner == left[0]


@pytest.mark.parametrize("condition", ["lowres:2", "mask", "gray", "column:map"])
def test_latents(condition, pairs, train, tmp_path):
    """Resumed to the last bit; the images that are given are encoded."""
    vae = tiny_vae("sd", 3)
    vae.save_pretrained(tmp_path / "vae")
    more = {"autoencoder": tmp_path / "vae", "condition": condition, "random_flip": True, "max_noise_level": 0.4}
    given = options(pairs, **more, checkpointing_steps=1, max_train_steps=3)
    run = train(tmp_path / "run", **given)
    resumed = interrupted(run, 1, tmp_path / "resumed")
    train(resumed, **given, resume_from_checkpoint="latest")
    assert trained(resumed, since=1) == trained(run, since=1)
    pipeline = load_pipeline(str(run))
    latent = vae.config.latent_channels
    assert pipeline.unet.config.in_channels == 2 * latent + 1 + (condition == "mask")
    side = SIDE // 2 if condition == "lowres:2" else SIDE
    channels = 1 if condition == "gray" else 3
    mask = {"mask_image": np.ones((side, side), np.float32)} if condition == "mask" else {}
    image = np.full((1, side, side, channels), 0.5, np.float32)
    assert call(pipeline, image=image, **mask).shape == (1, SIDE, SIDE, 3)


@pytest.mark.slow
def test_held_out_maps_belong_to_held_out_images(pairs, train, tmp_path):
    more = {"validation_split": "test", "eval_steps": 1, "condition": "column:map"}
    run = train(tmp_path / "run", **options(pairs, **more))
    grid = np.asarray(PIL.Image.open(run / "samples" / "step-000002.png"))
    assert (grid[4:SIDE, : SIDE // 2] == 0).all()  # the maps of training are white there
    assert (grid[4:SIDE, SIDE // 2 : SIDE] == 255).all()
    assert "eval_loss" in (run / "metrics.jsonl").read_text()


def test_from_files_to_files(pairs, train, tmp_path, monkeypatch):
    """generate.py reads what is given at its own size; published, a stranger makes the same of it."""
    run = train(tmp_path / "run", **options(pairs, condition="lowres:2", max_noise_level=0.5))
    (tmp_path / "small").mkdir()
    for i in range(3):
        PIL.Image.fromarray(np.full((10, 6, 3), 60 * i, np.uint8)).save(tmp_path / "small" / f"{i}.png")
    words = ["--model", run, "--image", tmp_path / "small", "--num_images", 3, "--num_inference_steps", 2]
    monkeypatch.setattr(
        sys, "argv", ["generate.py", *map(str, words), "--noise_level", "0.2", "--output_dir", str(tmp_path / "big")]
    )
    generate.main()
    assert {PIL.Image.open(path).size for path in (tmp_path / "big").glob("0*.png")} == {(12, 20)}
    assert PIL.Image.open(tmp_path / "big" / "before-after.png").size == (3 * 12 + 4, 2 * 20 + 2)
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out", "a/b", license="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-to-image" in card
    assert 'pipeline(image=Image.open("input.png"), num_inference_steps=50)' in card
    code = """
import PIL.Image
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
print(pipeline(PIL.Image.new("RGB", (6, 10)), num_inference_steps=2).images[0].size)
"""
    done = stranger(code, tmp_path / "out")
    assert "(12, 20)" in done.stdout, done.stderr


def run_generate(monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["generate.py", *words, "--num_inference_steps", "2"])
    generate.main()


def read(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(PIL.Image.open(path)) for path in sorted(folder.glob("0*.png"))])


def test_a_cascade_is_its_two_models(pairs, train, tmp_path, monkeypatch):
    """Small images of the one, enlarged by the other; image i depends on its number alone."""
    base = train(tmp_path / "base", **options(pairs, max_train_steps=1, resolution=8))
    upsampler = train(tmp_path / "up", **options(pairs, condition="lowres:2", max_noise_level=0.5, max_train_steps=1))
    given = {"model": base, "upsampler": upsampler, "upsampler_noise_level": 0.2}
    run_generate(monkeypatch, **given, num_images=3, output_dir=tmp_path / "three")
    run_generate(monkeypatch, **given, num_images=5, batch_size=2, output_dir=tmp_path / "five")
    run_generate(monkeypatch, model=base, num_images=3, output_dir=tmp_path / "small")
    images = read(tmp_path / "three")
    assert images.shape == (3, SIDE, SIDE, 3)
    assert np.abs(images.astype(int) - read(tmp_path / "five")[:3]).max() <= 1
    pipeline = load_pipeline(str(upsampler))
    small = load_pipeline(str(base))
    small.set_progress_bar_config(disable=True)
    first = small(3, num_inference_steps=2, generator=image_generators(0, range(3)), output_type="np").images
    assert np.array_equal((255 * first).round().astype(int), read(tmp_path / "small"))
    larger = call(pipeline, image=first, noise_level=0.2, generator=image_generators(SEED, range(3)))
    assert np.array_equal((255 * larger).round().astype(int), images)


def test_a_cascade_of_a_class(train, tmp_path, monkeypatch):
    """The upsampler needs none."""
    digits = {"train_batch_size": 4, "max_train_steps": 1}
    base = train(tmp_path / "base", **digits, resolution=8)
    upsampler = train(tmp_path / "up", **digits, resolution=16, condition="lowres:2", class_conditional=False)
    given = {"model": base, "upsampler": upsampler, "class_label": 3, "num_images": 2}
    run_generate(monkeypatch, **given, output_dir=tmp_path / "out")
    assert read(tmp_path / "out").shape == (2, 16, 16)
    with pytest.raises(UserError, match="^--upsampler_noise_level 0.3: the upsampler was trained with at most 0"):
        run_generate(monkeypatch, **given, upsampler_noise_level=0.3, output_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_float_columns_keep_their_range(train, tmp_path):
    """Of training, for other splits and in sampling."""
    feature = datasets.Features({"image": datasets.Image(), "map": datasets.Array2D((8, 8), "float32")})
    (tmp_path / "data").mkdir()
    for split, most in (("train", 10.0), ("test", 5.0)):
        maps = [np.linspace(0, most, 64, dtype=np.float32).reshape(8, 8)] * 4
        rows = {"image": [png(np.full((8, 8), 9, np.uint8))] * 4, "map": maps}
        file = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, feature).to_parquet(file)
    given = options(tmp_path / "data", condition="column:map", resolution=8, validation_split="test", eval_steps=1)
    run = train(tmp_path / "run", **given)
    assert load_pipeline(str(run)).config["condition_range"] == (0.0, 10.0)
    grid = np.asarray(PIL.Image.open(run / "samples" / "step-000002.png"))
    assert grid[7, 7] == 128  # of 5 in 10


def test_bad_cascades(pairs, train, tmp_path, monkeypatch):
    base = train(tmp_path / "base", **options(pairs, max_train_steps=1))
    gray = train(tmp_path / "gray", **options(pairs, max_train_steps=1, channels=1, condition="lowres:2"))
    for given, error in (
        ({"upsampler": tmp_path / "none"}, "--upsampler"),
        ({"upsampler": base}, f"--upsampler {base}: is a PixelDiffusionPipeline; take a model of --condition lowres"),
        ({"upsampler": gray}, f"--upsampler {gray}: its images have 1 channels, those of --model 3"),
        ({"upsampler_noise_level": 0.1}, "--upsampler_noise_level: is of an --upsampler"),
        ({"noise_level": 0.1}, "--noise_level: is for models of a --condition"),
        ({"image_guidance_scale": 2}, "--image_guidance_scale: is for models of a --condition"),
    ):
        with pytest.raises(UserError, match="^" + error):
            run_generate(monkeypatch, model=base, num_images=1, output_dir=tmp_path / "out", **given)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"condition": "blur"}, "--condition: 'blur' is not one of lowres:4, gray,"),
        ({"condition": "lowres:3"}, "--condition lowres:3: images of 16 x 16 pixels can't be divided by 3"),
        ({"condition": "gray", "channels": 1}, "--condition gray: images of 1 channels aren't RGB ones"),
        ({"condition": "column:name"}, "--condition column:name: string is no type of images"),
        ({"condition": "column:none"}, "--condition column:none: no such column"),
        ({"condition": "gray", "augment_p": 0.1}, "--condition: isn't for --augment_p"),
        ({"condition": "gray", "self_condition": True}, "--condition: isn't for --self_condition"),
        (
            {"condition": "gray", "backbone": "dit", "model_config_name_or_path": None},
            "--backbone dit: takes no --cond",
        ),
        ({"condition": "gray", "objective": "ve"}, "--objective ve: takes no --condition"),
        ({"condition": "gray", "eval_steps": 1, "eval_metrics": "fd"}, "--eval_metrics: draws samples without"),
        ({"max_noise_level": 0.1}, "--max_noise_level: is of a --condition"),
        ({"conditioning_dropout_prob": 0.1}, "--conditioning_dropout_prob: is of a --condition"),
    ],
)
def test_what_can_not_be_trained(more, error, pairs, train, tmp_path):
    with pytest.raises(UserError, match="^" + error):
        train(tmp_path / "run", **options(pairs, **more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("center_crop", [False, True])
def test_a_pair_whose_sizes_differ(center_crop, train, tmp_path):
    images = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 3
    maps = [np.zeros((SIDE, side), np.uint8) for side in (SIDE, 2 * SIDE, SIDE)]
    write(tmp_path / "data", maps, images)
    with pytest.raises(UserError, match="^--condition column:map: its images don't have the shapes of those"):
        train(tmp_path / "run", **options(tmp_path / "data", condition="column:map", center_crop=center_crop))
