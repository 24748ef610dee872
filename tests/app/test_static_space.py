"""A static Space as people use it: published to a local Hub, served as plain files, in a headless Chromium."""

import functools
import http.server
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from huggingface_hub import snapshot_download

from pipelines import PixelDiffusionPipeline, image_generators
from snowmelt.publishing.static_space import PAGE
from tests.conftest import run_in_process
from tests.hub_server import Hub
from tests.pipelines.models import quiet, tiny_pipeline

pytest_plugins = ["tests.hub"]
pytestmark = pytest.mark.xdist_group("browser")

RUNTIME = re.search(r"https://cdn\.\S+/(onnxruntime-web)@([\d.]+)/dist/", (PAGE / "page.js").read_text())
assert RUNTIME
ALLOWED = {"Access-Control-Allow-Origin": "*"}


@pytest.fixture(scope="module")
def runtime() -> Path:
    """The folder of the npm package that the page fetches from a CDN: $ONNXRUNTIME_WEB, or packed once by npm."""
    if given := os.environ.get("ONNXRUNTIME_WEB"):
        return Path(given) / "dist"
    name = f"{RUNTIME[1]}@{RUNTIME[2]}"
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "snowmelt-tests" / name
    if folder.is_dir():
        return folder / "package/dist"
    if shutil.which("npm") is None:
        pytest.skip(f"no npm to fetch {name} with; name its folder in ONNXRUNTIME_WEB")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        done = subprocess.run(["npm", "pack", name], cwd=partial, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm can't fetch {name}: {done.stderr.strip().splitlines()[-1]}")
        (archive,) = Path(partial).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(Path(partial) / "whole", filter="data")
        (Path(partial) / "whole").replace(folder)
    return folder / "package/dist"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 16 x 16 pixels in colour, with a null class for guidance."""
    folder = tmp_path_factory.mktemp("model")
    names = {0: "ant", 1: "bee", 2: "big cat"}
    tiny_pipeline(FlowMatchEulerDiscreteScheduler(), 3, 4, id2label=names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def space(connected: Hub, model: Path, folder: Path) -> Path:
    """What `publish.py --static_space` has put on the Hub, once for all tests."""
    pytest.importorskip("onnxscript", reason="static Spaces need onnx and onnxscript: pip install -e '.[onnx]'")
    if not any(folder.iterdir()):
        names = ["--hub_model_id", "alice/insects", "--static_space", "alice/insects-page"]
        run_in_process(["--model", str(model), *names], "publish")
        snapshot_download("alice/insects-page", repo_type="space", local_dir=folder)
    return folder


@pytest.fixture
def opened(browser: Any, url: str, space: Path, runtime: Path) -> Iterator[Callable[..., Any]]:
    """`opened(place=answer, ...)` is the page once it has an image or a problem; answers take places of files."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)

    def from_npm(route: Any) -> None:
        path = runtime / route.request.url.rpartition("/")[2]
        kind = "text/javascript" if path.suffix == ".mjs" else "application/wasm"
        route.fulfill(path=path, content_type=kind, headers=ALLOWED)

    def open_page(**answers: Callable[[Any], None]) -> Any:
        page = context.new_page()
        page.route("https://**", lambda route: route.abort())
        page.route(f"{RUNTIME[0]}*", from_npm)
        for place, answer in answers.items():
            page.route(f"**/{place}*", answer)
        page.goto(url)
        page.wait_for_function("() => image !== null || !document.getElementById('problem').hidden")
        return page

    yield open_page
    context.close()


def shown(page: Any, **settings: Any) -> np.ndarray:
    """The page's image (C, H, W) in [0, 1], of which a canvas has but eight bits, after settings were changed."""
    page.evaluate("image = null")
    for name, value in settings.items():
        control = page.locator(f"[name={name}]")
        control.select_option(str(value)) if name == "label" else control.fill(str(value))
    page.wait_for_function("() => image !== null && document.getElementById('status').textContent.endsWith(' s')")
    return np.array(page.evaluate("Array.from(image)"), np.float32).reshape(3, 16, 16)


def expected(model: Path, seed: int, label: int | None, steps: int, **arguments: Any) -> np.ndarray:
    """What the pipeline makes of it."""
    pipeline = quiet(PixelDiffusionPipeline.from_pretrained(model))
    given = {"class_labels": label, "num_inference_steps": steps, "generator": image_generators(seed, [0])}
    return pipeline(1, **given, **arguments, output_type="pt").images[0].numpy()


def test_what_is_pushed(connected: Hub, space: Path) -> None:
    """A static Space of plain files, the network in LFS, and the model beside it."""
    files = connected.files("spaces/alice/insects-page")
    own = {path.name for path in PAGE.iterdir()} | {"README.md", "model.json", "denoiser.onnx"}
    assert set(files) - {".gitattributes"} == own
    assert b"sdk: static\nmodels:\n- alice/insects\n" in files["README.md"]
    assert b"alice/insects</a> in this browser" in files["index.html"]
    assert connected.commits("spaces/alice/insects-page")[0].files["denoiser.onnx"].lfs
    assert "model_index.json" in connected.files("alice/insects")


def test_images_are_the_pipelines_own(opened: Callable[..., Any], model: Path) -> None:
    """From the same noise, in 1, 4 and 10 steps, of each class and of none, with guidance and without."""
    page = opened()
    assert page.evaluate("document.querySelectorAll('#strip li').length") == 10
    for steps, label, seed in ((1, 0, 0), (4, 1, 7), (10, 2, 2**32 - 1)):
        made = shown(page, seed=seed, label=label, steps=steps)
        image = expected(model, seed, label, steps)
        assert image.std() > 0.05
        assert np.abs(made - image).max() < 1e-3
    assert page.evaluate("document.querySelectorAll('#strip li').length") == 10
    assert np.abs(shown(page, guidance=2.5) - expected(model, seed, label, 10, guidance_scale=2.5)).max() < 1e-3
    assert page.evaluate("document.getElementById('same').hidden") is False
    made = shown(page, label="", steps=3)  # without a class there is nothing to guide to
    assert np.abs(made - expected(model, seed, None, 3)).max() < 1e-3
    assert page.evaluate("document.getElementById('same').hidden") is True


def test_by_keyboard_and_saved(opened: Callable[..., Any], tmp_path: Path) -> None:
    """Every control is reached by Tab and has a name; what is saved is the image that the page's command makes."""
    page = opened()
    names = []
    while "Save as PNG" not in names:
        page.keyboard.press("Tab")
        names.append(page.evaluate("(document.activeElement.labels?.[0] ?? document.activeElement).innerText"))
        assert len(names) < 10
    assert names == ["alice/insects", "Class", "Seed", "Next", "Steps", "Guidance", "Save as PNG"]
    page.get_by_label("Steps", exact=True).focus()
    page.evaluate("image = null")
    page.keyboard.press("Home")
    page.wait_for_function("() => image !== null")
    page.get_by_role("button", name="Next").press("Enter")
    page.get_by_text("class ant, seed 1, 1 step:").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").press("Enter")
    assert download.value.suggested_filename == "seed-1.png"
    command = shlex.split(page.locator("#command").inner_text())
    assert command[:4] == ["python", "generate.py", "--model", "alice/insects"]
    run_in_process([*command[2:], "--output_dir", str(tmp_path / "samples")], "generate")
    saved = np.asarray(PIL.Image.open(download.value.path()).convert("RGB"))
    (path,) = (tmp_path / "samples").glob("*0.png")
    assert np.abs(saved.astype(int) - np.asarray(PIL.Image.open(path))).max() <= 1


def test_what_is_missing_is_said(opened: Callable[..., Any]) -> None:
    """In the page, in a line."""
    answers = {
        "denoiser.onnx can't be loaded: the server answered 404": {"denoiser": lambda r: r.fulfill(status=404)},
        "denoiser.onnx has 7 bytes, and should have": {"denoiser": lambda r: r.fulfill(body="version")},
        "model.json can't be loaded: the server answered 404": {"model.json": lambda r: r.fulfill(status=404)},
        "threaded.wasm can't be loaded from cdn.jsdelivr.net": {"ort-wasm": lambda r: r.abort()},
        "ort.wasm.bundle.min.mjs can't be": {"ort.wasm": lambda r: r.fulfill(body="alert(1)", headers=ALLOWED)},
    }
    for said, answer in answers.items():
        page = opened(**answer)
        problem = page.get_by_role("alert").inner_text()
        assert said in problem
        assert "\n" not in problem
        assert page.get_by_label("Seed", exact=True).is_disabled()
        page.close()


def test_on_a_phone(opened: Callable[..., Any]) -> None:
    """Nothing is wider than the screen; colours are those that are asked for."""
    page = opened()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [canvas.bounding_box() for canvas in page.locator("canvas").all()]
    assert len(boxes) == 21
    assert all(box["width"] > 20 and box["x"] + box["width"] <= 390 for box in boxes)
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
