"""Fixtures of tests that need a Hub: `pytest_plugins = ["tests.hub"]` in a module brings them."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants, file_download, hf_api
from huggingface_hub.utils import _http, close_session

from tests.hub_server import Hub
from tests.hub_server.examples import WEIGHTS


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(running: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """One Hub for all tests, which leave nothing but repositories of other names behind."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()
    yield running
    running.heal()


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(hub.endpoint, hub.token("alice"))


@pytest.fixture
def connected(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub of this process: where its client, as alice and with an empty cache, talks to by default."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)  # whose methods are the package's functions
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("{")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.endpoint}/{{{template[2]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    return hub


@pytest.fixture
def repo(api: HfApi, request: pytest.FixtureRequest) -> str:
    """An empty model of alice's."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.removeprefix("test_")).strip("-")
    return api.create_repo(f"alice/{name}".replace("--", "-")).repo_id


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited before each repetition."""
    found: list[float] = []
    clock = SimpleNamespace(sleep=found.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with files in git and in LFS."""
    folder = tmp_path / "model"
    for name, content in {
        "README.md": b"---\nlicense: mit\ntags:\n- snow\nlibrary_name: diffusers\n---\n# Snow",
        "model_index.json": b"{}",
        "unet/config.json": b'{"a": 1}',
        "unet/model.safetensors": WEIGHTS,
        "empty.txt": b"",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
