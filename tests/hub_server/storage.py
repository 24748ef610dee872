"""What the Hub keeps, in one folder: blobs by their sha256, and a JSON file of repositories, replaced as a whole."""

import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.hub_server.messages import Problem

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class File:
    sha256: str
    size: int
    oid: str  # git's: of the content, or of what git keeps in its place when it is in LFS
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    type: str  # models, datasets or spaces
    id: str
    private: bool
    created: str
    refs: dict[str, str] = field(default_factory=dict)  # "refs/heads/main" and the like -> commit
    commits: dict[str, Commit] = field(default_factory=dict)
    large: list[str] = field(default_factory=list)  # files in LFS that were uploaded here, committed or not

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    @property
    def page(self) -> str:
        """Where a browser would find it."""
        return f"/{self.id}" if self.type == "models" else f"/{self.type}/{self.id}"

    def ref(self, revision: str) -> str:
        """The full name of a branch or a pull request, which are what one can commit to."""
        for name in (revision, f"refs/heads/{revision}"):
            if name in self.refs and not name.startswith("refs/tags/"):
                return name
        raise Problem(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def at(self, revision: str) -> Commit:
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        for oid, commit in self.commits.items():
            if len(revision) >= 7 and oid.startswith(revision):
                return commit
        raise Problem(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def commit(self, ref: str, title: str, message: str, author: str, files: dict[str, File]) -> Commit:
        parent, date = self.refs.get(ref), now()
        names = json.dumps([parent, ref, title, message, author, date, {k: v.oid for k, v in files.items()}])
        commit = Commit(hashlib.sha1(names.encode()).hexdigest(), parent, title, message, author, date, files)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit


def pointer(sha256: str, size: int) -> bytes:
    """What git keeps of a file in LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Store:
    """All that survives a restart, once it is saved. Whoever changes it holds `lock`."""

    def __init__(self, folder: Path):
        self.blobs, self.state = folder / "blobs", folder / "repositories.json"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        secret = folder / "secret"
        if not secret.exists():
            secret.write_text(secrets.token_hex())
        self.secret = secret.read_text().encode()
        self.repos: dict[str, Repo] = {}
        for key, value in json.loads(self.state.read_text() if self.state.exists() else "{}").items():
            for oid, commit in value["commits"].items():
                files = {path: File(**file) for path, file in commit["files"].items()}
                value["commits"][oid] = Commit(**commit | {"files": files})
            self.repos[key] = Repo(**value)

    def save(self) -> None:
        unfinished = self.state.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({key: asdict(repo) for key, repo in self.repos.items()}))
        os.replace(unfinished, self.state)

    def create(self, type_: str, id_: str, private: bool) -> Repo:
        repo = self.repos[f"{type_}/{id_}"] = Repo(type_, id_, private, now())
        repo.commit("refs/heads/main", "initial commit", "", "system", {".gitattributes": self.regular(GIT_ATTRIBUTES)})
        return repo

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256

    def write(self, name: str, content: bytes) -> None:
        unfinished = self.blobs / f"{name}.{threading.get_ident()}.unfinished"
        unfinished.write_bytes(content)
        os.replace(unfinished, self.blobs / name)

    def regular(self, content: bytes) -> File:
        """A file that is in git itself."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.write(sha256, content)
        return File(sha256, len(content), git_oid(content), lfs=False)

    def large(self, sha256: str) -> File:
        """A file in LFS, uploaded before."""
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not self.blob(sha256).exists():
            raise Problem(400, f"LFS pointer {sha256} points to no file")
        size = self.blob(sha256).stat().st_size
        return File(sha256, size, git_oid(pointer(sha256, size)), lfs=True)

    def sign(self, *words: object) -> str:
        return hmac.digest(self.secret, json.dumps(words).encode(), "sha256").hex()[:20]

    def token(self, user: str, role: str) -> str:
        """Holds what it grants, signed: nothing needs to be registered, and it stays valid as long as the folder."""
        return f"hf_{f'{user}:{role}'.encode().hex()}{self.sign('token', user, role)}"

    def holder(self, token: str) -> tuple[str, str]:
        """The user and the role that a token stands for."""
        try:
            user, role = bytes.fromhex(token[3:-20]).decode().split(":")
        except ValueError:
            user = role = ""
        if not hmac.compare_digest(token.encode(), self.token(user, role).encode()):
            raise Problem(401, "Invalid credentials in Authorization header")
        return user, role
