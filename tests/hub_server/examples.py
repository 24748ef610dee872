"""What tests put on the Hub, and how they ask for it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.hub_server.content import CHUNK
from tests.hub_server.hub import Hub

WEIGHTS = bytes(range(256)) * 40
LARGE = os.urandom(2 * CHUNK + 1)  # three parts


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def status(call: Callable[[], Any]) -> int:
    """The HTTP status that a call fails with."""
    with pytest.raises(HfHubHTTPError) as raised:
        call()
    return raised.value.response.status_code


def upload(api: HfApi, repo: str, content: bytes = b"1", path: str = "file.txt", **options: Any) -> CommitInfo:
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo, **options)


def bearer(hub: Hub, user: str = "alice") -> dict[str, str]:
    return {"Authorization": f"Bearer {hub.token(user)}"}
