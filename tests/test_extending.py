"""The examples of docs/extending run as they stand there."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from pipelines import PixelDiffusionPipeline
from pipelines.backbones import BACKBONES
from snowmelt.data.embedded import EMBEDDED
from snowmelt.objectives import RECIPES
from snowmelt.objectives.weights import WEIGHTS
from snowmelt.tracking import read_metrics
from tests.pipelines.models import tiny_pipeline
from tests.test_readme import TINY

PAGES = Path(__file__).resolve().parent.parent / "docs/extending"
SHORT = [*TINY.split(), "--resolution", "16", "--ddpm_num_inference_steps", "1", "--logging_steps", "1"]


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Tables that examples add rows to are put back, and files land in a folder of the test."""
    before = [(table, dict(table)) for table in (BACKBONES, EMBEDDED, RECIPES, WEIGHTS)]
    monkeypatch.chdir(tmp_path)
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


def run(page: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict[str, Any]:
    """The names that a page's example leaves."""
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.S)
    monkeypatch.setattr(sys, "argv", ["example.py", *flags])
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # where dataclasses look for the names of their own
    exec(code, vars(module))
    return vars(module)


def test_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    run("objective.md", monkeypatch, "--objective", "v_sigmoid", "--output_dir", "run", *SHORT)
    assert len(read_metrics(Path("run"))) == 2
    other = ["--objective", "v", "--loss_weight", "sigmoid", "--output_dir", "other", *SHORT]
    run("objective.md", monkeypatch, *other)
    assert [line["loss"] for line in read_metrics(Path("run"))] == [
        line["loss"] for line in read_metrics(Path("other"))
    ]
    assert type(PixelDiffusionPipeline.from_pretrained("run").scheduler).__name__ == "DDPMScheduler"


def test_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_pipeline(FlowMatchEulerDiscreteScheduler()).save_pretrained("runs/flow")
    names = run("sampler.md", monkeypatch)
    assert len(names["images"]) == 4
    expected = [((8 - i) / 8) ** 2 for i in range(9)]
    assert names["pipeline"].scheduler.sigmas.tolist() == pytest.approx(expected)


def test_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("backbone.md", monkeypatch)
    made = names["pipeline"](8, num_inference_steps=20, output_type="pt").images
    assert made[:, :, 5:11, 5:11].mean() > made[:, :, :3].mean() + 0.2  # a white square, of sorts


def test_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--dataset_name", "digits", "--output_dir", "run", *SHORT]
    run("task.md", monkeypatch, *given)
    assert all(0 < line["brightness"] < 1 for line in read_metrics(Path("run")))
    run("task.md", monkeypatch, *given, "--max_train_steps", "3", "--resume_from_checkpoint", "latest")
    assert len(read_metrics(Path("run"))) == 3


def test_a_data_source(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--dataset_name", "gradients", "--class_conditional", "--output_dir", "run", *SHORT]
    run("data.md", monkeypatch, *given)
    assert PixelDiffusionPipeline.from_pretrained("run").id2label == {0: "left", 1: "right"}
