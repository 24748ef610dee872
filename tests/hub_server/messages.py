"""What comes in, what goes out, and what went wrong."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.hub_server.storage import Repo, Store

PIECE = 1 << 20


@dataclass(frozen=True)
class Region:
    """Bytes `start` to `stop` of a file, which is read while it is sent."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass
class Answer:
    status: int = 200
    body: bytes | Region = b""
    headers: dict[str, str] = field(default_factory=dict)

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body
            return
        with self.body.path.open("rb") as file:
            file.seek(self.body.start)
            for position in range(self.body.start, self.body.stop, PIECE):
                yield file.read(min(PIECE, self.body.stop - position))


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Problem(Exception):  # noqa: N818
    """An answer that is an error; clients recognise the codes RepoNotFound, RevisionNotFound and EntryNotFound."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        super().__init__(message)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = as_json({"error": message}, status, **headers)


@dataclass
class Request:
    method: str
    target: str  # as it was sent: quoted, with its query
    headers: Any
    body: bytes
    store: "Store"
    user: str | None = None  # None without a token
    role: str = "none"
    words: dict[str, str] = field(default_factory=dict)  # parts of the path, unquoted
    found: "Repo | None" = None

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def repo(self) -> "Repo":
        assert self.found, "the route names no repository"
        return self.found

    @property
    def base(self) -> str:
        return f"http://{self.headers['Host']}"

    @property
    def storage(self) -> str:
        """Where large files are: another origin, as on the real Hub, so that clients don't take it for the Hub's."""
        host, _, port = self.headers["Host"].partition(":")
        return f"http://{'localhost' if host == '127.0.0.1' else '127.0.0.1'}:{port}"
