"""Runs of train_autoencoder.py: what they leave, that they resume exactly, what they refuse."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from pipelines import LatentDiffusionPipeline
from snowmelt.autoencoder.latent_statistics import measure_latents
from snowmelt.errors import UserError
from snowmelt.evaluation import classifier
from snowmelt.spaces import load_autoencoder
from snowmelt.tracking import read_metrics
from tests.autoencoder.conftest import config, data, make_kl, make_vq  # noqa: F401  (fixtures)
from tests.conftest import trained
from tests.pipelines.models import quiet

STEPS = 6
USUAL = {
    "script": "train_autoencoder",
    "class_conditional": None,
    "model_config_name_or_path": None,
    "ddpm_num_inference_steps": None,
    "center_crop": True,
    "eval_features": "none",
    "eval_batch_size": 3,
    "validation_share": 0.1,
    "disc_width": 4,
    "disc_start": 2,
    "max_train_steps": STEPS,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 2,
    "adam_beta1": 0.9,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folders of untrained autoencoders."""
    folder = tmp_path_factory.mktemp("tiny")
    make_kl().save_pretrained(folder / "kl")
    make_vq().save_pretrained(folder / "vq")
    return folder


@pytest.fixture(scope="session")
def fit(train, tiny):
    """Train in this process from the tiny weights of a regularization; options replace the usual ones."""

    def fit(output_dir: Path, regularization: str = "kl", **options: object) -> Path:
        start = {"regularization": regularization, "pretrained_model_name_or_path": tiny / regularization}
        return train(output_dir, **USUAL | start | options)

    return fit


@pytest.fixture(scope="module")
def run(fit, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("run") / "run", checkpointing_steps=3)


def contents(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.iterdir()}


def test_layout(run):
    checkpoints = {"checkpoint-3", "checkpoint-6"}
    others = {"vae", "config.yaml", "metrics.jsonl", "heartbeat.json", "run.json", "samples", "loss.png", ".lock"}
    assert contents(run) == checkpoints | others
    for name in checkpoints:
        assert contents(run / name) == {"vae", "vae_ema", "discriminator", "optimizer", "trainer_state.json"}
    assert isinstance(AutoencoderKL.from_pretrained(run / "vae"), AutoencoderKL)
    assert isinstance(load_autoencoder(str(run)), AutoencoderKL)


def test_scaling_is_measured(run, config, data):  # noqa: F811
    """On the training images, with the weights that are saved."""
    vae = AutoencoderKL.from_pretrained(run / "vae").eval()
    (line,) = [line for line in read_metrics(run) if "latent_scale" in line]
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (line["latent_scale"], line["latent_shift"])
    from snowmelt.data.held_out import load_splits

    images, held_out = load_splits(config(validation_share=0.1))
    expected = measure_latents(vae, images, seed=0, batch_size=64).values()
    assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    other = measure_latents(vae, held_out, seed=0, batch_size=64)
    assert other.scale != pytest.approx(line["latent_scale"], rel=1e-5)
    assert json.loads((run / "checkpoint-6" / "vae" / "config.json").read_text())["scaling_factor"] == 0.18215


def test_metrics(run):
    *lines, latents, report = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert {"loss", "reconstruction", "psnr", "kl", "generator", "discriminator", "disc_weight"} <= line.keys()
        assert not any(name.startswith("loss_q") for name in line)
        assert (line["disc_weight"] > 0) == (line["step"] > 2)
    assert latents["step"] == report["step"] == STEPS
    assert 3 < report["eval_psnr"] < 30


def test_report_is_of_the_saved_weights_on_held_out_images(run, config):  # noqa: F811
    from snowmelt.autoencoder.reconstructions import measure_reconstructions
    from snowmelt.data.held_out import load_splits
    from snowmelt.evaluation.real import RealImages

    vae = AutoencoderKL.from_pretrained(run / "vae")
    held_out = RealImages(load_splits(config(validation_share=0.1))[1], "held out", (0, 255))
    psnr = measure_reconstructions(vae, held_out, np.arange(len(held_out)), None, 64)["psnr"]
    assert read_metrics(run)[-1]["eval_psnr"] == pytest.approx(psnr, rel=1e-5)


def test_grid(run):
    with Image.open(run / "samples" / "step-000006.png") as grid:
        assert (grid.mode, grid.size) == ("L", (18, 28))


def test_average_is_what_is_saved(run):
    saved, average, last = (load_file(run / n / WEIGHTS) for n in ("vae", "checkpoint-6/vae_ema", "checkpoint-6/vae"))
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert any(not torch.equal(saved[name], last[name]) for name in saved)


def interrupted(whole: Path, step: int, folder: Path) -> Path:
    shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return folder


VARIANTS = {
    "kl": {"perceptual_weight": 0.0, "gradient_accumulation_steps": 2, "equivariance_prob": 0.5},
    "vq, bf16, width": {
        "regularization": "vq",
        "mixed_precision": "bf16",
        "ema_widths": [0.1],
        "equivariance_prob": 0.5,
    },
    "no discriminator, no average": {"disc_weight": 0.0, "use_ema": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact(variant, fit, tmp_path):
    options = {"random_flip": True, "checkpointing_steps": 1, "train_batch_size": 16} | VARIANTS[variant]
    whole = fit(tmp_path / "whole", **options)
    for step in (1, 4):  # before and after the discriminator starts
        resumed = fit(interrupted(whole, step, tmp_path / str(step)), **options, resume_from_checkpoint="latest")
        assert trained(resumed) == trained(whole, since=step)
    expected = {"vae"} | ({"discriminator"} if "disc_weight" not in options else set())
    assert expected <= contents(whole / "checkpoint-4")


@pytest.mark.slow
def test_saving_changes_nothing(fit, tmp_path):
    often = fit(
        tmp_path / "often", checkpointing_steps=1, train_batch_size=1000, save_model_epochs=1, save_images_epochs=1
    )
    once = fit(tmp_path / "once", train_batch_size=1000)
    runs = [{n: d for n, d in trained(r, since=STEPS).items() if n.startswith(("vae", "check"))} for r in (often, once)]
    assert runs[0] == runs[1]
    reports = [line for line in read_metrics(often) if "eval_psnr" in line]
    assert len(reports) > 2
    assert len({line["eval_psnr"] for line in reports}) == len(reports)


def test_equivariance_is_of_training_alone(fit, tmp_path):
    """Reconstructions that are measured, and those in the grid, are of images as they are."""
    runs = [
        fit(tmp_path / str(p), learning_rate=0.0, max_train_steps=1, equivariance_prob=p, save_images_epochs=1)
        for p in (0.0, 1.0)
    ]
    lines = [read_metrics(run) for run in runs]
    assert lines[0][-1] == lines[1][-1]
    assert lines[0][0]["psnr"] != lines[1][0]["psnr"]
    grids = [(run / "samples" / "step-000001.png").read_bytes() for run in runs]
    assert grids[0] == grids[1]


def test_nothing_left_to_do(run, fit, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    fit(copy, checkpointing_steps=3, resume_from_checkpoint="latest")
    assert trained(copy) == trained(run)
    assert read_metrics(copy) == read_metrics(run)


@pytest.mark.slow
def test_two_processes(fit, launch, tiny, tmp_path):
    """They take the steps that one process takes with twice the accumulation, the adversarial ones too."""
    start = {"regularization": "kl", "pretrained_model_name_or_path": tiny / "kl"}
    options = {"max_train_steps": 4, "train_batch_size": 16, "equivariance_prob": 0.5}
    assert launch(tmp_path / "two", 2, **USUAL | start | options)[0] == [0, 0]
    one = fit(tmp_path / "one", **options, gradient_accumulation_steps=2)
    for name in ("vae", "checkpoint-4/vae", "checkpoint-4/discriminator"):
        ours, theirs = (load_file(folder / name / WEIGHTS) for folder in (tmp_path / "two", one))
        assert_close(ours, theirs, rtol=0, atol=2e-6)
    for two, single in zip(read_metrics(tmp_path / "two"), read_metrics(one), strict=True):
        same = two.keys() - {"images_per_second", "peak_memory_mb", "grad_norm"}
        assert {name: two[name] for name in same} == pytest.approx({name: single[name] for name in same}, rel=1e-4)


def test_from_scratch_and_going_on(train, tmp_path):
    """A named size; another run goes on from its weights."""
    options = USUAL | {"model_size": "tiny", "downsample_factor": 2, "latent_channels": 3, "max_train_steps": 1}
    first = train(tmp_path / "first", **options)
    vae = AutoencoderKL.from_pretrained(first / "vae")
    assert vae.encode(torch.zeros(1, 1, 8, 8)).latent_dist.mean.shape == (1, 3, 4, 4)
    going = {"pretrained_model_name_or_path": first, "max_train_steps": 1, "learning_rate": 0.0, "disc_weight": 0.0}
    second = train(tmp_path / "second", **USUAL | going)
    ours, theirs = (load_file(folder / "vae" / WEIGHTS) for folder in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for row in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8, 4), np.uint8), "RGBA").save(folder / f"{row}.png")
    return folder


@pytest.mark.parametrize("regularization", ["kl", "vq"])
def test_rgba(regularization, photos, train, tmp_path):
    options = {"dataset_name": None, "train_data_dir": photos, "validation_share": None, "max_train_steps": 3}
    options |= {"model_size": "tiny", "downsample_factor": 2, "regularization": regularization}
    run = train(tmp_path / "run", **USUAL | options)
    vae = {"kl": AutoencoderKL, "vq": VQModel}[regularization].from_pretrained(run / "vae")
    assert (vae.config.in_channels, vae.config.out_channels) == (4, 4)
    with Image.open(run / "samples" / "step-000003.png") as grid:
        assert grid.mode == "RGBA"


def test_float_data_of_five_channels(train, tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = rng.random((20, 8, 8, 5), np.float32) * 30 - 10
    for row, image in enumerate(images):
        np.save(folder / f"{row:02d}.npy", image)
    options = {"dataset_name": None, "train_data_dir": folder, "validation_share": None, "max_train_steps": 2}
    run = train(tmp_path / "run", **USUAL | options | {"model_size": "tiny", "downsample_factor": 2})
    assert np.load(run / "samples" / "step-000002.npy")[0] == pytest.approx((images[0] + 10) / 30, abs=0.01)


def test_non_finite_says_which_row(fit, tmp_path):
    """Of the data set, not of what is left of it for training; there is no noise level to tell."""
    with pytest.raises(
        UserError, match=r"loss is not finite at step \d+: row \d+, .* \(rows of the data set\)\. Check"
    ):
        fit(tmp_path / "run", learning_rate=1e30, lr_warmup_steps=0, max_train_steps=30)


@pytest.mark.slow
def test_both_stages_with_the_default_recipes(train, tmp_path, capsys, monkeypatch):
    """As they are but for their length, and that of the training of the classifier whose features they use."""
    monkeypatch.setattr(classifier, "STEPS", 20)
    names = ("dataset_name", "resolution", "mixed_precision", "train_batch_size", "class_conditional")
    unset = dict.fromkeys([*USUAL, *names])
    short = {"max_train_steps": 40, "cache_dir": tmp_path / "cache"}
    train(tmp_path / "run", **unset | short | {"script": "train_autoencoder", "disc_start": 20})
    vae = AutoencoderKL.from_pretrained(tmp_path / "run" / "vae")
    assert vae.config.sample_size == 16
    printed = capsys.readouterr().out
    assert "loss: l1 of pixels + 1 x perceptual (classifier) + 1e-06 x KL + 0.5 x adversarial" in printed
    latents, report = read_metrics(tmp_path / "run")[-2:]
    assert report["eval_psnr"] > 10
    assert report["eval_rfd"] > 0
    assert latents["latent_scale"] == vae.config.scaling_factor
    assert "180 images of held out" in printed
    assert f"python train_unconditional.py --autoencoder {tmp_path / 'run'}" in printed
    words = {"config": "digits", "autoencoder": tmp_path / "run", "eval_batch_size": 4, "ddpm_num_inference_steps": 2}
    train(tmp_path / "second", **unset | short | {"script": "train_unconditional", "max_train_steps": 3} | words)
    assert re.search(
        r"1797 latents of 4 x 4 x 4, mean -?0\.\d\d, standard deviation (0\.9|1\.0)\d\n", capsys.readouterr().out
    )
    pipeline = LatentDiffusionPipeline.from_pretrained(tmp_path / "second")
    assert pipeline.num_classes == 10
    assert quiet(pipeline)(class_labels=3, num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_batch_size": 4, "resolution": 9}, "--resolution 9: not a multiple of the factor 2; take 8 or 10"),
        ({"perceptual": "lpips", "max_train_steps": 1}, "--perceptual lpips: "),
        ({"eval_features": "inception"}, "--eval_features inception: "),
        ({"validation_split": "test"}, "--validation_split and --validation_share: give one"),
        ({"overwrite_output_dir": True}, "--overwrite_output_dir: --pretrained_model_name_or_path .* is inside"),
        ({"ema_widths": [0.1, 0.2]}, "--ema_widths: takes one width here"),
        ({"push_to_hub": True}, "unknown flag --push_to_hub"),
    ],
)
def test_refusals_leave_the_folder(options, message, run, train):
    before = trained(run)
    start = {"pretrained_model_name_or_path": run} if "overwrite_output_dir" in options else {}
    with pytest.raises(UserError, match=message) as caught:
        train(
            run if start else run.parent / "new",
            **USUAL | {"downsample_factor": None if start else 2} | start | options,
        )
    assert "\n" not in str(caught.value)
    assert trained(run) == before
    assert not (run.parent / "new").exists()
