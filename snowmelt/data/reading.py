"""What `datasets` and the Hub's client say of data that can't be read, in one line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from snowmelt.errors import UserError, explained, one_line

STATUSES = {
    401: "the Hub wants a token that may read it; run `hf auth login`, or set HF_TOKEN",
    403: "the Hub lets this token not read it; ask for access on its page, or run `hf auth login` with another",
    404: "there is no such data set or revision on the Hub, or this token may not see it",
    429: "the Hub has had too many requests; wait some minutes",
}


@contextmanager
def readable_source(source: str) -> Iterator[None]:
    """Whatever is wrong with the files of a data set, or with the way to them, becomes a `UserError`.

    Only calls of `datasets` belong inside: what it raises for files that anybody may have written, KeyError and
    AttributeError included, is no closed list.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source}: can't be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What went wrong, from the innermost cause that says something of use, and what to do."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:  # first, since the client makes others of it
        if isinstance(link, datasets.exceptions.DatasetNotFoundError) and "gated" in str(link):
            return one_line(link)
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            status = link.response.status_code
            return STATUSES.get(status, f"the Hub answered {status}; try again later")
    for link in chain:
        if isinstance(link, httpx2.TooManyRedirects):
            return f"{constants.ENDPOINT} answers with redirects in a circle; check HF_ENDPOINT and the proxy"
        if isinstance(link, OfflineModeIsEnabled) or "OfflineModeIsEnabled" in str(link):  # as `datasets` says it
            return "HF_HUB_OFFLINE is set, and it isn't in the cache; unset it once"
        if isinstance(link, httpx2.TransportError | LocalEntryNotFoundError) or "LocalEntryNotFoundError" in str(link):
            return f"{constants.ENDPOINT} can't be reached, or is no Hub; check the network, the proxy and HF_ENDPOINT"
        if isinstance(link, json.JSONDecodeError):
            return f"not JSON where JSON was expected ({one_line(link)}); check its files, HF_ENDPOINT and the proxy"
    # `datasets` wraps what its builders find in an error that says only that there was one.
    first = error.__cause__ or error
    if isinstance(first, datasets.exceptions.DatasetNotFoundError):
        return STATUSES[404]
    if isinstance(first, HFValidationError):
        return "not a name that the Hub allows: user/name, of letters, digits and single '-', '_' and '.', 96 in all"
    if isinstance(first, OSError) and first.errno is not None:
        return explained(first)
    said = one_line(first)
    return f"{said if len(said) > 20 else f'{type(first).__name__} {said}'}; check its files"


def values_of(dataset: datasets.Dataset, column: str) -> list[Any]:
    """All values of a column, as Python objects.

    Raises:
        UserError: if the files that hold them can't be read.
    """
    with readable_source(f"column {column}"):
        return dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()
