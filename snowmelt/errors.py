"""The one exception that users are meant to see, and how entry scripts show it."""

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake the user can mend. Its message is one line: what was given, what is allowed, what to do."""


def one_line(error: BaseException) -> str:
    """What an exception says, for use in a `UserError`."""
    return " ".join(str(error).split())


def run(main: Callable[[], None]) -> None:
    """Run an entry script's `main`; a `UserError` ends it as one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        where = f" (process {rank})" if rank else ""
        print(f"error{where}: {error}", file=sys.stderr)
        sys.exit(2)
