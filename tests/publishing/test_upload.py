"""Publishing to a Hub that refuses, fails for a moment, or fails for good."""

import sys
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session

import publish
from snowmelt.errors import UserError
from snowmelt.publishing import upload as module
from snowmelt.publishing.upload import Repository, open_repository, upload
from tests.hub_server.messages import Problem

pytest_plugins = ["tests.hub"]


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """How long we would have waited."""
    found: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=found.append))  # the client's own sleeps are real
    return found


@pytest.fixture
def opened(connected, request) -> Repository:
    return open_repository(request.node.name.replace("_", "-")[5:60], private=False, token=None)


def published(hub, repository) -> list[str]:
    """Titles of commits, oldest first, without the Hub's own."""
    return [commit.title for commit in reversed(hub.commits(repository.id))][1:]


def test_one_commit_and_none_for_the_same_again(connected, opened, model):
    assert opened.id.startswith("alice/")
    upload(model, opened, "first")
    upload(model, opened, "again")
    assert published(connected, opened) == ["first"]
    (model / "new.txt").write_text("1")
    upload(model, opened, "second")
    assert published(connected, opened) == ["first", "second"]


def test_a_later_publication_replaces_what_only_we_leave(connected, opened, model):
    (model / "unet/model-00002-of-00002.safetensors").write_bytes(b"1" * 100)
    (model / "pipeline.py").write_text("")
    upload(model, opened, "first")
    HfApi().upload_file(path_or_fileobj=b"1", path_in_repo="notes.txt", repo_id=opened.id)
    for name in ("unet/model-00002-of-00002.safetensors", "pipeline.py"):
        (model / name).unlink()
    upload(model, opened, "second")
    files = connected.files(opened.id)
    assert set(files) - {".gitattributes"} == {
        "notes.txt",
        *(p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()),
    }
    assert len(published(connected, opened)) == 3


@pytest.mark.parametrize("kind", ["unavailable", "drop", "lose"])
@pytest.mark.parametrize("pattern", ["/repos/create", "/commit/"])
def test_fails_once(pattern, kind, connected, model, waits, capsys):
    connected.fault("POST", pattern, kind)
    repository = open_repository(f"once{pattern.strip('/').replace('/', '-')}-{kind}", private=False, token=None)
    upload(model, repository, "first")
    assert published(connected, repository) == ["first"]
    assert waits == [1]
    assert "trying again in 1 s" in capsys.readouterr().out


def test_whoami_fails_once_and_a_busy_hub_says_when(connected, waits):
    connected.fault("GET", "/whoami", "unavailable")
    connected.fault("POST", "/repos/create", "rate limit", seconds=7)
    open_repository("alice/busy", private=False, token=None)
    assert waits == [1, 7]
    connected.fault("POST", "/repos/create", "rate limit", seconds=3600, times=None)
    with pytest.raises(UserError, match="too many requests"):
        open_repository("alice/busy", private=False, token=None)
    assert waits == [1, 7]


def test_fails_for_good(connected, opened, model, waits):
    connected.fault("POST", "/commit/", "unavailable", times=None)
    with pytest.raises(
        UserError, match="failed, the repository was created and is still empty, publishing again fills"
    ):
        upload(model, opened, "first")
    assert waits == [1, 2, 4, 8, 15]
    assert published(connected, opened) == []
    there = open_repository(opened.id, private=False, token=None)
    assert (opened.created, there.created) == (True, False)
    with pytest.raises(UserError, match="failed, its files are as they were: the Hub answered 503"):
        upload(model, there, "first")
    connected.heal()
    upload(model, there, "first")
    assert published(connected, opened) == ["first"]


def test_a_repository_without_the_right_to_make_one(connected, opened):
    """The Hub refuses before it looks whether it is there."""
    connected.fault("POST", "/repos/create", "forbidden", times=None)
    assert open_repository(opened.id, private=False, token=None).id == opened.id


def test_answers_that_are_always_lost(connected, opened, model, waits, sleeps):
    connected.fault("POST", "/commit/", "lose", times=1)
    connected.fault("POST", "/preupload/", "drop", times=None)
    with pytest.raises(UserError, match="created, the last answer was lost: .* can't be reached or fell silent"):
        upload(model, opened, "first")


def test_pull_request(connected, opened, model):
    info = upload(model, opened, "proposal", create_pr=True)
    assert info.pr_url
    assert published(connected, opened) == []
    assert "model_index.json" in connected.files(opened.id, "refs/pr/1")


def test_pull_request_whose_answer_is_lost_is_not_opened_twice(connected, opened, model, waits):
    connected.fault("POST", "/commit/", "lose")
    with pytest.raises(UserError, match="a pull request may be open: look first"):
        upload(model, opened, "proposal", create_pr=True)
    assert waits == []
    with pytest.raises(Problem):
        connected.files(opened.id, "refs/pr/2")


def test_branch(connected, opened, model):
    for message in ("first", "second"):
        (model / "empty.txt").write_text(message)
        upload(model, opened, message, revision="fp16")
    assert published(connected, opened) == []
    assert connected.files(opened.id, "fp16")["empty.txt"] == b"second"


def test_private(connected):
    for private in (True, False):
        repository = open_repository(f"alice/private-{private}", private=private, token=None)
        assert HfApi().model_info(repository.id).private == private


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bob/model", "it belongs to bob, and the token to alice"),
        ("a b", "not a name that the Hub allows"),
        ("alice/a/b", "not a name that the Hub allows"),
        ("alice/-", "not a name that the Hub allows"),
    ],
)
def test_names(name, said, connected):
    with pytest.raises(UserError, match=f"can't publish to {name}: {said}"):
        open_repository(name, private=False, token=None)


def test_tokens(connected, monkeypatch):
    def refused(token: str | None) -> str:
        with pytest.raises(UserError) as raised:
            open_repository("alice/model", private=False, token=token)
        assert "\n" not in str(raised.value)
        assert str(token) not in str(raised.value)
        return str(raised.value)

    assert "the token of alice may only read" in refused(connected.token("alice", "read"))
    assert "the Hub doesn't know this token" in refused("hf_unknown")
    monkeypatch.delenv("HF_TOKEN")
    assert "no token; run `hf auth login`" in refused(None)


def test_no_network(connected, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 can't be reached or fell silent \(ConnectError\)"):
        open_repository("alice/model", private=False, token=None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it"):
        open_repository("alice/model", private=False, token=None)


def test_hub_that_comes_back(connected, opened, model, waits, sleeps, monkeypatch):
    """It is gone when the upload begins, and back at the third attempt."""

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) >= 3 and connected.process.poll() is not None:
            connected.start()

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    connected.stop()
    upload(model, opened, "first")
    assert published(connected, opened) == ["first"]
    assert waits[:3] == [1, 2, 4]


def test_other_errors_are_not_repeated(waits):
    def fail() -> None:
        raise httpx2.UnsupportedProtocol("no")

    with pytest.raises(KeyError):
        module.persistently(lambda: {}["a"], "nothing")
    assert waits == []


def test_script(connected, train, tmp_path, monkeypatch, capsys):
    """publish.py: a branch, a variant, a Space, and the message at the end."""
    run = train(tmp_path / "run", class_conditional=False, objective="epsilon")
    words = ["--model", str(run), "--hub_model_id", "alice/script", "--private", "--license", "mit"]
    words += ["--no-stock_pipeline"]  # which is what it would be published as

    def call(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["publish.py", *words, *more])
        publish.main()
        return capsys.readouterr().out

    assert f"{connected.endpoint}/alice/script/commit/" in call("--variant", "fp16", "--space")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in connected.files("alice/script")
    space = connected.files("spaces/alice/script")
    assert {"app.py", "model.txt", "README.md", "requirements.txt"} <= set(space)
    assert space["model.txt"] == b"alice/script"
    assert HfApi().repo_info("alice/script", repo_type="space").private
    call("--stock_pipeline", "--revision", "stock")
    assert "pipeline.py" not in connected.files("alice/script", "stock")
    assert "pipeline.py" in connected.files("alice/script")
    assert "/discussions/" in call("--create_pr", "--stock_pipeline")
    before = connected.files("alice/script")
    commits = len(connected.commits("alice/script"))
    call("--variant", "fp16")
    assert connected.files("alice/script") == before
    assert len(connected.commits("alice/script")) == commits
