"""The Hub as tests use it."""

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.hub_server.server import Kind
from tests.hub_server.storage import Commit, Repo, Store

ROOT = Path(__file__).resolve().parents[2]


def client_environment(endpoint: str, token: str | None, home: Path) -> dict[str, str]:
    """What makes a client use a Hub, and keep all its files in `home`."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_HUB_DISABLE_XET": "1",  # the client would otherwise want another protocol for large files
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    } | ({"HF_TOKEN": token} if token else {})


class Hub:
    """A Hub that keeps all in `folder`, in a process of its own.

    with Hub(folder) as hub:
        HfApi(hub.endpoint, hub.token("alice")).create_repo("alice/model")

    In the end, or after a fault that killed it, `start` begins again with what was there, on the same port.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.endpoint = ""
        self._log = folder / "requests.log"
        self._store = Store(folder)
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start, or start again; faults that were ordered before are forgotten."""
        port = urlsplit(self.endpoint).port or 0
        words = [sys.executable, "-m", "tests.hub_server", "--folder", str(self.folder), "--port", str(port)]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        assert self.process.stdout
        self.endpoint = self.process.stdout.readline().strip()
        if not self.endpoint:
            raise RuntimeError(f"The local Hub did not start: {self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Kill it: it has no time to put anything in order."""
        if self.process:
            self.process.kill()
            self.wait()

    def wait(self) -> None:
        """Until its process has ended, as after a fault that kills it."""
        assert self.process
        self.process.wait(60)
        if self.process.stdout:
            self.process.stdout.close()

    def token(self, user: str, role: str = "write") -> str:
        """Of any user; the role is "read" or "write"."""
        return self._store.token(user, role)

    def environment(self, token: str | None, home: Path) -> dict[str, str]:
        """All of the environment for a client in another process, which has a cache of its own in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return kept | client_environment(self.endpoint, token, home)

    def fault(self, method: str, pattern: str, kind: Kind, times: int | None = 1, seconds: float = 1) -> None:
        """Order a fault for the next `times` requests (None: for ever) whose path, as sent, holds the pattern.

        Kinds: "unavailable" (503), "rate limit" (429, to be repeated after `seconds`), "forbidden" (403), "error"
        (500), "gone" (404), "drop" (the connection is closed and nothing done), "kill" (the process dies while the
        client sends), "slow" (it answers after `seconds`), "lose" (done, but the connection closed without an answer),
        "truncate" and "corrupt" (a file that is sent ends in its middle, or has a wrong bit there; nothing else
        counts).
        """
        order = {"method": method, "pattern": pattern, "kind": kind, "seconds": seconds}
        self._faults("POST", order | ({"times": times} if times else {}))

    def heal(self) -> None:
        """No more faults."""
        self._faults("DELETE", {})

    def _faults(self, method: str, order: dict[str, object]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(self.endpoint).port, timeout=10)
        connection.request(method, "/faults", json.dumps(order))
        assert connection.getresponse().status == 200
        connection.close()

    def _repo(self, repo: str) -> Repo:
        return Store(self.folder).repos[repo if repo.count("/") == 2 else f"models/{repo}"]

    def commits(self, repo: str, revision: str = "main") -> list[Commit]:
        """Newest first; the last is the Hub's own. Data sets are "datasets/user/name", Spaces "spaces/user/name"."""
        return self._repo(repo).history(revision)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        files = self._repo(repo).at(revision).files
        return {path: self._store.blob(file.sha256).read_bytes() for path, file in files.items()}

    def requests(self) -> list[str]:
        """All that were answered, or lost, since the folder is there: "POST /api/repos/create 200"."""
        return self._log.read_text().splitlines()
