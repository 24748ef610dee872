"""generate.py, in this process where possible: starting another takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

import generate
from pipelines import PixelDiffusionPipeline, ScoreSdePipeline, image_generators
from snowmelt.errors import UserError
from tests.pipelines.models import quiet, tiny_pipeline, tiny_unet
from tests.pipelines.test_text2img import make

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved models: `classes` (RGB, with an average beside it), `gray` and `two` (channels)."""
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline(channels=3, num_class_embeds=4, id2label={0: "ant", 1: "bee", 2: "2"}).save_pretrained(
        folder / "classes"
    )
    average = tiny_unet(3, 4)
    average.conv_out.weight.data.mul_(0.5)
    average.save_pretrained(folder / "classes/unet_ema_0.050")
    tiny_pipeline(EDMEulerScheduler()).save_pretrained(folder / "gray")
    ScoreSdePipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder / "sde")
    tiny_pipeline(FlowMatchEulerDiscreteScheduler(), channels=2).save_pretrained(folder / "two")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, model: Path, output: Path, *flags: str) -> Path:
    arguments = ["--model", str(model), "--output_dir", str(output), "--num_inference_steps", "2", *flags]
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    generate.main()
    return output


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(PIL.Image.open(path)) for path in sorted(folder.glob("0*.png"))]


def test_a_score_based_model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own options, alike from any batch."""
    pipeline = quiet(ScoreSdePipeline(tiny_unet(), DDPMScheduler()))
    pipeline.save_pretrained(tmp_path / "vp")
    flags = ["--predictor", "ancestral", "--num_corrector_steps", "1", "--snr", "0.1", "--num_images", "3"]
    folder = run(monkeypatch, tmp_path / "vp", tmp_path / "a", *flags, "--batch_size", "2")
    options = {"num_inference_steps": 2, "predictor": "ancestral", "num_corrector_steps": 1, "snr": 0.1}
    expected = pipeline(3, generator=image_generators(0, range(3)), **options).images
    for ours, theirs in zip(pixels(folder), expected, strict=True):
        assert abs(ours.astype(int) - np.asarray(theirs)).max() <= 1


def test_guidance_by_another_state_of_the_model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its average here; settings.json knows whose weights guided."""
    flags = ["--guidance_ema", "0.05", "--guidance_scale", "2", "--guidance_interval", "0.1", "9", "--num_images", "2"]
    folder = run(monkeypatch, models / "classes", tmp_path / "a", *flags)
    pipeline, guide = tiny_pipeline(channels=3, num_class_embeds=4), tiny_unet(3, 4)
    guide.conv_out.weight.data.mul_(0.5)
    guidance = {"guidance_scale": 2.0, "guidance_interval": (0.1, 9.0)}
    given = {"class_labels": [0, 1], "num_inference_steps": 2, **guidance}
    expected = pipeline(2, guidance_model=guide, generator=image_generators(0, range(2)), **given).images
    others = pipeline(2, generator=image_generators(0, range(2)), **given).images
    for ours, theirs, other in zip(pixels(folder), expected, others, strict=True):
        assert abs(ours.astype(int) - np.asarray(theirs)).max() <= 1
        assert abs(ours.astype(int) - np.asarray(other)).max() > 5
    (tmp_path / "m").mkdir()
    small = tiny_pipeline(channels=3, num_class_embeds=4, id2label={0: "ant", 1: "bee", 2: "2"})
    small.save_pretrained(tmp_path / "m")
    flags[:2] = ["--guidance_model", str(tmp_path / "m")]
    again = run(monkeypatch, models / "classes", tmp_path / "b", *flags)
    small.unet.conv_out.weight.data.mul_(2)
    small.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="made with other guidance weights"):
        run(monkeypatch, models / "classes", again, *flags)


def test_images_are_those_of_their_indices(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes in turn, generators by index: the same from any batch size."""
    folder = run(monkeypatch, models / "classes", tmp_path / "a", "--num_images", "5", "--batch_size", "2")
    assert sorted(p.name for p in folder.iterdir()) == [
        *(f"{i:06d}.png" for i in range(5)),
        "grid.png",
        "settings.json",
    ]
    pipeline = tiny_pipeline(channels=3, num_class_embeds=4)
    expected = pipeline(
        5, class_labels=[0, 1, 2, 0, 1], num_inference_steps=2, generator=image_generators(0, range(5))
    ).images
    for ours, theirs in zip(pixels(folder), expected, strict=True):
        assert abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    grid = np.asarray(PIL.Image.open(folder / "grid.png"))
    assert grid.shape == (2 * 16 + 2, 3 * 16 + 4, 3)
    assert np.array_equal(grid[18:, 18:34], pixels(folder)[4])
    other = run(monkeypatch, models / "classes", tmp_path / "b", "--num_images", "1", "--seed", "1")
    assert not np.array_equal(pixels(other)[0], pixels(folder)[0])


@pytest.mark.parametrize(("label", "number"), [("bee", 1), ("0", 0), ("2", 2)])
def test_options_reach_the_pipeline(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, number: int
) -> None:
    flags = ("--num_images", "2", "--class_label", label, "--guidance_scale", "3", "--guidance_interval", "0.5", "9")
    folder = run(monkeypatch, models / "classes", tmp_path, *flags, "--scheduler", "ddim", "--eta", "0.5")
    expected = tiny_pipeline(DDIMScheduler(timestep_spacing="trailing"), channels=3, num_class_embeds=4)(
        2,
        class_labels=number,
        guidance_scale=3.0,
        guidance_interval=(0.5, 9.0),
        eta=0.5,
        num_inference_steps=2,
        generator=image_generators(0, range(2)),
    ).images
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(pixels(folder), expected, strict=True))


def test_average(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = run(monkeypatch, models / "classes", tmp_path / "a", "--num_images", "1")
    average = run(monkeypatch, models / "classes", tmp_path / "b", "--num_images", "1", "--ema", "0.05")
    assert not np.array_equal(pixels(model)[0], pixels(average)[0])
    with pytest.raises(UserError, match="--ema: .* has none of sigma_rel 0.100; it has 0.050"):
        run(monkeypatch, models / "classes", tmp_path / "c", "--ema", "0.1")


def test_16_bits(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shallow = run(monkeypatch, models / "gray", tmp_path / "a", "--num_images", "3")
    deep = run(monkeypatch, models / "gray", tmp_path / "b", "--num_images", "3", "--bit_depth", "16")
    for a, b in zip(pixels(shallow), pixels(deep), strict=True):
        assert b.dtype == np.uint16
        assert abs(b / 257 - a).max() <= 0.51
        assert (b % 257).any()
    assert PIL.Image.open(deep / "grid.png").mode == "L"
    with pytest.raises(UserError, match="--bit_depth: 16 is for gray images, this model's have 3 channels"):
        run(monkeypatch, models / "classes", tmp_path / "c", "--bit_depth", "16")


def test_other_channels(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(monkeypatch, models / "two", tmp_path / "a", "--num_images", "2")
    assert sorted(p.name for p in folder.iterdir()) == ["000000.npy", "000001.npy", "settings.json"]
    image = np.load(folder / "000001.npy")
    assert image.shape == (16, 16, 2)
    assert image.dtype == np.float32
    measured = PixelDiffusionPipeline.from_pretrained(models / "two", value_range=(-2.0, 6.0))
    measured.save_pretrained(tmp_path / "measured")
    folder = run(monkeypatch, tmp_path / "measured", tmp_path / "units", "--num_images", "2")
    np.testing.assert_allclose(np.load(folder / "000001.npy"), -2 + 8 * image, rtol=1e-5)
    with pytest.raises(UserError, match="--trajectory: can't draw images of 2 channels"):
        run(monkeypatch, models / "two", tmp_path / "b", "--trajectory")


def test_trajectory(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(monkeypatch, models / "gray", tmp_path, "--num_images", "2", "--trajectory")
    strip = np.asarray(PIL.Image.open(folder / "strip.png"))
    assert strip.shape == (4 * 16, 2 * 16)  # of two steps
    # The last predicted x0 is the image itself, since EDM's Euler ends at sigma = 0.
    for i, image in enumerate(pixels(folder)):
        assert abs(strip[(2 * i + 1) * 16 : (2 * i + 2) * 16, -16:].astype(int) - image).max() <= 1
    assert PIL.Image.open(folder / "trajectory.gif").n_frames == 2


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_images_of_other_settings_are_not_replaced(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(monkeypatch, models / "gray", tmp_path / "out", "--num_images", "3")
    (out / "notes.txt").touch()
    before = contents(out)
    advice = "give another folder, or --overwrite_output_dir to replace them"
    for model, flags, made in (
        ("gray", ("--seed", "1"), r"--seed 0 \(now 1\)"),
        ("gray", ("--num_inference_steps", "3"), r"--num_inference_steps 2 \(now 3\)"),
        ("two", (), "other weights"),
    ):
        with pytest.raises(UserError, match=rf"holds 4 images \(000000.png, ...\) made with {made}; {advice}"):
            run(monkeypatch, models / model, out, *flags)
        assert contents(out) == before
    (out / "settings.json").rename(tmp_path / "settings.json")
    with pytest.raises(UserError, match=f"and no settings.json that says what made them; {advice}"):
        run(monkeypatch, models / "gray", out)
    (tmp_path / "settings.json").rename(out / "settings.json")
    run(monkeypatch, models / "gray", out, "--num_images", "4", "--batch_size", "1")  # more of the same
    after = contents(out)
    assert {name: after[name] for name in before if name != "grid.png"} == {
        k: before[k] for k in before if k != "grid.png"
    }
    run(monkeypatch, models / "gray", out, "--num_images", "2", "--seed", "1", "--overwrite_output_dir")
    assert sorted(contents(out)) == ["000000.png", "000001.png", "grid.png", "notes.txt", "settings.json"]
    assert contents(out)["000000.png"] != before["000000.png"]


def test_bfloat16(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = run(monkeypatch, models / "gray", tmp_path / "a", "--num_images", "1")
    half = run(monkeypatch, models / "gray", tmp_path / "b", "--num_images", "1", "--torch_dtype", "bfloat16")
    difference = abs(pixels(full)[0].astype(int) - pixels(half)[0])
    assert difference.max() > 0
    assert difference.mean() < 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scheduler", "flow-euler"], "--scheduler: 'flow-euler' doesn't fit this discrete model; these do: ddpm,"),
        (["--class_label", "dog"], r"class_labels: 'dog' is not among 0 to 2 \(ant, bee, 2\)"),
        (["--eta", "1"], "eta: DDPMScheduler takes none; DDIMScheduler does"),
        (["--guidance_interval", "1"], "--guidance_interval: takes LO and HI, got 1 numbers"),
        (["--num_images", "0"], "--num_images: must be at least 1 and at most 10000000, got 0"),
        (["--bit_depth", "12"], "--bit_depth: 12 is not one of 8, 16"),
    ],
)
def test_mistakes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, models / "classes", tmp_path / "out", *flags)


def test_no_model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no model_index.json, so it is not the folder of a pipeline"):
        run(monkeypatch, models, tmp_path / "out")
    with pytest.raises(UserError, match="--model: can't load .*nowhere"):
        run(monkeypatch, tmp_path / "nowhere", tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    with pytest.raises(UserError, match="--model: needed"):
        generate.main()


def test_processes_share_the_work(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, launched as `accelerate launch` does it for GPUs, write together what one does."""
    alone = run(monkeypatch, models / "classes", tmp_path / "a", "--num_images", "3")
    together = tmp_path / "b"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "generate.py"]
    command += ["--num_images", "3", "--num_inference_steps", "2"]
    command += ["--model", str(models / "classes"), "--output_dir", str(together)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.count("3 images in") == 1  # processes that don't know of each other would each say so
    assert sorted(p.name for p in alone.iterdir()) == sorted(p.name for p in together.iterdir())
    for a, b in zip(pixels(alone), pixels(together), strict=True):
        assert abs(a.astype(int) - b).max() <= 1


def test_help_is_immediate() -> None:
    """It doesn't wait for torch."""
    code = "import sys, generate; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_default_scheduler_is_the_models(models: Path) -> None:
    config = generate.GenerateConfig(model=str(models / "classes"))
    assert type(generate.load(config)[0].scheduler) is DDPMScheduler


def test_prompts_in_turn(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the guidance that the pipeline has for its own, unless another is given."""
    pipeline = quiet(make())
    pipeline.save_pretrained(tmp_path / "text")
    wanted = ["--prompt", "a cat", "a red dog", "--num_images", "3"]
    folder = run(monkeypatch, tmp_path / "text", tmp_path / "out", *wanted)
    prompts, options = ["a cat", "a red dog", "a cat"], {"num_inference_steps": 2}
    expected = pipeline(prompts, generator=image_generators(0, range(3)), **options).images
    for ours, theirs in zip(pixels(folder), expected, strict=True):
        assert abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    plain = run(monkeypatch, tmp_path / "text", tmp_path / "plain", *wanted, "--guidance_scale", "1")
    expected = pipeline(prompts, generator=image_generators(0, range(3)), guidance_scale=1.0, **options).images
    assert abs(pixels(plain)[1].astype(int) - np.asarray(expected[1]).astype(int)).max() <= 1
    with pytest.raises(UserError, match="--prompt: needed by this model"):
        run(monkeypatch, tmp_path / "text", tmp_path / "none")
    with pytest.raises(UserError, match="--class_label: this model has no classes"):
        run(monkeypatch, tmp_path / "text", tmp_path / "none", "--class_label", "1", *wanted)
    with pytest.raises(UserError, match="--prompt: this model takes no text"):
        run(monkeypatch, models / "classes", tmp_path / "none", *wanted)


def test_interpolation_begins_and_ends_at_its_images(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label, ddim = ("--class_label", "bee"), ("--scheduler", "ddim")
    alone = run(monkeypatch, models / "classes", tmp_path / "alone", "--num_images", "4", *label, *ddim)
    way = ("--interpolate", "1", "3", "--num_images", "5", "--batch_size", "2")
    folder = run(monkeypatch, models / "classes", tmp_path / "way", *way, *label, *ddim)
    frames, ends = pixels(folder), pixels(alone)
    assert len(frames) == 5
    for frame, end in ((frames[0], ends[1]), (frames[4], ends[3])):
        np.testing.assert_allclose(frame.astype(int), end, atol=1)
    steps = [abs(b.astype(float) - a).mean() for a, b in zip(frames, frames[1:], strict=False)]
    assert max(steps) < abs(ends[3].astype(float) - ends[1]).mean()
    assert PIL.Image.open(folder / "grid.png").width > 4 * 16


def test_interpolation_between_files(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded and decoded again, with as many steps: close to themselves."""
    network = tiny_unet(1)
    network.conv_out.weight.data *= 0.1
    quiet(PixelDiffusionPipeline(network, FlowMatchEulerDiscreteScheduler())).save_pretrained(tmp_path / "model")
    y, x = np.mgrid[:32, :32]
    files = [tmp_path / "down.png", tmp_path / "right.png"]
    for path, values in zip(files, (y, x), strict=True):
        PIL.Image.fromarray((values * 8).astype(np.uint8)).convert("RGB").save(path)
    flags = ("--interpolate", *map(str, files), "--num_images", "3", "--num_inference_steps", "40")
    frames = pixels(run(monkeypatch, tmp_path / "model", tmp_path / "way", *flags))
    for frame, path in ((frames[0], files[0]), (frames[2], files[1])):
        expected = np.asarray(PIL.Image.open(path).convert("L").resize((16, 16), PIL.Image.Resampling.BICUBIC))
        assert abs(frame.astype(float) - expected).mean() < 6


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("gray", ["--interpolate", "1"], "--interpolate: takes two images, got 1"),
        ("gray", ["--interpolate", "1", "2", "--num_images", "1"], "--num_images: 1 is no way"),
        ("gray", ["--interpolate", "1", "2", "--trajectory"], "--trajectory: .* without --interpolate"),
        ("gray", ["--interpolate", "1", "nowhere.png"], "--interpolate nowhere.png: .*; give an image file"),
        ("two", ["--interpolate", "1", "a.png"], "--interpolate a.png: .* 2 channels; give an .npy file"),
        ("classes", ["--interpolate", "1", "2", "--class_label", "0"], "deterministic sampler; add --scheduler ddim"),
        ("classes", ["--interpolate", "1", "2", "--scheduler", "ddim"], "stays in one class; add --class_label"),
        ("sde", ["--interpolate", "1", "2"], "deterministic sampler of a scheduler, and this model is of an SDE"),
    ],
)
def test_interpolations_that_cannot_be(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, models / model, tmp_path / "new", *flags)
    assert not (tmp_path / "new").exists()
