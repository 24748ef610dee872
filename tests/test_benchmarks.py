"""Benchmarks, from the command line to their table, with real scripts at tiny size."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks import autoencoders, latent_against_pixels, systems
from snowmelt.evaluation import classifier
from snowmelt.tracking import read_metrics
from tests.autoencoder.conftest import make_kl
from tests.conftest import run_in_process


@pytest.fixture
def scripts(monkeypatch):
    """The scripts that benchmarks start, run in this process; returns their names as they come."""
    started = []

    def start(words, check, cwd=None):
        started.append(Path(words[1]).stem)
        run_in_process([str(word) for word in words[2:]], started[-1])

    for module in ("scripts", "latent_against_pixels"):
        monkeypatch.setattr(f"benchmarks.{module}.subprocess", SimpleNamespace(run=start))
    monkeypatch.setattr(classifier, "STEPS", 10)
    return started


@pytest.fixture
def pictures(tmp_path):
    """Folders of noise in two classes, a training and a test split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 12)):
        for label in "ab":
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def test_systems(scripts, pictures, tiny_unet, tmp_path, capsys, monkeypatch):
    """A training of each to see its speed, one per seed, and a row whose distances are those of the reports."""
    given = recipe(
        tmp_path / "recipe.yaml",
        class_conditional=True,
        model_config_name_or_path=str(tiny_unet),
        eval_batch_size=1,
        mixed_precision="no",
        logging_steps=1,
        save_images_epochs=0,
    )
    monkeypatch.setattr(systems, "SPEED_STEPS", 2)
    chain = replace(systems.SYSTEMS["DDPM, DDIM"], sampler=("ddim:2", "ddpm:3"))
    monkeypatch.setitem(systems.SYSTEMS, "DDPM, DDIM", chain)
    words = [
        "--systems",
        "DDPM, DDIM",
        "--seeds",
        "1",
        "2",
        "3",
        "--dataset_name",
        str(pictures),
        "--config",
        str(given),
    ]
    words += ["--resolution", "8", "--num_images", "20", "--likelihood_images", "2", "--minutes", "0.01"]
    words += ["--train_batch_size", "5", "--output_dir", str(tmp_path / "out")]
    with patch.object(sys, "argv", ["systems", *words]):
        systems.main()
    assert scripts == ["train_unconditional", *["train_unconditional", "evaluate"] * 3, "evaluate"]
    reports = [json.loads((tmp_path / f"out/DDPM-DDIM-{seed}/report/report.json").read_text()) for seed in (1, 2, 3)]
    distances = [report["results"][0]["value"] for report in reports]
    name, steps, first, another, *_, bits = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert name == "DDPM, DDIM"
    assert int(steps) == read_metrics(tmp_path / "out/DDPM-DDIM-2")[-1]["step"] > 0
    assert len(set(distances)) == 3
    median, *all_of_them = [float(word.strip("*(),")) for word in first.split()[:-1]]
    assert all_of_them == [round(distance, 2) for distance in distances]
    assert median == sorted(all_of_them)[1]
    assert another.endswith(" ddpm:3")
    assert bits.endswith(" (bound)")


def recipe(path: Path, **options: object) -> Path:
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.mark.slow
def test_autoencoders(scripts, pictures, tiny_unet, tmp_path, capsys):
    common = {"train_batch_size": 8, "eval_batch_size": 1, "save_images_epochs": 0, "mixed_precision": "no"}
    small = {"model_size": "tiny", "downsample_factor": 2, "disc_start": 1, "disc_width": 4}
    first = recipe(tmp_path / "first.yaml", **common, **small, validation_split="test")
    second = recipe(tmp_path / "second.yaml", **common, ddpm_num_inference_steps=1, class_conditional=True)
    words = ["--variants", "kl, EQ", "--dataset_name", str(pictures), "--resolution", "12", "--num_images", "10"]
    words += ["--config", str(first), "--autoencoder_steps", "2", "--latent_config", str(second), "--steps", "6"]
    words += ["--output_dir", str(tmp_path / "out"), "--num_inference_steps", "2"]
    words += ["--model_config_name_or_path", str(tiny_unet)]  # of train_unconditional.py
    with patch.object(sys, "argv", ["autoencoders", *words]):
        autoencoders.main()
    assert scripts == ["train_autoencoder", "train_unconditional", "evaluate"]
    header, line, row = capsys.readouterr().out.splitlines()[-3:]
    assert header == "| autoencoder | PSNR | SSIM | rFD | FD, 2 steps | 4 steps | 6 steps |"
    assert header.count("|") == line.count("|") == row.count("|")

    folder = tmp_path / "out" / "kl-EQ"
    given = yaml.safe_load((folder / "autoencoder" / "config.yaml").read_text())
    assert (given["regularization"], given["equivariance_prob"]) == ("kl", 0.5)
    assert AutoencoderKL.from_pretrained(folder / "model" / "vae").config.latent_channels == 2
    report = json.loads((folder / "model" / "report" / "report.json").read_text())
    last = read_metrics(folder / "autoencoder")[-1]
    distances = [point["results"][0]["value"] for point in report["sweep"]] + [report["results"][0]["value"]]
    assert len(set(distances)) == 3
    expected = [last["eval_psnr"], last["eval_ssim"], last["eval_rfd"], *distances]
    assert row == "| kl, EQ | " + " | ".join(f"{value:.3f}" for value in expected) + " |"

    with patch.object(sys, "argv", ["autoencoders", *words]):  # all is there
        autoencoders.main()
    assert len(scripts) == 3
    assert capsys.readouterr().out.splitlines()[-1] == row


@pytest.mark.slow
def test_latent_against_pixels_over_training(scripts, pictures, tmp_path, capsys):
    make_kl().save_pretrained(tmp_path / "vae")
    words = ["--autoencoder", str(tmp_path / "vae"), "--dataset_name", str(pictures), "--resolution", "8"]
    words += ["--max_train_steps", "4", "--curve", "2", "--num_images", "10", "--num_inference_steps", "1"]
    words += ["--batches", "1", "--output_dir", str(tmp_path / "out")]
    words += ["--ddpm_num_inference_steps", "1", "--eval_batch_size", "1"]  # of train_unconditional.py
    with patch.object(sys, "argv", ["latent_against_pixels", *words]):
        latent_against_pixels.main()
    assert scripts == ["train_unconditional", "train_unconditional", "evaluate"] * 2
    table = capsys.readouterr().out.split("| | pixels | latents | latents / pixels |")[1]
    rows = dict(line[2:].split(" | ", 1) for line in table.splitlines() if line.startswith("| "))
    assert rows["optimizer steps"] == "4 | 4 | 1.00 |"
    (after,) = [name for name in rows if "after 1 of 2 parts" in name]
    for column, name in enumerate(("pixels", "latents")):
        assert {p.name for p in (tmp_path / "out" / name).glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
        report = json.loads((tmp_path / "out" / name / "report" / "report.json").read_text())
        (point,) = report["sweep"]
        assert point["value"] == 2
        assert rows[after].split(" | ")[column] == f"{point['results'][0]['value']:.4g}"
