"""Talking to the Hub: what it refuses is said in a line, what fails for a moment is tried again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitInfo, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from snowmelt.errors import UserError

WAITS = (1, 2, 4, 8, 15)
"""Seconds between two attempts: half a minute, in all, unless the Hub asks for more."""
LONGEST_WAIT = 60
MOMENTARY = (408, 429, 500, 502, 503, 504)
REPLACED = [
    *("*.safetensors", "*.safetensors.index.json", "pipeline.py"),
    *("report-*.png", "alignment*.png", "evaluation.png", "denoising.png", "loss.png", "samples.png"),
]
"""What an earlier publication may have left in a repository that a later one doesn't have: other shards, say, or
images of other weights."""

T = TypeVar("T")


@dataclass(frozen=True)
class Repository:
    """A repository that may be written to.

    Attributes:
        id: its full name, user/name.
        token: the token it was opened with; None for that of `hf auth login`.
        type: "model" or "space".
        created: by us, and nothing has been put there since.
    """

    id: str
    token: str | None
    type: str = "model"
    created: bool = False


def check_rights(name: str, token: str | None) -> None:
    """Know, before anything is made, that a token may write to a repository of this name; see `open_repository`.

    Raises:
        UserError: saying in a line what is wrong: name, token, whose repository it is, or the network.
    """
    with _one_line_errors(name):
        validate_repo_id(name)
        person = persistently(HfApi(token=token).whoami, "asking whose token it is", unreachable_too=False)
        _check_person(person, name)


def open_repository(name: str, *, private: bool, token: str | None, space_sdk: str | None = None) -> Repository:
    """Create a repository, or find the one that is there, and know that this token may write to it.

    Args:
        name: user/name, or a name among one's own.
        private: of a repository that is created.
        token: None for that of `hf auth login`.
        space_sdk: makes it a Space.

    Raises:
        UserError: saying in a line what is wrong: name, token, whose repository it is, or the network.
    """
    check_rights(name, token)
    kind = "space" if space_sdk else "model"
    make = partial(HfApi(token=token).create_repo, name, private=private or None, repo_type=kind, space_sdk=space_sdk)

    def create() -> Repository:
        try:
            return Repository(make().repo_id, token, kind, created=True)
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 402, 403, 409):
                raise
            return Repository(make(exist_ok=True).repo_id, token, kind)  # it is there, or this raises again

    with _one_line_errors(name):
        return persistently(create, f"creating {name}")


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise UserError(f"can't publish to {name}: {reason(error)}") from error


def upload(
    folder: Path, repository: Repository, message: str, *, revision: str | None = None, create_pr: bool = False
) -> CommitInfo:
    """Make a repository hold a folder's files, in one commit; none where it holds them already.

    An attempt whose answer is lost is repeated: the client compares files first, so nothing is committed twice. A pull
    request would be opened twice, so there a lost answer is an error.

    Args:
        folder: what to upload.
        repository: where to.
        message: of the commit.
        revision: a branch, which is made if there is none of that name.
        create_pr: propose it, in a pull request, in place of committing it.

    Raises:
        UserError: saying what was and wasn't done.
    """
    api = HfApi(token=repository.token)
    where: dict[str, Any] = {"repo_id": repository.id, "repo_type": repository.type}
    try:
        if revision and not create_pr:
            persistently(lambda: api.create_branch(**where, branch=revision, exist_ok=True), f"making {revision}")
        return persistently(
            lambda: api.upload_folder(
                **where,
                folder_path=folder,
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
                delete_patterns=REPLACED,
            ),
            f"uploading to {repository.id}",
            lost_too=not create_pr,
        )
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        created = "the repository was created" if repository.created else ""
        state = f"{created} and is still empty, publishing again fills it" if created else "its files are as they were"
        if isinstance(error, httpx2.TransportError):
            state = "a pull request may be open: look first" if create_pr else "the last answer was lost"
            state = f"{created}, {state}" if created else state
        raise UserError(f"the upload to {repository.id} failed, {state}: {reason(error)}") from error


def persistently(call: Callable[[], T], what: str, *, unreachable_too: bool = True, lost_too: bool = True) -> T:
    """Repeat a call that may be repeated, for about half a minute, while the Hub fails in a way that may pass.

    Args:
        call: the call.
        what: said while waiting.
        unreachable_too: wait for a Hub that can't be reached at all.
        lost_too: repeat a call that may have succeeded without our knowing.

    Raises:
        what `call` raises in the end.
    """
    for wait in WAITS:
        try:
            return call()
        except (httpx2.HTTPError, RuntimeError) as error:  # the client's last word on a failed LFS upload
            if isinstance(error, HfHubHTTPError):
                if error.response.status_code not in MOMENTARY:
                    raise
                asked = error.response.headers.get("Retry-After", "")
                wait = max(wait, int(asked) if asked.isdecimal() else 0)
                if wait > LONGEST_WAIT:
                    raise
            elif not (unreachable_too if isinstance(error, httpx2.ConnectError) else lost_too):
                raise
            print(f"{what}: {reason(error)}; trying again in {wait} s", flush=True)
            time.sleep(wait)
    return call()


def reason(error: Exception) -> str:
    """What went wrong, and what to do, in a line; it never holds the token."""
    for kind, words in _REASONS.items():
        if isinstance(error, kind):
            return words(error)
    return " ".join(str(error).split())


def _check_person(person: dict, name: str) -> None:
    """Refuse, by what `whoami` tells, what the Hub would refuse only after training."""
    user = person["name"]
    if person["auth"]["accessToken"]["role"] == "read":
        raise ValueError(f"the token of {user} may only read; make one that may write at {_settings()}")
    owner = name.partition("/")[0] if "/" in name else user
    if owner not in {user, *(org["name"] for org in person["orgs"])}:
        raise ValueError(f"it belongs to {owner}, and the token to {user}, who is not in it; take {user}/...")


def _settings() -> str:
    return f"{constants.ENDPOINT}/settings/tokens"


def _http(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = error.response.headers.get("X-Error-Message") or error.server_message or ""
    words = {
        401: f"the Hub doesn't know this token; make one that may write at {_settings()}",
        403: f"this token may not write there; its rights are at {_settings()}",
        404: "there is no such repository or revision, or this token may not see it",
        429: f"the Hub has had too many requests (429); wait {error.response.headers.get('Retry-After', 'some')} s",
    }
    return words.get(status, f"the Hub answered {status} {' '.join(said.split())}".strip())


_REASONS: dict[type, Callable[[Exception], str]] = {
    LocalTokenNotFoundError: lambda e: f"no token; run `hf auth login` or give --hub_token, made at {_settings()}",
    OfflineModeIsEnabled: lambda e: "HF_HUB_OFFLINE is set; unset it to publish",
    HFValidationError: lambda e: (
        "not a name that the Hub allows: user/name, of letters, digits and single '-', '_' and '.', 96 in all"
    ),
    HfHubHTTPError: _http,  # type: ignore[dict-item]
    httpx2.TransportError: lambda e: f"{constants.ENDPOINT} can't be reached or fell silent ({type(e).__name__})",
}
