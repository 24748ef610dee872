"""evaluate.py on models that make images of given ones."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import PartialState
from diffusers import FlowMatchEulerDiscreteScheduler

import evaluate
from pipelines import ImageToImagePipeline, image_generators
from snowmelt.data.sources import load_images
from snowmelt.errors import UserError
from snowmelt.evaluation import classifier
from snowmelt.image_conditions import ConditionImages
from snowmelt.options import DataOptions
from snowmelt.publishing.export import export
from snowmelt.spaces import PixelSpace
from tests.pipelines.models import quiet, tiny_pipeline
from tests.pipelines.test_image_conditions import unet
from tests.test_train_image_to_image import pairs  # noqa: F401 (a fixture)

DIGITS = {"dataset_name": "digits", "split": "train[:600]", "held_out_split": "train[600:640]"}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(classifier, "STEPS", 20)
    yield
    patch.undo()


@pytest.fixture
def report(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run evaluate.py on a pipeline, and read what it reports."""

    def run(pipeline: Any, **options: Any) -> dict[str, Any]:
        pipeline.save_pretrained(tmp_path / "model")
        usual = {"model": tmp_path / "model", "num_images": 30, "batch_size": 12, "num_inference_steps": 2}
        given = usual | {"cache_dir": cache_dir, "output": tmp_path / "report"} | options
        words = [w for name, v in given.items() for w in (f"--{name}", *(v if isinstance(v, list) else [str(v)]))]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
        PartialState._reset_state()
        evaluate.main()
        found: dict[str, Any] = json.loads((tmp_path / "report" / "report.json").read_text())
        return found

    return run


def values(results: list[dict[str, Any]]) -> dict[str, float]:
    return {result["metric"]: result["value"] for result in results}


def test_samples_are_compared_with_their_originals(report, cache_dir, tmp_path):
    """PSNR by its formula; classes are those of the originals."""
    pipeline = quiet(
        ImageToImagePipeline(
            unet(1, 1, 11),
            FlowMatchEulerDiscreteScheduler(),
            "noise:0.2",
            1,
            id2label={i: str(i) for i in range(10)},
        )
    )
    found = report(pipeline, **DIGITS, metrics=["fd", "psnr", "ssim", "accuracy"], sweep="num_inference_steps=3")
    options = DataOptions(
        dataset_name="digits", split="train[600:640]", resolution=16, center_crop=True, cache_dir=str(cache_dir)
    )
    cache = load_images(options)
    rows = np.arange(30) * 40 // 30
    made_of = ConditionImages(pipeline.condition, PixelSpace(cache.value_range), 1)
    given, originals = made_of.pairs(cache, rows, 0)
    assert cache.labels is not None
    labels = cache.labels[rows].tolist()

    def samples(steps: int) -> torch.Tensor:
        call = {"num_inference_steps": steps, "output_type": "pt", "generator": image_generators(0, range(30))}
        made: torch.Tensor = pipeline(**given, class_labels=labels, **call).images
        return (made * 255).round() / 255

    for results, steps in ((found["results"], 2), (found["sweep"][0]["results"], 3)):
        error = (samples(steps) - originals).square().mean((1, 2, 3))
        assert values(results)["psnr"] == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-3)
    assert {"fd", "ssim", "accuracy"} <= values(found["results"]).keys()
    assert found["dataset"]["given_images"] == "train[600:640]"
    grid = PIL.Image.open(tmp_path / "report" / "samples.png")
    assert grid.width == 9 * (16 + 2) - 2
    (tmp_path / "out").mkdir()
    export(tmp_path / "model", tmp_path / "out", "a/b", report=tmp_path / "report")
    assert "PSNR to the originals" in (tmp_path / "out" / "README.md").read_text()


def test_columns(report, pairs):  # noqa: F811
    """Of the held-out split, with as many channels as the model takes."""
    data = {"dataset_name": pairs, "image_column": "image", "held_out_split": "test"}
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = ImageToImagePipeline(unet(3, 1), scheduler, "column:map", 1)
    found = report(pipeline, **data, metrics=["psnr", "ssim"], num_images=70)
    assert found["num_images"] == 70
    assert set(values(found["results"])) == {"psnr", "ssim"}
    with pytest.raises(UserError, match="^--model: takes 3 channels of column map, which has 1"):
        report(ImageToImagePipeline(unet(3, 3), scheduler, "column:map", 3), **data, metrics="psnr", num_images=4)


@pytest.mark.parametrize(
    ("condition", "metric", "error"),
    [
        ("mask", "bound", "--metrics bound: is of models without a condition or by class; leave it out"),
        (None, "psnr", "--metrics psnr: is of images made of others, and the model takes none; leave it out"),
    ],
)
def test_metrics_of_other_models(condition, metric, error, report):
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = (
        quiet(ImageToImagePipeline(unet(1, 2), scheduler, condition, 2)) if condition else tiny_pipeline(scheduler)
    )
    with pytest.raises(UserError, match="^" + error):
        report(pipeline, **DIGITS, metrics=metric)
