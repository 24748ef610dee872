"""The JSON API: users, repositories, revisions and commits."""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, urlencode

from tests.hub_server.cards import metadata
from tests.hub_server.messages import Answer, Problem, Request, as_json
from tests.hub_server.storage import Commit, File, Repo, pointer

PAGE = 100  # entries of a tree in one answer
TRUE = ("true", "1")
# As in the real Hub's .gitattributes, as far as we publish such files; others by what they hold.
LARGE = re.compile(r".*\.(safetensors|bin|pt|ckpt|npz|npy|parquet|arrow|zip|gz|tar|onnx|h5)")
LARGE_SIZE = 10 << 20


def whoami(r: Request) -> Answer:
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": r.role}}
    return as_json({"type": "user", "id": r.user, "name": r.user, "fullname": r.user, "orgs": [], "auth": auth})


def validate_yaml(r: Request) -> Answer:
    try:
        found = metadata(r.json["content"])
    except ValueError as error:
        return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": [] if found else [{"message": "empty or missing yaml metadata"}]})


def named(r: Request) -> tuple[str, str]:
    """Type and name of the repository that a request to create or delete is about: one of the user's own."""
    owner = r.json.get("organization") or r.user
    if not re.fullmatch(r"[\w.-]{1,96}", r.json["name"]) or re.search(r"--|\.\.|\.git$", r.json["name"]):
        raise Problem(400, f"Invalid repository name {r.json['name']!r}")
    if owner != r.user:
        raise Problem(403, f'You don\'t have the rights to create or delete a repository under the namespace "{owner}"')
    return f"{r.json.get('type') or 'model'}s", f"{owner}/{r.json['name']}"


def create(r: Request) -> Answer:
    type_, id_ = named(r)
    if repo := r.store.repos.get(f"{type_}/{id_}"):
        message = f"You already created this {type_[:-1]} repo"
        return as_json({"error": message, "url": r.base + repo.page}, 409, **{"X-Error-Message": message})
    repo = r.store.create(type_, id_, r.json.get("visibility") == "private")
    return as_json({"url": r.base + repo.page, "name": id_, "id": id_})


def delete(r: Request) -> Answer:
    type_, id_ = named(r)
    if not r.store.repos.pop(f"{type_}/{id_}", None):
        raise Problem(404, "Repository not found", "RepoNotFound")
    return Answer()


def change_settings(r: Request) -> Answer:
    r.repo.private = r.json["visibility"] == "private"
    return as_json({"private": r.repo.private})


def card(r: Request, repo: Repo, commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    try:
        return metadata(r.store.blob(readme.sha256).read_text()) if readme else {}
    except ValueError:
        return {}


def described(r: Request, repo: Repo, commit: Commit) -> dict[str, Any]:
    values = card(r, repo, commit)
    kept = {name: values[name] for name in ("library_name", "pipeline_tag", "sdk") if name in values}
    return kept | {
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.oid,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "tags": values.get("tags") or [],
        "cardData": values,
        "siblings": [
            {"rfilename": path, "size": file.size, "blobId": file.oid} | _lfs(file, "sha256")
            for path, file in commit.files.items()
        ],
    }


def info(r: Request) -> Answer:
    return as_json(described(r, r.repo, r.repo.at(r.words.get("revision", "main"))))


def listing(r: Request) -> Answer:
    query = r.query
    found = [
        described(r, repo, repo.at("main"))
        for repo in r.store.repos.values()
        if repo.type == r.words["type"]
        and (not repo.private or repo.owner == r.user)
        and query.get("author", repo.owner) == repo.owner
        and query.get("search", "").lower() in repo.id.lower()
    ]
    return as_json(found)


def _lfs(file: File, name: str) -> dict[str, Any]:
    size = len(pointer(file.sha256, file.size))
    return {"lfs": {name: file.sha256, "size": file.size, "pointerSize": size}} if file.lfs else {}


def _inside(commit: Commit, path: str) -> dict[str, str]:
    """Git's names of a file, or of all files in a folder."""
    return {p: f.oid for p, f in commit.files.items() if p == path or p.startswith(f"{path}/")}


def _entry(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    if file := commit.files.get(path):
        entry = {"type": "file", "path": path, "oid": file.oid, "size": file.size} | _lfs(file, "oid")
    else:
        oid = hashlib.sha1(json.dumps(_inside(commit, path)).encode()).hexdigest()
        entry = {"type": "directory", "path": path, "oid": oid, "size": 0}
    if expand:
        last = commit
        while last.parent and _inside(repo.commits[last.parent], path) == _inside(commit, path):
            last = repo.commits[last.parent]
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return entry


def tree(r: Request) -> Answer:
    commit, query, folder = r.repo.at(r.words["revision"]), r.query, r.words.get("path", "").strip("/")
    start = f"{folder}/" if folder else ""
    paths = set()
    for path in commit.files:
        if path.startswith(start):
            parts = path.removeprefix(start).split("/")
            depths = range(1, len(parts) + 1) if query.get("recursive") in TRUE else [1]
            paths |= {start + "/".join(parts[:depth]) for depth in depths}
    if folder and not paths:
        raise Problem(404, f"{folder} does not exist on {r.words['revision']}", "EntryNotFound")
    first = int(query.get("cursor", 0))
    page = sorted(paths)[first : first + PAGE]
    answer = as_json([_entry(r.repo, commit, path, query.get("expand") in TRUE) for path in page])
    if first + PAGE < len(paths):
        answer.headers["Link"] = f"<{r.base}{r.path}?{urlencode(query | {'cursor': str(first + PAGE)})}>; rel=next"
    return answer


def paths_info(r: Request) -> Answer:
    form = parse_qs(r.body.decode())
    commit, expand = r.repo.at(r.words["revision"]), form.get("expand") in [[word] for word in TRUE]
    asked = [path.strip("/") for path in form.get("paths", [])]
    return as_json([_entry(r.repo, commit, path, expand) for path in asked if _inside(commit, path)])


def refs(r: Request) -> Answer:
    def those(start: str) -> list[dict[str, str]]:
        names = [name for name in r.repo.refs if name.startswith(start)]
        return [{"name": n.removeprefix(start), "ref": n, "targetCommit": r.repo.refs[n]} for n in names]

    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
    return as_json({"converts": []} | {kind: those(start) for kind, start in kinds.items()})


def commits(r: Request) -> Answer:
    return as_json(
        [
            {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in r.repo.history(r.words["revision"])
        ]
    )


def _new_ref(r: Request, name: str, revision: str) -> Answer:
    if name in r.repo.refs:
        raise Problem(409, f"Reference {name} already exists")
    r.repo.refs[name] = r.repo.at(revision).oid
    return Answer()


def new_branch(r: Request) -> Answer:
    return _new_ref(r, f"refs/heads/{r.words['name']}", r.json.get("startingPoint", "main"))


def new_tag(r: Request) -> Answer:
    return _new_ref(r, f"refs/tags/{r.json['tag']}", r.words["name"])


def delete_ref(r: Request) -> Answer:
    name = f"refs/{'tags' if r.words['kind'] == 'tag' else 'heads'}/{r.words['name']}"
    if name == "refs/heads/main":
        raise Problem(403, "The branch main can't be deleted")
    if not r.repo.refs.pop(name, None):
        raise Problem(404, f"Invalid rev id: {r.words['name']}", "RevisionNotFound")
    return Answer()


def _may_write(r: Request) -> None:
    """Anyone with a write token may propose a change; only the owner may make one."""
    if r.user != r.repo.owner and "create_pr" not in r.query:
        raise Problem(403, "You don't have write access to this repository; pass create_pr=1 to propose a change")


def preupload(r: Request) -> Answer:
    _may_write(r)
    known = r.repo.commits[r.repo.refs[r.repo.ref(r.words["revision"])]].files
    files = []
    for file in r.json["files"]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        large = LARGE.fullmatch(path) or b"\0" in sample or file["size"] > LARGE_SIZE
        old = {"oid": known[path].etag} if path in known else {}
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False} | old)
    return as_json({"files": files})


def _changed(r: Request, files: dict[str, File], key: str, value: dict[str, str]) -> dict[str, File]:
    """The files after one operation of a commit."""
    path = value["path"].rstrip("/")
    if key == "file":
        return files | {path: r.store.regular(base64.b64decode(value["content"]))}
    if key == "lfsFile":
        if value["oid"] not in r.repo.large:
            raise Problem(400, f"LFS pointer {value['oid']} points to a file that was not uploaded here")
        return files | {path: r.store.large(value["oid"])}
    gone = {path} & files.keys() if key == "deletedFile" else {p for p in files if p.startswith(f"{path}/")}
    if not gone:
        raise Problem(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    return {p: f for p, f in files.items() if p not in gone}


def commit(r: Request) -> Answer:
    _may_write(r)
    header, *operations = [json.loads(line) for line in r.body.splitlines()]
    title, message, expected = (header["value"].get(k) or "" for k in ("summary", "description", "parentCommit"))
    ref = r.repo.ref(r.words["revision"])
    parent = r.repo.commits[r.repo.refs[ref]]
    if not parent.oid.startswith(expected):
        raise Problem(412, "A commit has happened since. Please refresh and try again.")
    files = parent.files
    for operation in operations:
        files = _changed(r, files, operation["key"], operation["value"])
    answer = {"success": True, "hookOutput": ""}
    if r.query.get("create_pr"):
        number = 1 + sum(name.startswith("refs/pr/") for name in r.repo.refs)
        ref = f"refs/pr/{number}"
        r.repo.refs[ref] = parent.oid
        answer["pullRequestUrl"] = f"{r.base}{r.repo.page}/discussions/{number}"
    made = r.repo.commit(ref, title, message, r.user or "", files)
    return as_json(answer | {"commitOid": made.oid, "commitUrl": f"{r.base}{r.repo.page}/commit/{made.oid}"})
