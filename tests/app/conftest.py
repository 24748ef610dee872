"""A tiny model and its page, served in this process; a browser to look at it, where there is one."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from snowmelt.app.model import Limits, Model
from tests.pipelines.models import tiny_pipeline

NEEDS_GRADIO = "the page needs gradio: pip install -e '.[app]'"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model of three classes, 16 x 16 pixels in colour, with a null class for guidance."""
    path = tmp_path_factory.mktemp("model")
    names = {0: "ant", 1: "bee", 2: "cat"}
    tiny_pipeline(FlowMatchEulerDiscreteScheduler(), 3, 4, id2label=names).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return Model(str(folder), limits=Limits(images=8, steps=200, side=64, columns=6))


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Any], str]]:
    """`serve(page)` is the page's address."""
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)
    from snowmelt.app.page import launch_options

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        # It gives up where the page doesn't answer at once, as on a busy machine.
        patch.setattr("gradio.networking.url_ok", lambda url: True)
        yield lambda page: stack.enter_context(_served(page, launch_options()))


@contextmanager
def _served(page: Any, options: dict[str, Any]) -> Iterator[str]:
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **options)
    yield url
    page.close()


@pytest.fixture(scope="session")
def url(model: Model, folder: Path, serve: Callable[[Any], str]) -> str:
    """Of the model's page."""
    from snowmelt.app.card import read_card
    from snowmelt.app.page import make_page

    return serve(make_page(model, read_card(str(folder))))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium of the system."""
    api = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    # Without the sandbox, which needs more rights than a container gives; painting needs WebGL, here in software.
    flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()
