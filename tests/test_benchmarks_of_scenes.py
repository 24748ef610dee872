"""Benchmarks of text-to-image models on the embedded scenes, and of features that are kept."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import controlnet, few_pictures
from benchmarks.feature_reuse import Reusing
from snowmelt.data.scenes.drawing import draw
from snowmelt.data.scenes.world import POSITIONS, SPACING, Scene, Thing
from tests.pipelines import test_text2img
from tests.pipelines.models import tiny_unet
from tests.test_benchmarks import table


@pytest.mark.parametrize("radius", [0.12, 0.175])
def test_targets_are_found_where_they_are(radius: float) -> None:
    for number, name in enumerate(POSITIONS):
        row, column = divmod(number, 3)
        x, y = (0.5 + SPACING * (place - 1) for place in (column, row))
        assert few_pictures.targets(few_pictures.target(x, y, radius)) == [name]


@pytest.mark.parametrize(
    "things",
    [
        (),
        (Thing("circle", "red", 0.175, 0.5, 0.5),),
        (Thing("circle", "yellow", 0.175, 0.5, 0.5),),
        (Thing("circle", "red", 0.12, 0.2, 0.5), Thing("circle", "yellow", 0.12, 0.8, 0.5)),
        (Thing("circle", "blue", 0.175, 0.5, 0.5), Thing("circle", "yellow", 0.08, 0.5, 0.5)),
    ],
)
def test_what_is_no_target(things: tuple[Thing, ...]) -> None:
    assert few_pictures.targets(draw(Scene(things))) == []


def test_another_colour_is_of_the_same_edges() -> None:
    scene = Scene((Thing("cross", "white", 0.12, 0.2, 0.5), Thing("circle", "red", 0.12, 0.8, 0.5)), "left of")
    other = controlnet.recoloured(scene)
    assert [thing.colour for thing in other.things] == ["red", "green"]
    outlines = [(draw(s) != draw(Scene(()))).any(-1) for s in (scene, other)]
    assert np.array_equal(*outlines)


def test_kept_features() -> None:
    """Of the same input they give the same output, with less work; of another one, not quite."""
    unet = tiny_unet()
    x, t = torch.randn(2, 1, 16, 16), torch.tensor(300)
    whole, reusing = unet(x, t).sample, Reusing(unet, 2)
    outputs, work = [], []
    for given in (x, x, x, x + 1):
        with FlopCounterMode(display=False) as counter:
            outputs.append(unet(given, t).sample)
        work.append(counter.get_total_flops())
    reusing.end()
    assert all(torch.equal(output, whole) for output in outputs[:3])
    assert work[0] == work[2] > 1.5 * work[1] > 0
    assert not torch.equal(outputs[3], unet(x + 1, t).sample)
    assert torch.equal(unet(x, t).sample, whole)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    test_text2img.make().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_controlnet(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    words = ["--model", str(model), "--steps", "1", "--num_images", "3", "--num_inference_steps", "2"]
    monkeypatch.setattr(sys, "argv", ["controlnet", *words, "--scales", "0", "1", "--output_dir", str(tmp_path)])
    controlnet.main()
    rows = table(capsys.readouterr().out, "scale")
    assert [row[0] for row in rows] == ["0", "1"]
    assert all(float(cell) > 0 for row in rows for cell in row[5:6])
    assert (tmp_path / "pairs.png").exists()


@pytest.mark.slow
def test_few_pictures(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    words = ["--model", str(model), "--steps", "1", "--num_images", "2", "--num_inference_steps", "2"]
    monkeypatch.setitem(few_pictures.PRESERVED, "num_class_images", 2)
    monkeypatch.setattr(sys, "argv", ["few_pictures", *words, "--output_dir", str(tmp_path)])
    few_pictures.main()
    printed = capsys.readouterr().out
    assert [row[0] for row in table(printed, "")] == ["the model itself", *few_pictures.WAYS]
    assert [row[0] for row in table(printed, "prompt")] == ["a circle", "a <mine>"]
    assert (tmp_path / "pictures.png").exists()
