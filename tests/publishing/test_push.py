"""From training with `--push_to_hub` to a stranger's process, over a local Hub."""

import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from diffusers import DDPMPipeline, DiffusionPipeline
from huggingface_hub import HfApi, constants

from pipelines import PixelDiffusionPipeline
from snowmelt.errors import UserError
from tests.conftest import ROOT, SCRIPT, run_in_process
from tests.hub_server import Hub
from tests.publishing.test_self_contained import STRANGER, ours

pytest_plugins = ["tests.hub"]

STRANGER_LOADS = """
name, images, card = sys.argv[1:]
try:
    load(name)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded without trust")
pipeline = load(name, trust_remote_code=True)
np.save(images, sample(pipeline, eta=0))
text = open(card).read()
exec(text.partition("```python")[2].partition("```")[0])
assert images[0].size == (8, 8)
"""
OURS_LOADS = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from huggingface_hub import HfApi, constants
from pipelines import PixelDiffusionPipeline
private, revision, images = sys.argv[1:]
"""
OURS_ONLINE = """
pipeline = PixelDiffusionPipeline.from_pretrained(private, revision=revision)
assert type(pipeline) is PixelDiffusionPipeline
first = next(pipeline.unet.parameters()).flatten()[0].item()
latest = next(PixelDiffusionPipeline.from_pretrained(private).unet.parameters()).flatten()[0].item()
assert (first, latest) != (0.5, 0.5) and latest == 0.5, (first, latest)
"""
OURS_OFFLINE = """
pipeline = PixelDiffusionPipeline.from_pretrained(private, revision=revision)
output = pipeline(class_labels=1, num_inference_steps=2, eta=0, guidance_scale=2, output_type="np",
                  generator=torch.Generator().manual_seed(3))
np.save(images, output.images)
"""


def run(words: list, hub: Hub, token: str | None, home: Path, **environment: str) -> subprocess.CompletedProcess:
    everything = hub.environment(token, home) | environment
    return subprocess.run([*map(str, words)], env=everything, capture_output=True, text=True, cwd=ROOT)


def test_trained_pushed_and_loaded_by_a_stranger(hub, arguments, tmp_path):
    token = hub.token("alice")
    folder = tmp_path / "digits"
    words = [*arguments(folder), "--push_to_hub", "--hub_token", token]
    done = run([sys.executable, SCRIPT, *words], hub, None, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.endpoint}/alice/digits, {hub.endpoint}/alice/digits/commit/" in done.stdout

    files = hub.files("alice/digits")
    assert {"model_index.json", "pipeline.py", "unet/config.json", "samples.png", "denoising.png"} <= set(files)
    for path in (p for p in [*folder.rglob("*"), *(tmp_path / "home").rglob("*")] if p.is_file()):
        assert token.encode() not in path.read_bytes(), path
    assert not [
        name for name, content in files.items() if token.encode() in content or str(tmp_path).encode() in content
    ]
    assert len(hub.commits("alice/digits")) == 2  # the repository's first, and all that was published

    card = tmp_path / "card.md"
    card.write_bytes(files["README.md"])
    words = [sys.executable, "-c", STRANGER + STRANGER_LOADS, "alice/digits", tmp_path / "images.npy", card]
    done = run(words, hub, None, tmp_path / "stranger")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "images.npy"), ours(folder, eta=0))


@pytest.mark.slow
def test_revisions_private_repositories_and_a_warm_cache(connected, train, tmp_path, monkeypatch):
    pipeline = PixelDiffusionPipeline.from_pretrained(train(tmp_path / "run"))
    pipeline.save_pretrained(tmp_path / "first")
    pipeline.push_to_hub("alice/secret", private=True)
    old = connected.commits("alice/secret")[0].oid
    next(pipeline.unet.parameters()).data.view(-1)[0] = 0.5
    pipeline.push_to_hub("alice/secret")

    words = [sys.executable, "-c", OURS_LOADS + OURS_ONLINE, "alice/secret", old, "-"]
    done = run(words, connected, connected.token("alice"), tmp_path / "home")
    assert done.returncode == 0, done.stderr
    for other in ("", connected.token("bob")):
        with monkeypatch.context() as patched:
            patched.setenv("HF_TOKEN", other)
            patched.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"others{other}"))
            with pytest.raises(OSError, match="alice/secret"):
                PixelDiffusionPipeline.from_pretrained("alice/secret")
    words[2:] = [OURS_LOADS + OURS_OFFLINE, "alice/secret", old, tmp_path / "images.npy"]
    asked = len(connected.requests())
    done = run(words, connected, None, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert len(connected.requests()) == asked
    assert np.array_equal(np.load(tmp_path / "images.npy"), ours(tmp_path / "first", eta=0))


def test_pipeline_pushes_itself_as_publish_does(connected, train, tmp_path):
    """Loaded from the Hub, saved and pushed again, it keeps its form and its code; the same again is no commit."""
    pipeline = PixelDiffusionPipeline.from_pretrained(train(tmp_path / "run"))
    pipeline.push_to_hub("alice/itself")
    first = connected.files("alice/itself")
    assert '"pipeline",' in first["model_index.json"].decode()
    assert b"_name_or_path" not in first["unet/config.json"]
    assert len(connected.commits("alice/itself")) == 2
    pipeline.push_to_hub("alice/itself")
    again = PixelDiffusionPipeline.from_pretrained("alice/itself")
    again.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="alice/itself")
    assert connected.files("alice/itself") == first
    assert len(connected.commits("alice/itself")) == 2


def test_a_plain_run_is_pushed_as_diffusers_own(connected, train, tmp_path):
    """By the script and by the pipeline itself: it loads without trust, and as our class."""
    options = {"class_conditional": False, "objective": "epsilon"}
    run = train(tmp_path / "run", push_to_hub=True, hub_model_id="alice/plain", **options)
    PixelDiffusionPipeline.from_pretrained(run).push_to_hub("alice/plain-itself")
    for name in ("alice/plain", "alice/plain-itself"):
        assert "pipeline.py" not in connected.files(name)
        assert type(DiffusionPipeline.from_pretrained(name)) is DDPMPipeline
        assert type(PixelDiffusionPipeline.from_pretrained(name)) is PixelDiffusionPipeline


def test_uploads_during_training(connected, train, tmp_path):
    """Each saved model is uploaded while training goes on, to what it would be without; half of one is never seen."""
    options = {"max_train_steps": 6, "save_model_epochs": 1, "train_batch_size": 1797}
    alone = train(tmp_path / "alone", **options)
    pushing = train(tmp_path / "pushing", push_to_hub=True, hub_model_id="alice/during", **options)
    titles = [commit.title for commit in reversed(connected.commits("alice/during"))][1:]
    assert titles[0] == "Model in training"
    assert titles[-1] == "Trained model"
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (
        (alone / weights).read_bytes() == (pushing / weights).read_bytes() == connected.files("alice/during")[weights]
    )
    for commit in connected.commits("alice/during")[:-1]:
        assert {"model_index.json", "pipeline.py", "README.md", weights} <= set(
            connected.files("alice/during", commit.oid)
        )
    assert not list(pushing.glob(".publication*"))


def test_training_does_not_wait_for_a_slow_hub(connected, train, tmp_path):
    """What is saved while an upload is under way isn't uploaded: the last publication has it all."""
    connected.fault("POST", "/commit/", "slow", times=1, seconds=4)
    options = {"max_train_steps": 6, "save_model_epochs": 1, "train_batch_size": 1797}
    train(tmp_path / "run", push_to_hub=True, hub_model_id="alice/slow", **options)
    titles = [commit.title for commit in connected.commits("alice/slow")]
    assert titles[0] == "Trained model"
    assert 1 <= titles.count("Model in training") < 5


def test_hub_that_fails_never_stops_training(connected, train, tmp_path, monkeypatch, capsys):
    from snowmelt.publishing import upload

    monkeypatch.setattr(upload, "WAITS", (0.01,))
    connected.fault("POST", "/commit/", "unavailable", times=None)
    options = {"max_train_steps": 4, "save_model_epochs": 1, "train_batch_size": 1797}
    folder = tmp_path / "run"
    with pytest.raises(UserError) as raised:
        train(folder, push_to_hub=True, hub_model_id="alice/failing", **options)
    assert (folder / "checkpoint-4").is_dir()
    assert "training goes on, and uploads again" in capsys.readouterr().out
    command = f"python publish.py --model {folder} --hub_model_id alice/failing"
    assert f"the model is complete in {folder}, but the upload to alice/failing failed" in str(raised.value)
    assert command in str(raised.value)
    assert len(connected.commits("alice/failing")) == 1
    connected.heal()
    run_in_process(command.split()[2:], "publish")
    assert connected.files("alice/failing")["pipeline.py"]


def test_what_cannot_be_exported_now_never_stops_training(tmp_path, monkeypatch, capsys):
    """A full disk, say: the next time is another try. After training it is an error, which says that all is there."""
    from snowmelt.publishing import during
    from snowmelt.publishing.upload import Repository

    config, accelerator = Mock(push_to_hub=False, output_dir=str(tmp_path)), Mock(is_main_process=True)
    push = during.HubPush(config, accelerator)
    push.repository = Repository("alice/full", None)
    monkeypatch.setattr(during, "export", Mock(side_effect=OSError(28, "No space left on device")))
    push.during()
    assert "No space left on device; training goes on" in capsys.readouterr().out
    with pytest.raises(UserError, match="the model is complete in .*, but .*No space left on device; publish it with"):
        push.finish()
    assert not list(tmp_path.iterdir())


def test_a_repository_with_a_model_is_not_called_empty(connected, model, tmp_path, monkeypatch):
    """One that this run created, to which it uploaded once, and then couldn't."""
    from snowmelt.publishing import during, upload

    monkeypatch.setattr(upload, "WAITS", ())
    push = during.HubPush(Mock(push_to_hub=False, output_dir=str(tmp_path)), Mock(is_main_process=True))
    push.repository = upload.open_repository("alice/partly", private=False, token=None)
    monkeypatch.setattr(
        during, "export", lambda run, folder, *names, **options: shutil.copytree(model, folder, dirs_exist_ok=True)
    )
    push.during()
    push._pool.submit(connected.fault, "POST", "/commit/", "unavailable", times=None).result()
    (model / "README.md").write_text("# Trained")
    with pytest.raises(UserError, match="upload to alice/partly failed, its files are as they were"):
        push.finish()


@pytest.mark.parametrize(
    ("role", "name", "said"),
    [
        ("read", "alice/digits", "may only read"),
        ("write", "bob/digits", "belongs to bob"),
        ("write", "a b", "not a name"),
    ],
)
def test_what_cannot_be_pushed_to_is_given_before_anything_is_read(
    role, name, said, connected, train, tmp_path, monkeypatch
):
    monkeypatch.setattr("snowmelt.tasks.unconditional.load_splits", None)
    with pytest.raises(UserError, match=f"can't publish to {name}: .*{said}"):
        train(tmp_path / "run", push_to_hub=True, hub_token=connected.token("alice", role), hub_model_id=name)
    assert not (tmp_path / "run").exists()


def test_damaged_download_is_noticed_and_fetched_again(connected, train, tmp_path, monkeypatch):
    pipeline = PixelDiffusionPipeline.from_pretrained(train(tmp_path / "run"))
    pipeline.push_to_hub("alice/flipped")
    connected.fault("GET", "safetensors", "corrupt")
    connected.fault("GET", "/lfs/", "corrupt")
    with pytest.raises(OSError, match=r"unet/diffusion_pytorch_model.safetensors arrived damaged and was removed"):
        PixelDiffusionPipeline.from_pretrained("alice/flipped")
    connected.heal()
    loaded = PixelDiffusionPipeline.from_pretrained("alice/flipped")
    for a, b in zip(loaded.unet.parameters(), pipeline.unet.parameters(), strict=True):
        assert np.array_equal(a.detach(), b.detach())
    trees = sum("/tree/" in line for line in connected.requests())
    PixelDiffusionPipeline.from_pretrained("alice/flipped")
    assert sum("/tree/" in line for line in connected.requests()) == trees  # what was verified isn't again


def test_download_that_could_not_be_verified_is_verified_the_next_time(connected, train, tmp_path, monkeypatch):
    PixelDiffusionPipeline.from_pretrained(train(tmp_path / "run")).push_to_hub("alice/unverified")
    connected.fault("GET", "safetensors", "corrupt")
    connected.fault("GET", "/lfs/", "corrupt")
    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "verify_repo_checksums", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            PixelDiffusionPipeline.from_pretrained("alice/unverified")
    with pytest.raises(OSError, match="arrived damaged"):
        PixelDiffusionPipeline.from_pretrained("alice/unverified")
