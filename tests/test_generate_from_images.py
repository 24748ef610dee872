"""generate.py with images to start from."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

import generate
from pipelines import ScoreSdePipeline, image_generators
from snowmelt.errors import UserError
from tests.pipelines.models import quiet, tiny_pipeline, tiny_unet

SIDE = 16


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and folders of images and masks, of 24 x 16 pixels, which are fitted to the models' 16 x 16."""
    root = tmp_path_factory.mktemp("given")
    tiny_pipeline(FlowMatchEulerDiscreteScheduler(), channels=3).save_pretrained(root / "flow")
    tiny_pipeline(FlowMatchEulerDiscreteScheduler(), 2, value_range=(-5.0, 5.0)).save_pretrained(root / "two")
    quiet(ScoreSdePipeline(tiny_unet(), DDPMScheduler())).save_pretrained(root / "sde")
    rng = np.random.default_rng(0)
    mask = np.zeros((16, 24), np.uint8)
    mask[8:] = 255
    for name in ("a", "b"):
        for folder, array in (("images", rng.integers(0, 256, (16, 24, 3), np.uint8)), ("masks", mask)):
            (root / folder).mkdir(exist_ok=True)
            PIL.Image.fromarray(array).save(root / folder / f"{name}.png")
    PIL.Image.fromarray(np.zeros((16, 24), np.uint8)).save(root / "black.png")
    PIL.Image.new("L", (16, 16), 255).save(root / "small.png")
    np.save(root / "two.npy", rng.uniform(-5, 5, (SIDE, SIDE, 2)).astype(np.float32))
    np.save(root / "beyond.npy", np.full((SIDE, SIDE, 2), 6.0, np.float32))
    (root / "none").mkdir()
    (root / "text.png").write_text("no image")
    return root


def run(monkeypatch: pytest.MonkeyPatch, given: Path, output: Path, words: str) -> Path:
    monkeypatch.chdir(given)
    flags = [*words.split(), "--output_dir", str(output), "--num_inference_steps", "4"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *flags])
    generate.main()
    return output


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(PIL.Image.open(path)) for path in sorted(folder.glob("0*.png"))])


def inputs(given: Path) -> np.ndarray:
    files = sorted((given / "images").iterdir())
    return np.stack([np.asarray(PIL.Image.open(file).crop((4, 0, 20, 16))) for file in files])


def test_files_in_turn(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the pipeline makes of them; an image doesn't depend on its batch."""
    words = "--model flow --image images --strength 0.5 --num_images 3"
    made = pixels(run(monkeypatch, given, tmp_path / "a", f"{words} --batch_size 2"))
    whole = pixels(run(monkeypatch, given, tmp_path / "b", words))
    assert abs(made.astype(int) - whole).max() <= 1
    pipeline = quiet(generate.load(generate.GenerateConfig(model=str(given / "flow")))[0])
    image = inputs(given)[[0, 1, 0]].astype(np.float32) / 255
    options: dict[str, Any] = {"num_inference_steps": 4, "generator": image_generators(0, range(3))}
    expected = pipeline(3, image=image, strength=0.5, output_type="np", **options).images
    assert abs(made - expected * 255).max() <= 1
    both = np.asarray(PIL.Image.open(tmp_path / "a" / "before-after.png"))
    assert both.shape == (2 * SIDE + 2, 3 * SIDE + 4, 3)
    assert np.array_equal(both[:SIDE, :SIDE], inputs(given)[0])
    assert np.array_equal(both[-SIDE:, :SIDE], made[0])


@pytest.mark.parametrize("model", ["flow", "sde"])
@pytest.mark.parametrize("mask", ["masks", "masks/a.png"])
def test_masks(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, mask: str) -> None:
    jumps = "--jump_length 1 --jump_n_sample 2" if model == "flow" else "--num_corrector_steps 1"
    words = f"--model {model} --image images --mask {mask} --num_images 2 {jumps}"
    folder = run(monkeypatch, given, tmp_path, words)
    made = pixels(folder)
    files = inputs(given)
    if model == "sde":
        files = np.stack([np.asarray(PIL.Image.fromarray(file).convert("L")) for file in files])
    assert np.array_equal(made[:, :8], files[:, :8])
    assert abs(made[:, 8:].astype(int) - files[:, 8:]).mean() > 10
    before = np.asarray(PIL.Image.open(folder / "before-after.png"))[8:SIDE, :SIDE]
    assert (before == 128).all()  # what is to be made is gray


def test_noise_is_estimated_where_no_number_is_given(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = 0.5 + 0.1 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    PIL.Image.fromarray((noise.clamp(0, 1) * 255).byte().numpy()).crop((0, 0, 16, 16)).save(tmp_path / "noise.png")
    seen: list[float] = []
    plain = ScoreSdePipeline.__call__
    monkeypatch.setattr(
        ScoreSdePipeline, "__call__", lambda self, *a, **k: (seen.append(k["noise_std"]), plain(self, *a, **k))[1]
    )
    for value in ("auto", "0.2"):
        words = f"--model sde --image {tmp_path}/noise.png --noise_std {value} --num_images 1"
        run(monkeypatch, given, tmp_path / value, words)
    assert seen == [pytest.approx(0.1, rel=0.25), 0.2]


def test_arrays(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any number of channels, in the data's own values."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, 8:] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    words = f"--model two --image two.npy --mask {tmp_path}/mask.png --num_images 1"
    made = np.load(run(monkeypatch, given, tmp_path / "out", words) / "000000.npy")
    np.testing.assert_allclose(made[:, :8], np.load(given / "two.npy")[:, :8], atol=1e-5)


def test_more_images_change_none(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder of more files than were asked for at first; what is estimated stays too."""
    words = "--model flow --image images --noise_std auto"
    one = pixels(run(monkeypatch, given, tmp_path, f"{words} --num_images 1"))
    two = pixels(run(monkeypatch, given, tmp_path, f"{words} --num_images 2"))
    assert abs(two[0].astype(int) - one[0]).max() <= 1


def test_other_inputs_are_other_settings(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, given, tmp_path, "--model flow --image images/a.png --num_images 1")
    run(monkeypatch, given, tmp_path, "--model flow --image images/a.png --num_images 1")
    with pytest.raises(UserError, match="made with other input images; give another folder"):
        run(monkeypatch, given, tmp_path, "--model flow --image images/b.png --num_images 1")
    with pytest.raises(UserError, match="made with other input images"):
        run(monkeypatch, given, tmp_path, "--model flow --image images/a.png --mask masks/a.png --num_images 1")
    with pytest.raises(UserError, match="--output_dir: .* made with"):
        run(monkeypatch, given, tmp_path, "--model flow --num_images 1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model flow --mask black.png", "--mask: is of an image to start from; give --image too"),
        ("--model flow --strength 0.5", "--strength: is of an image to start from"),
        ("--model flow --image nowhere", "--image nowhere: no such file or folder"),
        ("--model flow --image none", "--image none: no images in this folder"),
        ("--model flow --image text.png", "--image text.png: .*; give an image file"),
        ("--model flow --image images --strength 1.5", "--strength: must be at least 0 and at most 1, got 1.5"),
        ("--model flow --image images --strength 0.1", "strength: 0.1 of 4 steps is 0"),
        ("--model flow --image images --interpolate 1 2", "--image: not with --interpolate"),
        ("--model flow --image images --mask black.png", "--mask black.png: is black, so nothing would be made"),
        ("--model flow --image images --mask small.png", "--mask small.png: of 16 x 16 pixels, and .*a.png of 24 x 16"),
        ("--model flow --image images/a.png --mask masks", "--mask masks: 2 masks for 1 images"),
        ("--model flow --image images --mask text.png", "--mask text.png: .*; give a black and white image"),
        ("--model flow --image images --jump_n_sample 2", "jump_n_sample: is of inpainting; give mask_image too"),
        ("--model flow --image images --noise_std much", "--noise_std: must be a number above 0, or auto, got 'much'"),
        ("--model flow --image images --noise_std -1", "--noise_std: must be a number above 0"),
        ("--model two --image images", "--image .*a.png: the model's images have 2 channels; give an .npy file"),
        ("--model two --image beyond.npy", r"--image beyond.npy: holds values outside \[-5, 5\], the model's range"),
        ("--model flow --image two.npy", r"--image two.npy: of shape \(16, 16, 2\); must be \(H, W, 3\)"),
        ("--model sde --image images --mask masks --jump_n_sample 2", "--jump_n_sample: a score-based SDE repeats no"),
    ],
)
def test_bad_input(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, given, tmp_path / "new", f"{words} --num_images 2")
    assert not list(tmp_path.rglob("*.png"))
