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
from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from benchmarks import (
    autoencoders,
    chains,
    couplings,
    ddim_against_ddpm,
    few_steps,
    image_to_image,
    inpainting,
    latent_against_pixels,
    peers,
    predictor_corrector,
    sampling_speed,
    speedrun,
    strokes,
    systems,
    what_pays,
)
from snowmelt.evaluation import classifier
from snowmelt.tracking import read_metrics
from tests.autoencoder.conftest import make_kl
from tests.conftest import run_in_process
from tests.pipelines.models import tiny_pipeline


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


def test_systems(scripts, common, tmp_path, capsys, monkeypatch):
    """A training of each to see its speed, one per seed, and a row whose distances are those of the reports."""
    monkeypatch.setattr("benchmarks.scripts.SPEED_STEPS", 2)
    chain = replace(systems.SYSTEMS["DDPM, DDIM"], sampler=("ddim:2", "ddpm:3"))
    monkeypatch.setitem(systems.SYSTEMS, "DDPM, DDIM", chain)
    words = [*common, "--systems", "DDPM, DDIM", "--seeds", "1", "2", "3", "--likelihood_images", "2"]
    words += ["--minutes", "0.01", "--train_batch_size", "5"]
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


@pytest.fixture
def common(pictures, tiny_unet, tmp_path) -> list[str]:
    """What benchmarks of trainings by a recipe are given here."""
    given = recipe(
        tmp_path / "recipe.yaml",
        class_conditional=True,
        model_config_name_or_path=str(tiny_unet),
        eval_batch_size=1,
        mixed_precision="no",
        logging_steps=1,
        train_batch_size=5,
        save_images_epochs=0,
    )
    words = ["--dataset_name", str(pictures), "--config", str(given), "--resolution", "8", "--num_images", "20"]
    return [*words, "--output_dir", str(tmp_path / "out")]


def table(printed: str, first: str) -> list[list[str]]:
    """Rows of the table whose first column is called so."""
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line.strip("| ").split(" | "))
    return rows


@pytest.mark.slow
def test_chains(scripts, common, tmp_path, capsys, monkeypatch):
    """Betas that end in the same noise, whatever their number, and the variance that was learned."""
    monkeypatch.setattr(chains, "FEW", (2, 3))
    words = [*common, "--chains", "T 250", "cosine", "--steps", "3", "--most_steps", "4", "--likelihood_images", "2"]
    with patch.object(sys, "argv", ["chains", *words]):
        chains.main()
    ends = [chains_scheduler(tmp_path / "out" / name).alphas_cumprod[-1].log().item() for name in ("T-250", "cosine")]
    assert -12 < ends[0] < -9
    assert ends[1] < -15
    rows = table(capsys.readouterr().out, "chain")
    assert [row[0] for row in rows] == ["T 250", "cosine"]
    report = json.loads((tmp_path / "out/cosine/report/report.json").read_text())
    assert rows[1][2:4] == [f"{point['results'][0]['value']:.2f}" for point in report["sweep"][:2]]
    assert "(4 steps, " in rows[1][4]


def chains_scheduler(folder: Path) -> DDPMScheduler:
    return DDPMScheduler.from_pretrained(folder / "scheduler")


@pytest.mark.slow
def test_predictor_corrector(scripts, common, capsys):
    words = [*common, "--sdes", "vp", "--nfe", "4", "--tolerances", "0.1", "--steps", "2"]
    with patch.object(sys, "argv", ["predictor_corrector", *words]):
        predictor_corrector.main()
    assert scripts == ["train_unconditional", "evaluate"]
    at_four, ode = table(capsys.readouterr().out, "SDE")
    assert at_four[:2] == ["vp", "4"]
    assert len(set(at_four[2:5])) == 3
    assert int(ode[1]) > 4


@pytest.mark.slow
def test_couplings(scripts, common, tmp_path, capsys):
    """A second stage goes on from the first, which is trained for it."""
    words = [*common, "--variants", "reflow", "ot", "--steps", "2", "--reflow_pairs", "20"]
    with patch.object(sys, "argv", ["couplings", *words]):
        couplings.main()
    assert scripts == ["train_unconditional", "evaluate"] * 3
    rows = table(capsys.readouterr().out, "variant")
    assert [row[0] for row in rows] == ["reflow", "ot"]
    given = yaml.safe_load((tmp_path / "out/reflow/config.yaml").read_text())
    assert given["reflow_from"] == str(tmp_path / "out/flow")


@pytest.mark.slow
def test_few_steps(scripts, common, tmp_path, capsys, monkeypatch):
    """Two stages share the time of one; each row is over the flow's distance."""
    monkeypatch.setattr("benchmarks.scripts.SPEED_STEPS", 2)
    words = [*common, "--variants", "flow, then soflow of it", "--minutes", "0.01", "--train_batch_size", "5"]
    with patch.object(sys, "argv", ["few_steps", *words]):
        few_steps.main()
    assert scripts.count("evaluate") == 2
    (flow, row) = table(capsys.readouterr().out, "model")
    base = float(flow[1].split(",")[0])
    assert all(
        float(cell.split(", ")[1]) == pytest.approx(float(cell.split(", ")[0]) / base, rel=0.05) for cell in row[1:4]
    )
    given = yaml.safe_load((tmp_path / "out/flow-then-soflow-of-it-0/config.yaml").read_text())
    assert given["teacher"] == given["pretrained_model_name_or_path"] == str(tmp_path / "out/flow-half-0")
    whole, half = (read_metrics(tmp_path / f"out/{name}-0")[-1]["step"] for name in ("flow", "flow-half"))
    assert 1 <= half <= whole


@pytest.mark.slow
def test_ddim_against_ddpm(pictures, tmp_path, capsys, monkeypatch):
    """A row per eta; at eta 1 and 0 they differ, and so do ways to clip."""
    monkeypatch.setattr(classifier, "STEPS", 10)
    tiny_pipeline(DDPMScheduler(timestep_spacing="trailing")).save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--dataset_name", str(pictures), "--num_images", "12"]
    with patch.object(sys, "argv", ["ddim", *words, "--steps", "2", "3", "--most_steps", "5"]):
        ddim_against_ddpm.main()
    printed = capsys.readouterr().out
    etas = table(printed, "eta")
    assert [row[0] for row in etas] == ["0", "0.2", "0.5", "1"]
    assert len({row[1] for row in etas}) > 1
    ways = table(printed, "at 50 steps, eta 0")
    assert len({row[1] for row in ways[:3]}) == 3
    assert len(table(printed, "DDPM, 5 steps")) == 2


@pytest.mark.slow
def test_inpainting(pictures, tmp_path, capsys, monkeypatch):
    """Images as they were are at no distance; errors are of the pixels that are made."""
    monkeypatch.setattr(classifier, "STEPS", 10)
    tiny_pipeline(FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--dataset_name", str(pictures), "--num_images", "12"]
    words += ["--num_inference_steps", "4", "--jump_length", "1", "--jumps", "1", "2"]
    with patch.object(sys, "argv", ["inpainting", *words, "--output_dir", str(tmp_path / "out")]):
        inpainting.main()
    rows = table(capsys.readouterr().out, "made")
    assert rows[0][2:4] == ["0.0000", "0.000"]
    assert len(rows) == 1 + 4 * 3
    assert all(float(row[2]) > 0.01 for row in rows[1:])
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert inpainting.masks(16)["centre"].float().mean() == pytest.approx(0.2, abs=0.1)


@pytest.mark.slow
def test_strokes(pictures, tmp_path, capsys, monkeypatch):
    """Nothing of the strokes is changed at strength 0."""
    monkeypatch.setattr(classifier, "STEPS", 10)
    tiny_pipeline(FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--dataset_name", str(pictures), "--num_images", "12"]
    words += ["--num_inference_steps", "4", "--strengths", "0", "0.5", "--output_dir", str(tmp_path / "out")]
    with patch.object(sys, "argv", ["strokes", *words]):
        strokes.main()
    rows = table(capsys.readouterr().out, "image")
    assert [row[0] for row in rows] == ["strokes", "strength 0", "strength 0.5", "images"]
    assert rows[0][1:] == rows[1][1:]
    assert float(rows[2][1]) > 0.05
    assert (tmp_path / "out" / "strokes.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["lowres:2", "mask"])
def test_image_to_image(condition, scripts, pictures, tmp_path, capsys):
    """The originals are at no distance; a second call trains nothing."""
    usual = {"train_batch_size": 4, "learning_rate": 1e-3, "resolution": 16, "model_size": "tiny", "center_crop": True}
    path = recipe(tmp_path / "recipe.yaml", **usual, eval_batch_size=1, save_images_epochs=0, mixed_precision="no")
    words = ["--dataset_name", str(pictures), "--config", str(path), "--steps", "2", "--num_images", "12"]
    words += ["--condition", condition, "--num_inference_steps", "2", "--output_dir", str(tmp_path / "out")]
    words += ["--ddpm_num_inference_steps", "2"]
    found = []
    for _ in range(2):
        with patch.object(sys, "argv", ["image_to_image", *words]):
            image_to_image.main()
        found.append(table(capsys.readouterr().out, "image"))
    assert [row[0] for row in found[0]] == ["given", "regression", "a sample", "mean of 8", "originals"]
    assert found[0][4][1:3] == ["inf", "1.000"]
    assert found[0] == found[1]
    assert scripts == ["train_unconditional"]
    assert (tmp_path / "out" / "pairs.png").exists()


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


@pytest.mark.slow
def test_what_pays(scripts, common, tmp_path, capsys, monkeypatch):
    """Ratios of each seed to the recipe's own, whose row is first."""
    monkeypatch.setattr(what_pays, "BATCH", 5)
    words = [*common, "--factors", "Muon", "v prediction", "--seeds", "1", "2", "--steps", "2"]
    with patch.object(sys, "argv", ["what_pays", *words]):
        what_pays.main()
    rows = table("| | |\n" + capsys.readouterr().out, "changed")
    assert [row[0] for row in rows] == ["the recipe", "Muon", "v prediction"]
    found = {}
    for name in ("the-recipe", "Muon"):
        reports = [json.loads((tmp_path / f"out/{name}-{seed}/report/report.json").read_text()) for seed in (1, 2)]
        found[name] = [report["results"][0]["value"] for report in reports]
    ratios = sorted(own / base for own, base in zip(found["Muon"], found["the-recipe"], strict=True))
    assert rows[0][2] == "1.00 (1.00 to 1.00)"
    assert rows[1][2] == f"{sum(ratios) / 2:.2f} ({ratios[0]:.2f} to {ratios[1]:.2f})"
    assert rows[1][1] == f"{sum(found['Muon']) / 2:.2f}"


@pytest.mark.slow
def test_sampling_speed(scripts, common, tmp_path, capsys, monkeypatch):
    """Rows of diffusers' pipelines and of ours, each with the distance of its model's report."""
    monkeypatch.setattr("benchmarks.scripts.SPEED_STEPS", 2)
    monkeypatch.setattr(sampling_speed, "BATCH", 5)
    monkeypatch.setattr(sampling_speed, "SEARCHED", (2,))
    rows = [sampling_speed.ROWS[i]._replace(steps=2, images=2) for i in (0, 1, 3, 5, -1)]
    monkeypatch.setattr(sampling_speed, "ROWS", rows)
    config = Path(common[common.index("--config") + 1])
    values = {k: v for k, v in yaml.safe_load(config.read_text()).items() if k != "model_config_name_or_path"}
    config.write_text(yaml.safe_dump(values | {"model_size": "tiny"}))
    with patch.object(sys, "argv", ["sampling_speed", *common, "--minutes", "0.001", "--rounds", "2"]):
        sampling_speed.main()
    assert scripts.count("generate") == 1
    table_of = table(capsys.readouterr().out, "sampled by")
    assert [row[0] for row in table_of] == [row.title for row in rows]
    assert table_of[0][0] == "diffusers' DDPMPipeline"
    assert table_of[1][4] == "1.00 (1.00 to 1.00)"
    report = json.loads((tmp_path / "out/flow-searched/report-dpmsolver++-2/report.json").read_text())
    assert table_of[3][2] == f"{report['results'][0]['value']:.2f}"
    kept = json.loads((tmp_path / "out/flow-searched/scheduler/scheduler_config.json").read_text())
    assert len(kept["searched_timesteps"]["2"]) == 2


@pytest.mark.slow
def test_peers(scripts, common, tmp_path, capsys, monkeypatch):
    """A peer sees batches of 16 of the training split, and stands with its own samplers beside the median of ours."""
    monkeypatch.setattr(peers, "SAMPLERS", {"DDIM": 2, "ancestral": 3})
    words = [
        *common,
        "--contenders",
        "diffusers",
        "--minutes",
        "0.002",
        "--ours",
        "0.002",
        "--options",
        "--ema_max_decay 0.9",
    ]
    with patch.object(sys, "argv", ["peers", *words]):
        peers.main()
    assert scripts == ["train_unconditional", "evaluate"] * 3
    peer = json.loads((tmp_path / "out/diffusers.json").read_text())
    assert peer["images"] == 16 * peer["steps"]
    assert peer["minutes"] >= 0.002
    found = [json.loads((tmp_path / f"out/ours-{seed}.json").read_text()) for seed in range(3)]
    median = sorted(one["distances"]["DPM-Solver++, 20 steps"] for one in found)[1]
    theirs, ours = capsys.readouterr().out.splitlines()[-2:]
    assert (
        theirs.split(" | ")[-1].split("; ")[1] == f"{peer['distances']['ancestral, 3 steps']:.3f} ancestral, 3 steps |"
    )
    assert ours.split(" | ")[-1].startswith(f"{median:.3f} (")
    assert Image.open(tmp_path / "out/diffusers-DDIM.png").size[0] > 8


@pytest.mark.slow
def test_speedrun(scripts, tmp_path, capsys, monkeypatch):
    """A row where the median of the seeds reaches the target, with the options as they were typed, else none."""
    names = {"ROWS": "rows.jsonl", "PAGE": "page.md", "PLOT": "plot.png"}
    for name, file in names.items():
        monkeypatch.setattr(speedrun, name, tmp_path / file)
    (tmp_path / "page.md").write_text(f"# Rows\n{speedrun.BEGIN}\nold\n{speedrun.END}\nEnd.\n")
    qualities = iter([0.9, 0.97, 0.98, 0.1, 0.99, 0.2])
    track = speedrun.TRACKS["digits"]._replace(measure=lambda folder, args: next(qualities))
    monkeypatch.setitem(speedrun.TRACKS, "digits", track)
    short = (
        "--max_train_steps 2 --train_batch_size 5 --eval_batch_size 1 --ddpm_num_inference_steps 1 --logging_steps 1"
    )
    for title, status in (("first", None), ("second", "missed")):
        words = ["digits", "--title", title, "--options", short, "--output_dir", str(tmp_path / "out")]
        with patch.object(sys, "argv", ["speedrun", *words]):
            if status is None:
                speedrun.main()
            else:
                with pytest.raises(SystemExit, match=status):
                    speedrun.main()
    (line,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["title"], row["options"], row["quality"], row["steps"], row["images"]) == ("first", short, 0.97, 2, 10)
    seconds = [
        sum(5 / m["images_per_second"] for m in read_metrics(tmp_path / f"out/digits/first-{s}")) for s in range(3)
    ]
    assert row["each_minutes"] == pytest.approx([s / 60 for s in seconds])
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Rows\n")
    assert page.endswith("End.\n")
    assert "| first, `--max_train_steps 2" in page
    assert "| 97.0% |" in page
    assert "old" not in page
    assert (tmp_path / "plot.png").is_file()
