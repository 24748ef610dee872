"""Files: reading them, and uploading the large ones."""

import hashlib
import hmac
import math
import re
from urllib.parse import quote

from tests.hub_server.messages import Answer, Problem, Region, Request, as_json
from tests.hub_server.storage import File

CHUNK = 1 << 20  # larger files are uploaded in parts of this size, so that no body is large


def _ranged(r: Request, file: File, headers: dict[str, str]) -> Answer:
    """The file, or the part that the Range header asks for."""
    path, start, stop = r.store.blob(file.sha256), 0, file.size
    headers |= {"Accept-Ranges": "bytes", "ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", r.headers.get("Range", ""))
    if not wanted or wanted.groups() == ("", ""):
        return Answer(200, Region(path, start, stop), headers)
    first, last = wanted.groups()
    if first:
        start, stop = int(first), min(int(last) + 1 if last else stop, stop)
    else:
        start = max(0, stop - int(last))
    if start >= stop:
        raise Problem(416, "Range not satisfiable", Content_Range=f"bytes */{file.size}")
    return Answer(206, Region(path, start, stop), headers | {"Content-Range": f"bytes {start}-{stop - 1}/{file.size}"})


def resolve(r: Request) -> Answer:
    """A file of a revision; a large one is a redirection to where those are stored."""
    commit, path = r.repo.at(r.words["revision"]), r.words["path"]
    headers = {"X-Repo-Commit": commit.oid}
    if not (file := commit.files.get(path)):
        raise Problem(404, f"{path} does not exist on {r.words['revision']}", "EntryNotFound", **headers)
    if not file.lfs:
        return _ranged(r, file, headers)
    name = quote(path.rpartition("/")[2])
    return Answer(
        302,
        headers={
            **headers,
            "ETag": f'"{file.oid}"',
            "X-Linked-ETag": f'"{file.sha256}"',
            "X-Linked-Size": str(file.size),
            "Location": f"{r.storage}/lfs/{file.sha256}/{name}?signature={r.store.sign('GET', file.sha256)}",
        },
    )


def _signed(r: Request, *words: str) -> None:
    if not hmac.compare_digest(r.query.get("signature", ""), r.store.sign(*words)):
        raise Problem(403, "The signature of this URL is not ours")


def download(r: Request) -> Answer:
    _signed(r, "GET", r.words["oid"])
    return _ranged(r, r.store.large(r.words["oid"]), {})


def batch(r: Request) -> Answer:
    """Where to upload which large files: none that this repository has already."""
    return as_json({"transfer": "basic", "objects": [_wanted(r, o["oid"], o["size"]) for o in r.json["objects"]]})


def _wanted(r: Request, oid: str, size: int) -> dict:
    def url(*words: str) -> str:
        return f"{r.storage}/lfs/{'/'.join(words)}?signature={r.store.sign('PUT', *words)}"

    known = {"oid": oid, "size": size}
    if oid in r.repo.large:
        return known
    upload: dict = {"href": url(oid)}
    if size > CHUNK:
        parts = {str(n + 1): url(oid, f"part{n + 1}") for n in range(math.ceil(size / CHUNK))}
        upload = {"href": url(oid, "complete"), "header": {"chunk_size": str(CHUNK)} | parts}
    verify = {"href": f"{r.base}{r.path.removesuffix('/objects/batch')}/verify"}
    return known | {"actions": {"upload": upload, "verify": verify}}


def _keep(r: Request, oid: str, content: bytes) -> Answer:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Problem(400, f"What was uploaded is not {oid}")
    r.store.write(oid, content)
    return Answer()


def upload(r: Request) -> Answer:
    _signed(r, "PUT", r.words["oid"])
    return _keep(r, r.words["oid"], r.body)


def upload_part(r: Request) -> Answer:
    _signed(r, "PUT", r.words["oid"], r.words["part"])
    r.store.write(f"{r.words['oid']}.{r.words['part']}", r.body)
    return Answer(headers={"ETag": f'"{hashlib.md5(r.body).hexdigest()}"'})


def complete(r: Request) -> Answer:
    """Joins the parts."""
    oid = r.words["oid"]
    _signed(r, "PUT", oid, "complete")
    files = [r.store.blob(f"{oid}.part{part['partNumber']}") for part in r.json["parts"]]
    answer = _keep(r, oid, b"".join(file.read_bytes() for file in files if file.exists()))
    for file in files:
        file.unlink()
    return answer


def verify(r: Request) -> Answer:
    if r.store.large(r.json["oid"]).size != r.json["size"]:
        raise Problem(400, f"{r.json['oid']} has another size")
    r.repo.large.append(r.json["oid"])
    return Answer()
