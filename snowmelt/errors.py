"""The one exception that users are meant to see, and how entry scripts show it."""

import errno
import os
import sys
from collections.abc import Callable

EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED = 2, 75, 130
"""75 is EX_TEMPFAIL of sysexits.h: try again later."""

ADVICE = {
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.EROFS: "name a place that can be written to",
    errno.ENOSPC: "free some space, or name another disk",
    errno.EDQUOT: "free some space, or name another disk",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of that path is a file; name another",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOENT: "make it, or name another",
    errno.ELOOP: "it is a link to itself; remove it",
    errno.EEXIST: "remove it, or name another",
}


class UserError(ValueError):
    """A mistake the user can mend. Its message is one line: what was given, what is allowed, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """A text on one line: line breaks, escape sequences and broken characters in it are shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def one_line(error: BaseException) -> str:
    """What an exception says, for use in a `UserError`."""
    return printable(" ".join(str(error).split()))


def explained(error: OSError) -> str:
    """What the operating system refused: path, reason, what to do."""
    if error.errno is None or error.strerror is None:
        return one_line(error)  # of a library that raises OSError with words of its own
    path = error.filename2 or error.filename
    where = "" if path is None else f"{os.fsdecode(path) if isinstance(path, bytes) else path}: "
    advice = ADVICE.get(error.errno)
    return f"{where}{error.strerror}" + (f"; {advice}" if advice else "")


def run(main: Callable[[], int | None]) -> None:
    """Run an entry script's `main`, and end with the exit status that it returns.

    A `UserError`, or an operating system that refuses something, ends it as one line on stderr and exit status 2; an
    interrupt ends it as one line and status 130.
    """
    try:
        status = main()
    except UserError as error:
        _end(str(error), EXIT_USER_ERROR)
    except OSError as error:
        _end(printable(explained(error)), EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _end("interrupted", EXIT_INTERRUPTED)
    if status:
        sys.exit(status)


def _end(message: str, status: int) -> None:
    rank = int(os.environ.get("RANK", "0"))
    where = f" (process {rank})" if rank else ""
    print(f"error{where}: {message}", file=sys.stderr)
    sys.exit(status)
