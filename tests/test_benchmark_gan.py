"""benchmarks/gan.py from its first training to its table, at tiny size; its networks."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest
import torch
from accelerate.state import PartialState

from benchmarks import gan
from snowmelt.evaluation import classifier
from tests.conftest import run_in_process


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Run it on the digits; returns the scripts that it ran."""
    started: list[str] = []

    def start(words: list[object], check: bool) -> None:
        started.append(Path(str(words[1])).stem)
        run_in_process([str(word) for word in words[2:]], started[-1])

    def benchmark(*more: str) -> list[str]:
        words = "--config digits --dataset_name digits --held_out_split train[:10%] --resolution 8 --steps 2"
        words += f" --batches 1 --num_images 24 --num_inference_steps 2 --output_dir {tmp_path}"
        monkeypatch.setattr(sys, "argv", ["gan.py", *words.split(), *more])
        started.clear()
        gan.main()
        return started

    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setattr(classifier, "STEPS", 60)
    monkeypatch.setattr(gan, "STANDING", 2)
    yield benchmark
    PartialState._reset_state()


@pytest.mark.slow
def test_runs(benchmark: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Both are trained for one time and judged by the same metrics; what is there isn't measured again."""
    assert benchmark("--seeds", "3") == ["train_unconditional", "evaluate"]
    printed = capsys.readouterr().out
    flow, found = (json.loads((tmp_path / f"{name}-3.json").read_text()) for name in ("flow", "gan"))
    assert set(found) == set(gan.COLUMNS)
    assert set(flow) == {*gan.COLUMNS, "real"}
    assert flow["steps"] == 2
    assert found["steps"] >= 1
    lines = [json.loads(line) for line in (tmp_path / "flow-3/metrics.jsonl").read_text().splitlines()]
    assert flow["seconds"] == pytest.approx(2 * 64 / lines[-1]["images_per_second"])  # two steps, one line
    assert found["seconds"] >= flow["seconds"]
    assert flow["real"]["fd"] < min(flow["fd"], found["fd"])
    assert f"| GAN | {found['fd']:.4g} ({found['fd']:.4g} to {found['fd']:.4g}) |" in printed
    grids = [PIL.Image.open(tmp_path / f"{name}-3.png") for name in ("flow", "gan")]
    assert grids[0].size == grids[1].size

    assert benchmark("--seeds", "3") == []
    assert capsys.readouterr().out.strip() == printed[printed.rindex("24 samples;") :].strip()
    with pytest.raises(SystemExit, match="other arguments"):
        benchmark("--seeds", "3", "--minutes", "1")


@pytest.mark.parametrize(("side", "base"), [(8, 4), (28, 7), (32, 4)])
def test_networks(side: int, base: int) -> None:
    """At most as many parameters as asked for, at any side; labels change what either network says."""
    assert side >> gan.halvings(side) == base
    generator, discriminator = gan.make_gan(400_000, 3, side, 10)
    assert 320_000 < gan.parameters(generator, discriminator) <= 400_000
    noise, labels = torch.randn(1, gan.LATENT, device=gan.DEVICE).expand(2, -1), torch.arange(2, device=gan.DEVICE)
    images = generator.eval()(noise, labels)
    assert images.shape == (2, 3, side, side)
    assert not torch.equal(images[0], images[1])
    logits = discriminator(images[:1].expand(2, -1, -1, -1), labels)
    assert logits.shape == (2,)
    assert logits[0] != logits[1]
