"""What the real clients make of the local Hub's faults."""

import re
import socket
import struct
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from tests.hub_server import Hub
from tests.hub_server.examples import LARGE, WEIGHTS, bearer, status, upload

pytest_plugins = ["tests.hub"]


def test_repeated_by_the_client(hub, api, repo, model, tmp_path, sleeps):
    """Out of service once: what the client itself tries again."""
    steps = [("POST", "/preupload/"), ("POST", "/objects/batch"), ("PUT", "/lfs/"), ("POST", "/verify")]
    for method, pattern in [*steps, ("GET", "/tree/"), ("HEAD", "/resolve/.*README")]:
        hub.fault(method, pattern, "unavailable")
    api.upload_folder(repo_id=repo, folder_path=model)
    assert len(sleeps) == len(steps)
    assert len(api.list_repo_files(repo)) == 6
    api.hf_hub_download(repo, "README.md", cache_dir=tmp_path)
    assert len(sleeps) == len(steps) + 1
    heads = [line.split()[-1] for line in hub.requests() if line.startswith(f"HEAD /{repo}/")]
    assert heads == ["503", "200"]  # the client asks again at once


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("GET", "/whoami"),
        ("POST", "/repos/create"),
        ("GET", "/api/models/alice/[^/]*$"),
        ("POST", "/validate-yaml"),
        ("POST", "/commit/"),
        ("GET", "/resolve/"),
    ],
)
def test_not_repeated_by_the_client(hub, api, repo, sleeps, tmp_path, method, pattern):
    def everything() -> None:
        api.whoami()
        api.create_repo(repo, exist_ok=True)
        api.model_info(repo)
        upload(api, repo, b"---\nlicense: mit\n---\n", "README.md")
        api.hf_hub_download(repo, "README.md", cache_dir=tmp_path)

    hub.fault(method, pattern, "unavailable")
    assert status(everything) == 503
    assert sleeps == []
    everything()


def test_for_ever_and_until_healed(hub, api, repo, sleeps):
    hub.fault("POST", "/preupload/", "unavailable", times=None)
    assert status(lambda: upload(api, repo)) == 503
    assert sleeps == [1, 2, 4, 8, 8]
    assert len(hub.commits(repo)) == 1
    hub.heal()
    upload(api, repo)
    hub.fault("POST", "/preupload/", "unavailable", times=2)
    upload(api, repo, b"2")
    assert len(sleeps) == 7


def test_rate_limit(hub, api, repo, sleeps):
    hub.fault("POST", "/preupload/", "rate limit", seconds=7)
    upload(api, repo)
    assert sleeps == [8]
    hub.fault("POST", "/commit/", "rate limit")
    assert status(lambda: upload(api, repo, b"2")) == 429


def test_dropped(hub, api, repo, sleeps):
    hub.fault("POST", "/repos/create", "drop")
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_repo("alice/never")
    assert not api.repo_exists("alice/never")
    hub.fault("POST", "/commit/", "drop")
    sent = len(hub.requests())
    with pytest.raises(httpx2.RemoteProtocolError):
        upload(api, repo, WEIGHTS)
    assert (len(hub.commits(repo)), sleeps) == (1, [])
    hub.fault("POST", "/preupload/", "drop")
    upload(api, repo, WEIGHTS)
    assert (len(hub.commits(repo)), len(sleeps)) == (2, 1)
    assert sum(line.startswith("PUT ") for line in hub.requests()[sent:]) == 1  # what is there isn't sent again


def test_lost_answers(hub, api, repo, model):
    """What was asked is done: asking again changes nothing."""
    hub.fault("POST", "/commit/", "lose")
    with pytest.raises(httpx2.RemoteProtocolError):
        api.upload_folder(repo_id=repo, folder_path=model)
    head = hub.commits(repo)[0].oid
    assert len(hub.commits(repo)) == 2
    assert api.upload_folder(repo_id=repo, folder_path=model).oid == head
    hub.fault("POST", "/repos/create", "lose")
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_repo("alice/lost")
    assert status(lambda: api.create_repo("alice/lost")) == 409


@pytest.mark.parametrize("name", ["text.txt", "w.safetensors"])
def test_truncated(hub, api, repo, tmp_path, sleeps, name):
    content = b"text" * 100 if name == "text.txt" else WEIGHTS
    upload(api, repo, content, name)
    hub.fault("GET", f"/{re.escape(name)}", "truncate")
    assert Path(api.hf_hub_download(repo, name, cache_dir=tmp_path / "a")).read_bytes() == content
    assert sleeps == [1]
    hub.fault("GET", f"/{re.escape(name)}", "truncate", times=None)
    with pytest.raises(httpx2.RemoteProtocolError):
        api.hf_hub_download(repo, name, cache_dir=tmp_path / "b")
    assert sleeps == [1] * 6


@pytest.mark.parametrize("name", ["text.txt", "w.safetensors"])
def test_corrupt(hub, api, repo, tmp_path, name):
    """One bit of the right length: accepted, until checksums are compared."""
    content = b"text" * 100 if name == "text.txt" else WEIGHTS
    upload(api, repo, content, name)
    hub.fault("GET", f"/api/|/{re.escape(name)}", "corrupt")
    folder = Path(api.snapshot_download(repo, cache_dir=tmp_path))
    got = (folder / name).read_bytes()
    assert len(got) == len(content)
    assert sum(a != b for a, b in zip(got, content, strict=True)) == 1
    found = api.verify_repo_checksums(repo, cache_dir=tmp_path)
    assert [m["path"] for m in found.mismatches] == [name]
    again = Path(api.snapshot_download(repo, cache_dir=tmp_path, force_download=True))
    assert (again / name).read_bytes() == content


def test_slow(hub, api):
    hub.fault("GET", "/whoami", "slow", seconds=0.4)
    began = time.monotonic()
    api.whoami()
    assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize("size", [len(WEIGHTS), len(LARGE)])
def test_killed_in_an_upload(tmp_path, hub, size):
    """The client waits for the Hub to come back, and then finishes; nothing is there before."""
    with Hub(tmp_path / "other") as other:
        api = HfApi(other.endpoint, other.token("alice"))
        repo = api.create_repo("alice/model").repo_id
        other.fault("PUT", "/part2" if size == len(LARGE) else "/lfs/", "kill")
        thread = threading.Thread(target=upload, args=(api, repo, LARGE[:size], "w.bin"))
        thread.start()
        other.wait()
        assert "w.bin" not in other.files(repo)
        other.start()
        thread.join(30)
        assert other.files(repo)["w.bin"] == LARGE[:size]
        assert len(other.commits(repo)) == 2


def test_clients_that_hang_up(hub, api):
    """Are none of its business."""
    with socket.create_connection(("127.0.0.1", urlsplit(hub.endpoint).port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
        client.sendall(b"POST /api/validate-yaml HTTP/1.1\r\nContent-Length: 10\r\n\r\n")
        time.sleep(0.1)
    time.sleep(0.1)
    api.whoami()
    assert not [line for line in hub.requests() if "Traceback" in line]


def test_restart(tmp_path, hub, model):
    """Repositories, refs, tokens and signed addresses outlive the process; faults don't."""
    with Hub(tmp_path / "other") as other:
        api = HfApi(other.endpoint, other.token("alice"))
        repo = api.create_repo("alice/model", private=True).repo_id
        head = api.upload_folder(repo_id=repo, folder_path=model).oid
        api.create_tag(repo, tag="v1")
        url = f"{other.endpoint}/{repo}/resolve/v1/unet/model.safetensors"
        address = httpx2.head(url, headers=bearer(other)).headers["Location"]
        api.delete_repo(api.create_repo("alice/other").repo_id)
        other.fault("GET", "/", "unavailable", times=None)
        endpoint, files = other.endpoint, other.files(repo)
        other.stop()
        with pytest.raises(httpx2.ConnectError):
            api.whoami()
        other.start()
        assert other.endpoint == endpoint
        assert httpx2.get(address).content == WEIGHTS
        assert api.model_info(repo, revision="v1").sha == head
        assert other.files(repo) == files
        assert [m.id for m in api.list_models()] == [repo]
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint, False).model_info(repo)
    assert Hub(tmp_path / "other").commits(repo)[0].oid == head
