"""`--push_to_hub`, from training to a stranger's process, over a local Hub."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, SCRIPT
from tests.hub_server import Hub
from tests.publishing.test_self_contained import STRANGER, ours

LOAD = """
pipeline = load("alice/digits", trust_remote_code=True)
np.save(sys.argv[1], sample(pipeline, eta=0))
"""
LOAD_OURS = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from pipelines import PixelDiffusionPipeline
pipeline = PixelDiffusionPipeline.from_pretrained("alice/digits")
assert type(pipeline) is PixelDiffusionPipeline
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        yield hub


def run(words: list[str], hub: Hub, token: str | None, home: Path) -> subprocess.CompletedProcess:
    return subprocess.run(words, env=hub.environment(token, home), capture_output=True, text=True, cwd=ROOT)


def test_trained_pushed_and_loaded_by_a_stranger(hub, arguments, tmp_path):
    token = hub.token("alice")
    folder = tmp_path / "digits"
    words = [*arguments(folder), "--push_to_hub", "--hub_token", token]
    done = run([sys.executable, str(SCRIPT), *words], hub, None, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.endpoint}/alice/digits, {hub.endpoint}/alice/digits/commit/" in done.stdout

    files = hub.files("alice/digits")
    assert {"model_index.json", "pipeline.py", "unet/config.json", "samples.png", "loss.png"} <= set(files)
    assert not [name for name in files if "checkpoint" in name or "metrics" in name or "config.yaml" in name]
    for name, content in files.items():
        for private in (token, str(tmp_path), str(ROOT)):
            assert private.encode() not in content, (name, private)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert token.encode() not in path.read_bytes(), path
    assert len(hub.commits("alice/digits")) == 2  # the repository's first, and all that was published

    images = tmp_path / "images.npy"
    done = run([sys.executable, "-c", STRANGER + LOAD, str(images)], hub, None, tmp_path / "stranger")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(images), ours(folder, eta=0))
    done = run([sys.executable, "-c", LOAD_OURS], hub, None, tmp_path / "ours")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("role", "name", "said"),
    [("read", "alice/digits", "403"), ("write", "bob/digits", "403"), ("write", "a b", "a b")],
)
def test_what_cannot_be_pushed_to_is_told_before_training(role, name, said, hub, arguments, tmp_path):
    words = [*arguments(tmp_path / "run"), "--push_to_hub", "--hub_token", hub.token("alice", role)]
    done = run([sys.executable, str(SCRIPT), *words, "--hub_model_id", name], hub, None, tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: --push_to_hub to {name}: ")
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_failed_upload_keeps_the_model_and_can_be_repeated(hub, arguments, tmp_path):
    token = hub.token("alice")
    words = [sys.executable, str(SCRIPT), *arguments(tmp_path / "run"), "--push_to_hub"]
    words += ["--hub_model_id", "alice/again"]
    hub.fault("POST", "/commit/", "unavailable", times=None)
    done = run(words, hub, token, tmp_path / "home")
    assert done.returncode == 2
    assert "the same command with --resume_from_checkpoint latest repeats it" in done.stderr
    assert (tmp_path / "run/model_index.json").exists()
    hub.heal()
    done = run([*words, "--resume_from_checkpoint", "latest"], hub, token, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "pipeline.py" in hub.files("alice/again")
