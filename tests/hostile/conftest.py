import contextlib
import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from snowmelt.errors import run
from tests.conftest import _reset_accelerate

Refuse = Callable[[str, str], None]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that commands run in; modules override this to put files there."""
    return tmp_path_factory.mktemp("sandbox")


@pytest.fixture
def refuse(sandbox: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refuse]:
    """`refuse("script.py --flag value", pattern)`: one line that matches, exit status 2, and no file touched.

    `{cache}` in a command stands for a cache that the tests share, outside the sandbox.
    """
    monkeypatch.chdir(sandbox)
    # Whoever runs the tests as root may read and write everything.
    yield lambda command, line: _refuse(command.replace("{cache}", str(cache_dir)), line, sandbox)
    _reset_accelerate()


def _refuse(command: str, line: str, sandbox: Path) -> None:
    before = listing(sandbox)
    status, printed = outcome(command)
    errors = [text for text in printed.splitlines() if text.startswith("error")]
    assert errors, f"no error; it printed {printed!r}"
    assert status == 2, printed
    assert printed.splitlines()[-1] == errors[-1], printed
    assert len(errors) == 1, errors
    assert "Traceback" not in printed
    assert errors[0].isprintable()
    assert re.search(line, errors[0]), errors[0]
    assert listing(sandbox) == before, "files were changed"


def outcome(command: str) -> tuple[int, str]:
    """Exit status of a script that runs in this process, and what it printed on stderr."""
    script, *words = shlex.split(command)
    main = importlib.import_module(script.removesuffix(".py")).main
    _reset_accelerate()
    error = io.StringIO()
    with patch.object(sys, "argv", [script, *words]), contextlib.redirect_stderr(error):
        try:
            run(main)
        except SystemExit as end:
            return int(end.code or 0), error.getvalue()
    return 0, error.getvalue()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder, links not followed."""
    found = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in [*folders, *files]:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            # A folder's time changes with every file that comes and goes, which may be one that was put away again.
            found[os.fsdecode(path)] = (0, 0) if name in folders else (status.st_size, status.st_mtime_ns)
    return found
