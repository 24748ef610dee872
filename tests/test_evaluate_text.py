"""evaluate.py on an untrained model of texts: samples by the captions of real images."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import PartialState

import evaluate
from pipelines import TextToImagePipeline, image_generators
from snowmelt.data.embedded import EMBEDDED
from snowmelt.data.scenes.dataset import scenes
from snowmelt.errors import UserError
from snowmelt.evaluation import generation
from snowmelt.evaluation.alignment import pipeline_draw, scene_alignment
from snowmelt.evaluation.clip import ClipScore
from snowmelt.evaluation.features import HubFeatures, NoFeatures
from snowmelt.evaluation.generation import captioned_rows, draw, rounded
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.loading import SamplerOptions
from snowmelt.publishing.export import export
from tests.evaluation.vision import save_clip, save_vision_model
from tests.pipelines.models import quiet, tiny_pipeline
from tests.pipelines.test_text2img import make

CPU = torch.device("cpu")
WORDS = ["a red circle", "a blue square at the left", "a cat", "a dog and a cat"]
TRAIN, TEST, COUNT = 14, 9, 6


def pictures(seed: int, count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model, one without, images with captions and without, and the models that look at them."""
    root = tmp_path_factory.mktemp("place")
    make(latent=False).save_pretrained(root / "model")
    tiny_pipeline(channels=3).save_pretrained(root / "plain")
    parts = {}
    for seed, (name, count) in enumerate({"train": TRAIN, "test": TEST}.items()):
        images = [PIL.Image.fromarray(image) for image in pictures(seed, count).numpy()]
        texts = [[f"{WORDS[i % 4]} {i}", "another"] for i in range(count)]
        parts[name] = datasets.Dataset.from_dict({"image": images, "caption": texts})
    datasets.DatasetDict(parts).save_to_disk(root / "data")
    parts["train"].remove_columns("caption").save_to_disk(root / "silent")
    save_vision_model("vit", root / "vit")
    save_clip(root / "clip")
    return root


@pytest.fixture
def run(place: Path, cache_dir: Path) -> Callable[..., dict]:
    """Evaluate in this process, and read the report."""

    def run(output: Path, **options: object) -> dict:
        usual = {"model": place / "model", "dataset_name": place / "data", "cache_dir": cache_dir}
        usual |= {"held_out_split": "test", "features": place / "vit", "clip_model_name_or_path": place / "clip"}
        usual |= {"num_images": COUNT, "num_inference_steps": 2, "batch_size": 4, "metrics": ["fd", "clip_score"]}
        words = []
        for name, value in (usual | options | {"output": output}).items():
            if value is not None:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        with patch.object(sys, "argv", ["evaluate.py", *words]):
            PartialState._reset_state()
            evaluate.main()
        return json.loads((output / "report.json").read_text())

    return run


@pytest.fixture
def pipeline(place: Path) -> TextToImagePipeline:
    """The model; its tokenizer would come out otherwise if it were made anew."""
    return quiet(TextToImagePipeline.from_pretrained(place / "model"))


def values(results: list[dict]) -> dict[str, float]:
    return {result["metric"]: result["value"] for result in results}


@pytest.mark.parametrize("split", ["test", None])
def test_samples_are_of_the_captions_of_held_out_images(
    split: str | None, run: Callable[..., dict], pipeline: TextToImagePipeline, place: Path, tmp_path: Path
) -> None:
    """Or, without such, of those that samples are compared with; image i of (seed, i), at 8 bits."""
    report = run(tmp_path / "a", held_out_split=split, seed=3, sweep=["guidance_scale=3,1.25"])
    seed, count = (1, TEST) if split else (0, TRAIN)
    rows = [i * count // COUNT for i in range(COUNT)]
    prompts = [f"{WORDS[row % 4]} {row}" for row in rows]
    images = pipeline(
        prompts, num_inference_steps=2, generator=image_generators(3, range(COUNT)), output_type="pt"
    ).images
    images = (images * 255).round() / 255
    features, clip = HubFeatures(str(place / "vit"), 3, CPU), ClipScore(str(place / "clip"), 3, CPU)
    real = pictures(0, TRAIN).permute(0, 3, 1, 2) / 255
    found = values(report["results"])
    assert found["fd"] == pytest.approx(FrechetDistance(features(real))(features(images)), rel=1e-3)
    assert found["clip_score"] == pytest.approx(clip(images, prompts).mean().item(), rel=1e-4)
    others = pictures(seed, count)[rows].permute(0, 3, 1, 2) / 255
    scored = [r for r in report["baseline"] if r["metric"] == "clip_score"]
    assert [r["value"] for r in scored] == [pytest.approx(clip(others, prompts).mean().item(), rel=1e-4)]
    assert scored[0]["name"].endswith(f", {COUNT} images of {split or 'train'}")
    assert report["dataset"]["captions"] == (split or "train")
    assert report["sampler"]["guidance_scale"] == 1.25  # the pipeline's own
    other, same = (values(point["results"]) for point in report["sweep"])
    assert same == pytest.approx(found, rel=1e-3)
    assert other["fd"] != pytest.approx(found["fd"], rel=1e-3)
    assert f"| samples | {COUNT}, of captions of split {split or 'train'} |" in (tmp_path / "a/report.md").read_text()


def test_which_captions_are_taken() -> None:
    """All in order and again; of more than are needed some from everywhere, in order."""
    assert captioned_rows(3, 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert captioned_rows(4, 4).tolist() == [0, 1, 2, 3]
    rows = captioned_rows(10, 4)
    assert rows.tolist() == [0, 2, 5, 7]


def test_the_card_has_the_scores(run: Callable[..., dict], place: Path, tmp_path: Path) -> None:
    run(tmp_path / "report", metrics=["clip_score"], features="classifier")  # which isn't made: nothing compares
    (tmp_path / "export").mkdir()
    export(place / "model", tmp_path / "export", "me/it", report=tmp_path / "report", dataset_name="me/data")
    card = (tmp_path / "export/README.md").read_text()
    assert "| CLIP score (clip (CLIPModel, weights" in card
    assert f"{COUNT} samples, by captions of split `test`, against {TRAIN} images of `me/data`, split `train`" in card
    assert "Features" not in card


def test_captions_that_are_cut(run: Callable[..., dict], tmp_path: Path) -> None:
    """They are counted in the report; the pipeline's line for each isn't shown."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        report = run(tmp_path / "a", metrics=["clip_score"])
    assert [w for w in report["warnings"] if "captions are cut to the 8 tokens that the model reads" in w]
    assert not [w for w in shown if "tokens cut" in str(w.message)]


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDED, "scenes", lambda: scenes(24))


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.filterwarnings("ignore:prompt of")
def test_alignment(run: Callable[..., dict], pipeline: TextToImagePipeline, tmp_path: Path) -> None:
    """It is that of the pipeline by itself, and measured with each value of a sweep."""
    options = {"dataset_name": "scenes", "held_out_split": None, "metrics": ["alignment"], "features": None}
    judge = "snowmelt.evaluation.alignment.judge"  # untrained, nothing is right: judged by the sum of pixels instead
    with patch(judge, lambda prompt, shown: {"all": shown}), patch(judge.replace("judge", "read_scene"), parity):
        report = run(tmp_path / "a", **options, num_images=24, sweep=["guidance_scale=1,4"])
        expected = [
            scene_alignment(pipeline_draw(pipeline, 0, num_inference_steps=2, **scale), count=12, batch_size=4)
            for scale in ({}, {"guidance_scale": 1.0}, {"guidance_scale": 4.0})
        ]
    found = [values(results) for results in (report["results"], *(point["results"] for point in report["sweep"]))]
    names = {"alignment_seen": "seen", "alignment_held_out": "held out"}
    right = [{name: one[key].attributes["all"] for name, key in names.items()} for one in expected]
    assert found == right
    assert 0 < right[0]["alignment_seen"] < 1
    error = (right[0]["alignment_seen"] * (1 - right[0]["alignment_seen"]) / 12) ** 0.5
    assert report["results"][0]["error"] == pytest.approx(error)
    assert report["features"] == {"name": "none"}


def parity(image: np.ndarray) -> bool:
    return bool(image.sum() % 2)


def test_processes_draw_the_same(monkeypatch: pytest.MonkeyPatch, pipeline: TextToImagePipeline, place: Path) -> None:
    """By batches, which each has one process draw and score, however many they are."""
    clip, prompts = ClipScore(str(place / "clip"), 3, CPU), [f"{word} {i}" for i, word in enumerate(WORDS + WORDS[:1])]
    options = SamplerOptions(num_inference_steps=1, batch_size=2)
    shared: list = []

    def drawn(process: int, processes: int) -> generation.Samples:
        monkeypatch.setattr(generation, "gather_object", lambda own: shared.extend(own) or list(shared))
        state: Any = SimpleNamespace(process_index=process, num_processes=processes)
        given: dict = {"prepare": rounded, "keep": 5, "prompts": prompts, "clip": clip}
        return draw(pipeline, options, 5, NoFeatures(), state, **given)

    alone = drawn(0, 1)
    shared.clear()
    assert len(drawn(0, 2).images) == 3  # the batches that are its own
    together = drawn(1, 2)
    assert torch.equal(together.images, alone.images)
    assert torch.equal(together.measured.clip_scores, alone.measured.clip_scores)
    assert together.measured.features.shape == (5, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_name": "silent", "held_out_split": None}, "no column holds captions; .* or take captioned images"),
        ({"caption_column": "title"}, "--caption_column title: no such column; columns of text: caption"),
        ({"metrics": ["fd", "alignment"]}, "--metrics alignment: is read off images of the embedded scenes; give --da"),
        ({"metrics": ["likelihood"]}, "--metrics likelihood: is of models without a condition or by class; leave it"),
        ({"metrics": ["accuracy"], "features": None}, "--metrics accuracy: the model has no classes; leave accuracy"),
        ({"clip_model_name_or_path": "vit"}, "--clip_model_name_or_path .*vit: knows no text; take a CLIP model"),
        ({"clip_model_name_or_path": "/no/thing"}, "--clip_model_name_or_path /no/thing: transformers can't load"),
        ({"model": "plain", "caption_column": "caption"}, "--caption_column: is for a model that makes images from te"),
        ({"model": "plain"}, "--metrics clip_score: is of images made from texts, and the model takes none"),
        ({"guidance_model": "plain", "guidance_scale": 2}, "--guidance_model: a TextToImagePipeline takes none"),
    ],
)
def test_mistakes(options: dict, message: str, run: Callable[..., dict], place: Path, tmp_path: Path) -> None:
    """All are refused before sampling starts, and nothing is written."""
    options = {k: place / v if isinstance(v, str) and (place / v).is_dir() else v for k, v in options.items()}
    with patch("snowmelt.evaluation.study.draw", None), pytest.raises(UserError, match=message) as error:
        run(tmp_path / "report", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()
