"""`app.py` as it is started, and the Space that `publish.py --space` makes of it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import PIL.Image
import pytest
from diffusers import DDPMScheduler
from huggingface_hub import snapshot_download

from pipelines import PixelDiffusionPipeline, image_generators
from snowmelt.errors import UserError
from snowmelt.publishing.hub_space import NEEDED, read_pins
from tests.app.conftest import NEEDS_GRADIO
from tests.conftest import ROOT, run_in_process
from tests.hub_server import Hub
from tests.pipelines.models import tiny_pipeline

pytest_plugins = ["tests.hub"]

ALONE = """
import runpy, sys
for name in ("datasets", "torchmetrics", "sklearn", "scipy", "matplotlib", "peft"):
    sys.modules[name] = None  # it can't be imported, as where it isn't installed
sys.path.insert(0, "")
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--model: there is no runs/digits yet; `make demo` trains it in minutes, or name another model"),
        (["--model", "a", "--run", "b"], "--run: shows a training, and --model samples a model; give one of them"),
        (["--run", "nothing"], "--run nothing: no folder of a training; give the --output_dir of one"),
        (["--model", "no/such/model"], "--model: can't load no/such/model"),
    ],
)
def test_what_it_is_given(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        run_in_process(words, "app")
    assert said in str(error.value)


def test_without_gradio() -> None:
    with patch("importlib.util.find_spec", return_value=None), pytest.raises(UserError) as error:
        run_in_process([], "app")
    assert str(error.value) == "the page needs gradio, which isn't installed: pip install -e '.[app]'"


@contextmanager
def started(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a Space that runs by itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    more = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    log = folder.with_suffix(".log").open("w+")
    command = [sys.executable, "-P", "-c", ALONE]
    process = subprocess.Popen(command, cwd=folder, env=environment | more, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        log.seek(0)
        assert process.poll() is None, log.read()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.slow
def test_space(connected: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pushed runs by itself, with nothing installed that it doesn't name, and samples as the pipeline does."""
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)
    from gradio_client import Client

    pipeline = tiny_pipeline(DDPMScheduler(), 3)
    pipeline.save_pretrained(tmp_path / "run")
    run_in_process(["--model", str(tmp_path / "run"), "--hub_model_id", "alice/page", "--space"], "publish")
    files = connected.files("spaces/alice/page")
    assert {"app.py", "model.txt", "snowmelt/app/page.py", "pipelines/base.py"} <= set(files)
    assert not [name for name in files if name.endswith((".pyc", ".safetensors"))]
    pins = read_pins(ROOT / "constraints.txt")
    assert f"sdk_version: {pins['gradio']}\n" in files["README.md"].decode()
    assert files["requirements.txt"].decode().splitlines() == [f"{name}=={pins[name.lower()]}" for name in NEEDED]
    space = tmp_path / "space"
    snapshot_download("alice/page", repo_type="space", local_dir=space)
    environment = connected.environment(connected.token("alice"), tmp_path / "home")
    environment.pop("PYTHONPATH", None)
    with started(space, environment) as url:
        client = Client(url, verbose=False, download_files=str(tmp_path), httpx_kwargs={"timeout": 120})
        gallery = client.predict(num_images=2, num_inference_steps=2, seed=1, api_name="/sample")[0]
    ours = PixelDiffusionPipeline.from_pretrained(tmp_path / "run")
    expected = ours(2, num_inference_steps=2, generator=image_generators(1, range(2))).images
    for one, image in zip(gallery, expected, strict=True):
        assert np.array_equal(np.asarray(PIL.Image.open(one["image"])), np.asarray(image))
