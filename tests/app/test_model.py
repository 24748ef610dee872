"""What a page knows of its model, and does with it, without a browser."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from diffusers import CMStochasticIterativeScheduler, DDIMScheduler, DDPMScheduler, ScoreSdeVeScheduler

from pipelines import PixelDiffusionPipeline, ScoreSdePipeline, SuperResolutionPipeline, image_generators
from snowmelt.app.actions import Actions
from snowmelt.app.card import best_guidance, read_card
from snowmelt.app.model import Model, Settings
from snowmelt.app.watched import StoppedError, watched
from snowmelt.errors import UserError
from tests.pipelines.models import tiny_pipeline, tiny_unet
from tests.pipelines.test_text2img import make as make_text2img


def saved(pipeline: Any, folder: Path) -> Model:
    pipeline.save_pretrained(folder)
    return Model(str(folder))


def test_of_classes(model: Model, folder: Path) -> None:
    """Images are those of `generate.py`: of image i, its own generator."""
    assert model.classes == ["ant", "bee", "cat"]
    assert model.is_guided
    assert model.edits
    assert model.takes_size
    assert model.between == "flow-euler"
    assert not model.by_text
    settings = Settings(num_images=2, num_inference_steps=2, seed=7, class_label="cat", height=16, width=16)
    images = model.sample(settings, lambda _: None).images
    pipeline = PixelDiffusionPipeline.from_pretrained(folder)
    theirs = pipeline(2, class_labels="cat", num_inference_steps=2, generator=image_generators(7, range(2))).images
    assert np.array_equal(np.stack(images), np.stack(theirs))


def test_of_texts(tmp_path: Path) -> None:
    """The prompts say what is made."""
    model = saved(make_text2img(latent=False), tmp_path)
    assert model.by_text
    assert model.usual_guidance == 1.25
    assert model.classes == []
    settings = {"num_images": 1, "num_inference_steps": 2, "height": model.height, "width": model.width}
    settings |= {"guidance_scale": 3.0}
    words = [("a cat", ""), ("a dog", ""), ("a cat", "a dog")]
    images = [
        np.asarray(model.sample(Settings(**settings, prompt=a, negative_prompt=b), lambda _: None).images[0])
        for a, b in words
    ]
    assert len({image.tobytes() for image in images}) == 3


def test_of_plain_discrete_time(tmp_path: Path) -> None:
    """No classes, no guidance; eta means something to DDIM alone."""
    model = saved(tiny_pipeline(DDPMScheduler()), tmp_path)
    assert model.classes == []
    assert not model.is_guided
    assert [model.takes_eta(name) for name in ("own", "ddpm", "ddim")] == [False, False, True]
    assert saved(tiny_pipeline(DDIMScheduler()), tmp_path / "ddim").takes_eta("own")
    assert {"ddpm", "ddim", "unipc"} <= set(model.samplers)


def test_of_sdes_and_few_steps(tmp_path: Path) -> None:
    """An SDE has predictors, as many steps as it takes, and no way between seeds; a consistency model 2 steps."""
    sde = saved(ScoreSdePipeline(tiny_unet(), ScoreSdeVeScheduler(), sde="ve"), tmp_path / "sde")
    assert sde.samplers == ["own", "reverse_diffusion", "euler_maruyama", "ancestral"]
    assert sde.between is None
    assert (sde.usual_steps, sde.limits.steps) == (1000, 1000)
    settings = Settings(num_images=1, num_inference_steps=2, scheduler="ancestral", height=16, width=16)
    assert len(sde.sample(settings, lambda _: None).images) == 1
    few = saved(tiny_pipeline(CMStochasticIterativeScheduler(40)), tmp_path / "few")
    assert few.usual_steps == 2
    assert few.between is None


def test_of_images(tmp_path: Path) -> None:
    """A model of super-resolution is given an image of any size, which is fitted, and enlarges that."""
    unet = tiny_unet(3)
    larger = type(unet).from_config({**unet.config, "in_channels": 6})
    pipeline = SuperResolutionPipeline(larger, DDPMScheduler(), condition="lowres:4", condition_channels=3)
    model = saved(pipeline, tmp_path)
    assert model.condition.scale == 4
    assert not model.edits
    assert not model.takes_size
    photo = PIL.Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 30).convert("RGBA")
    editor = {"background": photo, "layers": [], "composite": photo}
    *_, (images, _, path) = Actions(model).sample(Settings(num_images=2, num_inference_steps=1), editor)
    assert [image.size for image, _ in images] == [(16, 16)] * 2
    assert path is not None
    assert not Path(path).exists()  # nothing is kept once it was taken
    with pytest.raises(UserError, match="image: needed"):
        list(Actions(model).sample(Settings(num_images=1, num_inference_steps=1), None))


def test_work_is_watched() -> None:
    """What is reported comes while it works, then what it returns; errors come out; closing it ends the work."""
    lock, taken = threading.Lock(), threading.Event()

    def counts(report: Any) -> str:
        report(1)
        taken.wait(5)
        report(None)
        return "done"

    steps = watched(counts, lock)
    assert next(steps) == 1
    assert lock.locked()
    taken.set()
    assert list(steps) == ["done"]

    def fails(report: Any) -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        list(watched(fails, lock))

    ended = threading.Event()

    def endless(report: Any) -> None:
        try:
            while True:
                time.sleep(0.001)
                report(0)
        except StoppedError:
            ended.set()
            raise

    steps = watched(endless, lock)
    next(steps)
    steps.close()
    assert ended.wait(5)
    assert lock.acquire(timeout=5)


def test_cards(folder: Path, tmp_path: Path) -> None:
    """Of a published model its own, with its images alone; of another the one that it would have."""
    made = read_card(str(folder))
    assert "3 classes" in made.summary
    assert "## How to use it" in made.text
    assert not (folder / "README.md").exists()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nAbout it.\n\n![a](a.png) ![b](../b.png)\n")
    PIL.Image.new("L", (2, 2)).save(tmp_path / "a.png")
    PIL.Image.new("L", (2, 2)).save(tmp_path.parent / "b.png")
    card = read_card(str(tmp_path))
    assert card.summary == "About it."
    assert "license" not in card.text
    assert [name for _, name in card.images] == ["a"]
    assert "no model card" in read_card(str(tmp_path / "nothing")).text


def test_guidance_is_the_best_that_was_measured() -> None:
    def point(value: float, distance: float, parameter: str = "guidance_scale") -> dict[str, Any]:
        return {"parameter": parameter, "value": value, "results": [{"value": distance, "lower_is_better": True}]}

    report = {"sweep": [point(1.0, 5.0), point(1.5, 3.0), point(3.0, 4.0), point(9.0, 0.1, "num_inference_steps")]}
    assert best_guidance(report) == 1.5
    assert best_guidance({}) is None
