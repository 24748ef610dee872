"""The local Hub, as the real clients see it; its faults are in test_hub_faults.py."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from tests.hub_server.examples import WEIGHTS, bearer, status, upload

pytest_plugins = ["tests.hub"]

ROOT = Path(__file__).resolve().parent.parent


def test_users(hub, api):
    assert api.whoami()["name"] == "alice"
    role = HfApi(hub.endpoint, hub.token("bob", "read")).whoami()["auth"]["accessToken"]["role"]
    assert role == "read"
    token = hub.token("alice")
    wrong = [f"hf_{'0' * 40}", f"{token[:-1]}{'1' if token[-1] == '0' else '0'}", "hf_"]
    assert [status(HfApi(hub.endpoint, w).whoami) for w in wrong] == [401] * 3
    assert httpx2.get(f"{hub.endpoint}/api/whoami-v2").status_code == 401


def test_private(hub, api, repo, tmp_path):
    upload(api, repo, WEIGHTS, "w.safetensors")
    api.update_repo_settings(repo, private=True)
    for token in (False, hub.token("bob")):
        other = HfApi(hub.endpoint, token)
        for call in (other.model_info, other.list_repo_files, other.list_repo_refs, other.list_repo_commits):
            with pytest.raises(RepositoryNotFoundError):
                call(repo)
        with pytest.raises(RepositoryNotFoundError):
            other.hf_hub_download(repo, "w.safetensors", cache_dir=tmp_path)
        assert repo not in [m.id for m in other.list_models()]
        with pytest.raises(RepositoryNotFoundError):
            upload(other, repo)
    assert httpx2.get(f"{hub.endpoint}/api/models/{repo}").status_code == 401
    reader = HfApi(hub.endpoint, hub.token("alice", "read"))
    assert Path(reader.hf_hub_download(repo, "w.safetensors", cache_dir=tmp_path)).read_bytes() == WEIGHTS
    assert reader.model_info(repo).private
    assert repo in [m.id for m in reader.list_models(author="alice")]
    api.update_repo_settings(repo, private=False)
    assert not HfApi(hub.endpoint, False).model_info(repo).private
    assert api.model_info(api.create_repo("alice/hidden", private=True).repo_id).private


def test_roles(hub, api, repo):
    for token in (hub.token("alice", "read"), hub.token("bob")):
        other = HfApi(hub.endpoint, token)
        calls = [
            partial(upload, other, repo),
            partial(other.create_branch, repo, branch="b"),
            partial(other.create_tag, repo, tag="t"),
            partial(other.delete_branch, repo, branch="main"),
            partial(other.update_repo_settings, repo, private=True),
            partial(other.delete_repo, repo),
            partial(other.create_repo, "alice/another"),
        ]
        assert [status(call) for call in calls] == [403] * len(calls)
    stranger = HfApi(hub.endpoint, hub.token("bob", "read"))
    assert status(lambda: upload(stranger, repo, create_pr=True)) == 403
    anonymous = HfApi(hub.endpoint, False)
    with pytest.raises(RepositoryNotFoundError, match="401"):
        upload(anonymous, repo)
    wrong = HfApi(hub.endpoint, "hf_" + "0" * 40)
    assert status(lambda: wrong.model_info(repo)) == 401
    with pytest.raises(RepositoryNotFoundError, match="404"):
        upload(api, "alice/nothing")
    assert len(hub.commits(repo)) == 1


def test_create_and_delete(hub, api):
    assert api.create_repo("here").repo_id == "alice/here"
    assert status(lambda: api.create_repo("alice/here")) == 409
    assert api.create_repo("alice/here", exist_ok=True).repo_id == "alice/here"
    assert api.create_repo("alice/here", repo_type="dataset").repo_type == "dataset"
    assert [m.id for m in api.list_models(search="E/HERE")] == ["alice/here"]
    assert [d.id for d in api.list_datasets(author="alice", search="here")] == ["alice/here"]
    assert list(api.list_models(author="bob")) == []
    name = {"name": "a..b", "type": "model"}
    answer = httpx2.post(f"{hub.endpoint}/api/repos/create", json=name, headers=bearer(hub))
    assert answer.status_code == 400
    api.delete_repo("alice/here")
    assert not api.repo_exists("alice/here")
    assert api.repo_exists("alice/here", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("alice/here")


def test_revisions(hub, api, repo, tmp_path):
    first, second = (upload(api, repo, content).oid for content in (b"1", b"2"))
    api.create_tag(repo, tag="v1", revision=first)
    api.create_branch(repo, branch="old/branch", revision="v1")
    api.create_branch(repo, branch="new")
    third = upload(api, repo, b"3", revision="old/branch").oid
    for revision, content in {"main": b"2", "v1": b"1", first[:9]: b"1", second: b"2", "old/branch": b"3"}.items():
        got = api.hf_hub_download(repo, "file.txt", revision=revision, cache_dir=tmp_path)
        assert Path(got).read_bytes() == content
        assert hub.files(repo, revision)["file.txt"] == content
    assert api.model_info(repo, revision="old/branch").sha == third
    refs = api.list_repo_refs(repo)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": second, "new": second, "old/branch": third}
    assert {t.ref: t.target_commit for t in refs.tags} == {"refs/tags/v1": first}
    assert [c.commit_id for c in api.list_repo_commits(repo)][:2] == [second, first]
    assert [c.commit_id for c in api.list_repo_commits(repo, revision="v1")][0] == first
    assert hub.commits(repo, "old/branch")[1].oid == first
    assert status(lambda: api.create_branch(repo, branch="old/branch")) == 409
    assert status(lambda: api.create_tag(repo, tag="v1")) == 409
    assert status(lambda: api.delete_branch(repo, branch="main")) == 403
    for revision in ("v1", "refs/tags/v1", first[:6], "refs/pr/1"):
        with pytest.raises(RevisionNotFoundError):
            upload(api, repo, revision=revision)
    api.delete_tag(repo, tag="v1")
    api.delete_branch(repo, branch="old/branch")
    for revision in ("v1", "old/branch", first[:6]):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(repo, revision=revision)
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo, tag="v1")


def test_pull_requests(hub, api, repo):
    bob = HfApi(hub.endpoint, hub.token("bob"))
    made = upload(bob, repo, WEIGHTS, "w.safetensors", create_pr=True)
    assert made.pr_revision == "refs/pr/1"
    assert "w.safetensors" not in hub.files(repo)
    assert hub.files(repo, "refs/pr/1")["w.safetensors"] == WEIGHTS
    assert upload(api, repo, create_pr=True).pr_num == 2
    more = upload(api, repo, b"more", "more.txt", revision="refs/pr/1")
    assert {"w.safetensors", "more.txt"} < set(api.list_repo_files(repo, revision="refs/pr/1"))
    assert status(lambda: upload(bob, repo, revision="refs/pr/1")) == 403
    pulls = api.list_repo_refs(repo, include_pull_requests=True).pull_requests
    assert {p.ref: p.target_commit for p in pulls or []}["refs/pr/1"] == more.oid
    assert len(hub.commits(repo)) == 1
    assert len(hub.commits(repo, "refs/pr/1")) == 3


def test_changes(hub, api, repo, model):
    before = api.upload_folder(repo_id=repo, folder_path=model).oid
    api.delete_file("empty.txt", repo)
    assert "empty.txt" not in hub.files(repo)
    assert "unet/config.json" in hub.files(repo)
    api.delete_folder("unet", repo)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "README.md", "model_index.json"}
    for call in (lambda: api.delete_file("unet", repo), lambda: api.delete_folder("README.md", repo)):
        with pytest.raises(EntryNotFoundError):
            call()
    assert status(lambda: upload(api, repo, parent_commit=before)) == 412
    head = api.model_info(repo).sha
    assert upload(api, repo, parent_commit=head).oid == hub.commits(repo)[0].oid
    assert "unet/model.safetensors" in hub.files(repo, before)
    assert hub.commits(repo)[0].author == "alice"


def test_cards(api, repo, model):
    api.upload_folder(repo_id=repo, folder_path=model)
    info = api.model_info(repo)
    assert (info.library_name, info.tags, info.card_data.license) == ("diffusers", ["snow"], "mit")
    for readme in (b"---\nlicense: [\n---\n", b"---\n- a\n---\n", b"---\nlicense: mit\n"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            upload(api, repo, readme, "README.md")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        upload(api, repo, b"# Snow", "README.md")


def test_environment(hub, tmp_path, monkeypatch):
    """Nothing of this process's own settings reaches the clients."""
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    got = hub.environment(None, tmp_path)
    assert {name for name in got if name.startswith(("HF_TOKEN", "HF_HUB_OFFLINE"))} == set()
    assert (got["HF_ENDPOINT"], got["HF_HOME"], got["PATH"]) == (hub.endpoint, str(tmp_path), os.environ["PATH"])
    assert (got["HF_HUB_DISABLE_XET"], got["HF_DATASETS_CACHE"]) == ("1", str(tmp_path / "datasets"))
    assert hub.environment("hf_other", tmp_path)["HF_TOKEN"] == "hf_other"


def test_by_hand(tmp_path, hub):
    """What it prints for people works when pasted."""
    words = [sys.executable, "-m", "tests.hub_server", "--port", "0", "--folder", str(tmp_path / "kept")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        lines = [process.stdout.readline()]
        while lines[-1] and not (lines[-1] == "\n" and "  export " in lines[-2]):
            lines.append(process.stdout.readline())
        exported = dict(line.split()[1].split("=", 1) for line in lines if line.startswith("  export "))
        assert lines[0].strip() == exported["HF_ENDPOINT"]
        assert Path(exported["HF_HOME"]).is_relative_to(tmp_path)
        assert HfApi(exported["HF_ENDPOINT"], exported["HF_TOKEN"]).whoami()["name"] == "alice"
        process.terminate()
