"""The page as people use it, in a headless Chromium."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from snowmelt.app.model import Model, Settings

SECONDS = 120_000
pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """One for all tests, which keeps what it has loaded."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(SECONDS)
    yield context
    context.close()


@pytest.fixture
def page(context: Any, url: str) -> Iterator[Any]:
    """A tab of its own, with few steps."""
    page = opened(context, url)
    yield page
    page.close()


def opened(context: Any, url: str) -> Any:
    page = context.new_page()
    page.goto(url)
    page.get_by_label("number input for Steps").fill("3")
    page.get_by_label("number input for Images").fill("2")
    return page


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def done(page: Any, said: str = "2 images") -> None:
    page.locator(".block.status", has_text=said).locator("visible=true").first.wait_for()


def shown(page: Any) -> list[np.ndarray]:
    """The images of the open tab's gallery, (H, W, C)."""
    found = page.locator(".pixels .gallery-item img").locator("visible=true").all()
    return [np.asarray(PIL.Image.open(io.BytesIO(page.request.get(i.get_attribute("src")).body()))) for i in found]


def expected(model: Model, **settings: Any) -> list[np.ndarray]:
    """What the pipeline itself makes of the page's settings."""
    usual = {"num_images": 2, "num_inference_steps": 3, "height": 16, "width": 16}
    with model.lock:
        return [np.asarray(i) for i in model.sample(Settings(**usual | settings), lambda _: None).images]


def test_generate_and_change_class(page: Any, model: Model) -> None:
    """Images are the pipeline's own; a class that is chosen is theirs; only what the model can do is there."""
    press(page, "Sample")
    done(page)
    assert np.array_equal(shown(page), expected(model))
    page.get_by_label("Class").click()
    page.get_by_role("option", name="bee").click()
    press(page, "Sample")
    bees = expected(model, class_label="bee")
    page.wait_for_function("n => document.querySelectorAll('.pixels img').length == n", arg=2)
    for _ in range(100):
        if np.array_equal(shown(page), bees):
            break
        page.wait_for_timeout(100)
    assert np.array_equal(shown(page), bees)
    assert not page.get_by_label("Prompt").count()
    assert not page.get_by_label("Eta").count()
    with page.expect_download() as download:
        press(page, "Zip of all")
    assert download.value.suggested_filename == "images.zip"


def test_stop(page: Any, model: Model) -> None:
    """Images appear while they are made; Stop ends that at the next step, and the page goes on."""
    page.get_by_label("number input for Steps").fill("200")
    press(page, "Sample")
    page.locator(".block.status", has_text=re.compile(r"step \d+ of 200, \d+ s left")).locator(
        "visible=true"
    ).wait_for()
    press(page, "Stop")
    done(page, "stopped")
    assert model.lock.acquire(timeout=5)  # 200 steps take longer than what was left of one
    model.lock.release()
    page.get_by_label("number input for Steps").fill("1")
    press(page, "Sample")
    done(page)


def test_draw_a_mask(page: Any, model: Model) -> None:
    """What is painted over is made anew, and the rest is the image that was taken."""
    page.get_by_role("tab", name="From an image").click()
    with page.expect_response(re.compile("/upload")):  # the editor has the image, and says so
        press(page, "Take a sample of the model")
    box = page.locator(".editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 20, y + 10)
    page.mouse.up()
    page.wait_for_function("() => !document.querySelector('.editor [aria-label=Undo]').disabled")
    press(page, "Make variations")
    done(page)
    (original,) = expected(model, num_images=1)
    for image in shown(page):
        changed = (image.astype(int) != original).any(-1)
        assert changed[6:11, 6:12].any()  # around the middle
        changed[5:12, 5:13] = False
        assert not changed.any()


def test_compare(page: Any, model: Model) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Numbers of steps").fill("1, 2")
    press(page, "Compare")
    done(page, "6 images")
    captions = page.locator(".pixels .caption-label").locator("visible=true").all_inner_texts()
    assert captions[:2] == ["own, 1 step", "own, 2 steps"]
    (expected_of_it,) = expected(model, num_images=1, num_inference_steps=2)
    assert np.array_equal(shown(page)[1], expected_of_it)


def test_wrong_input(page: Any) -> None:
    """It is one line on the page, which goes on."""
    page.get_by_label("number input for Steps").fill("3")
    page.get_by_role("button", name="Sampler").click()
    page.get_by_label("Height").fill("4096")
    press(page, "Sample")
    page.get_by_text("height: must be a whole number from 1 to 64, is 4096").wait_for()
    page.get_by_label("Height").fill("16")
    press(page, "Sample")
    done(page)


def test_two_tabs_at_once(context: Any, url: str, model: Model) -> None:
    """Each gets the images of its own settings."""
    tabs = [opened(context, url) for _ in range(2)]
    for seed, tab in enumerate(tabs):
        tab.get_by_label("Seed").fill(str(seed))
        press(tab, "Sample")
    for seed, tab in enumerate(tabs):
        done(tab)
        assert np.array_equal(shown(tab), expected(model, seed=seed))
        tab.close()


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_on_a_phone(page: Any, scheme: str) -> None:
    """Nothing is wider than the screen, and the colours are those that are asked for."""
    page.get_by_label("number input for Images").fill("4")
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function("s => document.body.classList.contains('dark') == (s == 'dark')", arg=scheme)
    press(page, "Sample")
    done(page, "4 images")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [image.bounding_box() for image in page.locator(".pixels .gallery-item").locator("visible=true").all()]
    assert len(boxes) == 4
    assert all(box["x"] + box["width"] <= 390 for box in boxes)


@pytest.mark.slow
def test_a_training_as_it_goes(context: Any, serve: Callable[[Any], str], tmp_path: Path) -> None:
    """A log line that is written while the page is open appears on it, and so does a grid."""
    from snowmelt.app.training import make_page

    run = {"config": {"max_train_steps": 40}, "num_images": 100, "images_per_step": 10}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    page = context.new_page()
    page.goto(serve(make_page(tmp_path)))
    page.get_by_text("no log line yet").wait_for()
    (tmp_path / "samples").mkdir()
    PIL.Image.new("L", (8, 8)).save(tmp_path / "samples/step-000010.png")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for step in (10, 20):
            line = {"step": step, "loss": 1 / step, "loss_q1": 0.1, "images_per_second": 50.0}
            file.write(json.dumps(line) + "\n")
    page.get_by_text("step 20 of 40 · loss 0.05 · 50 images/s · 4 s left").wait_for()
    page.get_by_text("step 10", exact=True).wait_for()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl", "run.json", "samples"]
    page.close()
