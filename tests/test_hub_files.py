"""Files on the local Hub, as the real clients see them."""

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils.sha import git_hash

from tests.hub_server.examples import LARGE, WEIGHTS, bearer, contents, upload
from tests.hub_server.repositories import PAGE

pytest_plugins = ["tests.hub"]


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_round_trip(hub, api, model, tmp_path, kind):
    (model / "large.bin").write_bytes(LARGE)
    url = api.create_repo(f"alice/trip-{kind}", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    assert (url.repo_id, url.repo_type) == (f"alice/trip-{kind}", kind)
    options = {"repo_id": url.repo_id, "repo_type": kind}
    made = api.upload_folder(folder_path=model, commit_message="All of it", **options)
    repo = url.repo_id if kind == "model" else f"{kind}s/{url.repo_id}"
    assert [(c.oid, c.title) for c in hub.commits(repo)][:1] == [(made.oid, "All of it")]
    assert len(hub.commits(repo)) == 2
    got = Path(api.snapshot_download(cache_dir=tmp_path / "cache", **options))
    assert got.name == made.oid
    published = contents(model) | {".gitattributes": (got / ".gitattributes").read_bytes()}
    assert contents(got) == hub.files(repo) == published
    verified = api.verify_repo_checksums(cache_dir=tmp_path / "cache", **options)
    assert (verified.checked_count, verified.mismatches, verified.missing_paths) == (len(published), [], [])
    in_lfs = {f.path for f in api.list_repo_tree(recursive=True, **options) if getattr(f, "lfs", None)}
    assert in_lfs == {"unet/model.safetensors", "large.bin"}
    assert not list(hub.folder.rglob("*.part*"))


def test_no_commit_for_what_is_there(hub, api, repo, model):
    first = api.upload_folder(repo_id=repo, folder_path=model)
    assert api.upload_folder(repo_id=repo, folder_path=model).oid == first.oid
    assert len(hub.commits(repo)) == 2
    (model / "unet/model.safetensors").write_bytes(WEIGHTS[::-1])
    sent = len(hub.requests())
    assert api.upload_folder(repo_id=repo, folder_path=model).oid != first.oid
    assert sum(" /lfs/" in line for line in hub.requests()[sent:]) == 1
    assert hub.files(repo)["unet/model.safetensors"] == WEIGHTS[::-1]


def test_trees(api, repo, model):
    api.upload_folder(repo_id=repo, folder_path=model, commit_message="First")
    upload(api, repo, b"{}", "unet/config.json", commit_message="Second")
    upload(api, repo, b"{}", "unet2/config.json", commit_message="Third")
    names = {".gitattributes", "README.md", "empty.txt", "model_index.json", "unet", "unet2"}
    assert {e.path for e in api.list_repo_tree(repo)} == names
    inside = {e.path for e in api.list_repo_tree(repo, "unet")}
    assert inside == {"unet/config.json", "unet/model.safetensors"}
    assert {e.path for e in api.list_repo_tree(repo, recursive=True)} == names | inside | {"unet2/config.json"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "nothing"))
    found = api.get_paths_info(repo, ["unet", "unet/model.safetensors", "nothing"], expand=True)
    assert [(e.path, e.last_commit.title) for e in found] == [("unet", "Second"), ("unet/model.safetensors", "First")]
    assert found[1].size == found[1].lfs.size == len(WEIGHTS)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{found[1].lfs.sha256}\nsize {len(WEIGHTS)}\n"
    assert (found[1].blob_id, found[1].lfs.pointer_size) == (git_hash(pointer.encode()), len(pointer))
    assert api.get_paths_info(repo, "unet")[0].last_commit is None
    sizes = {s.rfilename: s.size for s in api.model_info(repo, files_metadata=True).siblings or []}
    assert sizes["unet/model.safetensors"] == len(WEIGHTS)


def test_pages_of_trees(api, repo, tmp_path):
    for number in range(2 * PAGE):
        (tmp_path / f"{number}.txt").write_text(str(number))
    api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert len(list(api.list_repo_tree(repo))) == len(api.list_repo_files(repo)) == 2 * PAGE + 1


@pytest.mark.parametrize("name", ["text.txt", "w.safetensors"])
def test_ranges(hub, api, repo, name):
    upload(api, repo, WEIGHTS.replace(b"\0", b"1") if name == "text.txt" else WEIGHTS, name)
    content = hub.files(repo)[name]
    with HfFileSystem(endpoint=hub.endpoint, token=api.token).open(f"{repo}/{name}", block_size=100) as file:
        file.seek(1000)
        assert file.read(300) == content[1000:1300]
    url = f"{hub.endpoint}/{repo}/resolve/main/{name}"

    client = httpx2.Client(follow_redirects=True)  # one connection, where too long a body would be the next answer

    def get(wanted: str) -> httpx2.Response:
        return client.get(url, headers={"Range": f"bytes={wanted}"})

    cases = {"5-9": content[5:10], f"{len(content) - 3}-": content[-3:], "-4": content[-4:], "9-99999999": content[9:]}
    for wanted, expected in cases.items():
        assert (get(wanted).status_code, get(wanted).content) == (206, expected)
    assert get("0-0").headers["Content-Range"] == f"bytes 0-0/{len(content)}"
    assert get(f"{len(content)}-").status_code == 416
    assert get("-").content == content


def test_large_files_are_elsewhere(hub, api, repo, tmp_path):
    """And their addresses are signed, since no token goes there."""
    upload(api, repo, WEIGHTS, "w.safetensors")
    answer = httpx2.head(f"{hub.endpoint}/{repo}/resolve/main/w.safetensors")
    assert (answer.status_code, answer.headers["X-Repo-Commit"]) == (302, hub.commits(repo)[0].oid)
    address = answer.headers["Location"]
    assert address.startswith("http://localhost:")
    assert httpx2.get(address).content == WEIGHTS
    assert httpx2.get(address.partition("?")[0]).status_code == 403
    with pytest.raises(EntryNotFoundError) as raised:
        api.hf_hub_download(repo, "nothing.txt", cache_dir=tmp_path)
    assert raised.value.response.headers["X-Repo-Commit"] == hub.commits(repo)[0].oid


def test_uploads_are_checked(hub, repo):
    """Content must be what its name says, and a commit needs what it names."""
    address = f"{hub.endpoint}/{repo}.git/info/lfs"
    oids = [hashlib.sha256(content).hexdigest() for content in (b"abc", LARGE)]

    def post(url: str, token: str, **content: Any) -> httpx2.Response:
        return httpx2.post(url, json=content, headers={"Authorization": f"Bearer {token}"})

    def verify(size: int, token: str, oid: str = oids[0]) -> int:
        return post(f"{address}/verify", token, oid=oid, size=size).status_code

    reader, writer = hub.token("alice", "read"), hub.token("alice")
    wanted = [{"oid": oid, "size": size} for oid, size in zip(oids, (3, len(LARGE)), strict=True)]
    assert post(f"{address}/objects/batch", reader, objects=wanted).status_code == 403
    batch = post(f"{address}/objects/batch", writer, objects=wanted).json()["objects"]
    small, large = (o["actions"]["upload"] for o in batch)
    assert httpx2.put(small["href"], content=b"abd").status_code == 400
    assert httpx2.put(small["href"][:-1], content=b"abc").status_code == 403
    assert [verify(3, writer), verify(hub.folder.joinpath("secret").stat().st_size, writer, "../secret")] == [400, 400]
    assert httpx2.put(small["href"], content=iter([b"ab", b"c"])).status_code == 200
    assert [verify(3, reader), verify(4, writer), verify(3, writer)] == [403, 400, 200]

    part, unsigned = large["header"]["1"], [url.partition("?")[0] for url in (large["header"]["1"], large["href"])]
    assert httpx2.put(unsigned[0], content=b"abc").status_code == 403
    etag = httpx2.put(part, content=b"abc").headers["ETag"]
    for numbers in ([1], [1, 2]):
        parts = [{"partNumber": n, "etag": etag} for n in numbers]
        assert post(large["href"], writer, parts=parts).status_code == 400
        assert post(unsigned[1], writer, parts=parts).status_code == 403
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": {"path": "a", "oid": oids[1]}}]
    body, url = "\n".join(json.dumps(line) for line in lines), f"{hub.endpoint}/api/models/{repo}/commit/main"
    assert httpx2.post(url, content=body, headers=bearer(hub)).status_code == 400
    assert httpx2.post(url, content=body, headers={"Authorization": f"Bearer {reader}"}).status_code == 403
    assert len(hub.commits(repo)) == 1


def test_what_is_large(hub, repo):
    """By name, by size, or because it isn't text."""
    files = {"a.safetensors": b"text", "a.png": b"\x89PNG\0", "a.json": b"{}", "a.csv": b"1,2"}
    asked = [{"path": p, "size": len(c), "sample": base64.b64encode(c).decode()} for p, c in files.items()]
    asked[-1]["size"] = 11 << 20
    url = f"{hub.endpoint}/api/models/{repo}/preupload/main"
    answer = httpx2.post(url, json={"files": asked}, headers=bearer(hub)).json()
    modes = {file["path"]: file["uploadMode"] for file in answer["files"]}
    assert modes == {"a.safetensors": "lfs", "a.png": "lfs", "a.json": "regular", "a.csv": "lfs"}


LOADING = """
import json, sys
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError

def numbers(*names, **options):
    try:
        return [row["number"] for row in load_dataset(*names, split="train", **options)]
    except DatasetNotFoundError:
        return "not found"

print(json.dumps({
    "private, no token": numbers("alice/secret-numbers", token=False),  # first: what was loaded before is served
    "public": numbers("alice/numbers", token=False),
    "revision": numbers("alice/numbers", revision="v1", token=False),
    "streaming": numbers("alice/numbers", streaming=True),
    "private": numbers("alice/secret-numbers"),
    "private, streaming": numbers("alice/secret-numbers", streaming=True),
    "nothing": numbers("alice/nothing"),
    "torch": "torch" in sys.modules,
}))
"""


def test_datasets(hub, api, tmp_path):
    """In another process, since these read the Hub's address when they are imported."""
    import pyarrow as pa
    from pyarrow import parquet

    for name, private in (("alice/numbers", False), ("alice/secret-numbers", True)):
        api.create_repo(name, repo_type="dataset", private=private)
        for first in (1, 10):
            parquet.write_table(pa.table({"number": [first, first + 1]}), tmp_path / "n.parquet")
            upload(api, name, (tmp_path / "n.parquet").read_bytes(), "data/train.parquet", repo_type="dataset")
            if first == 1:
                api.create_tag(name, tag="v1", repo_type="dataset")
    others = {"USE_TORCH": "0", "HTTP_PROXY": "http://127.0.0.1:9"}  # a fast start, and a proxy that isn't asked
    done = subprocess.run(
        [sys.executable, "-c", LOADING],
        env=hub.environment(hub.token("alice", "read"), tmp_path / "home") | others,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "public": [10, 11],
        "revision": [1, 2],
        "streaming": [10, 11],
        "private": [10, 11],
        "private, streaming": [10, 11],
        "private, no token": "not found",
        "nothing": "not found",
        "torch": False,
    }
