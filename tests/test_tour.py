"""The tour keeps its word: its lines of code stand in the files that it names, its commands and its Python run."""

import re
import shlex
from pathlib import Path

import pytest

from snowmelt.evaluation import classifier
from tests.conftest import run_in_process
from tests.test_readme import SMALL

ROOT = Path(__file__).resolve().parent.parent
TOUR = (ROOT / "docs/tour.md").read_text()
LINES = re.findall(r"^\|[^|]*\| `([^`]+)` \| `([^`]+)` \|$", TOUR, re.M)
SECTIONS = TOUR.split("\n## ")[1:]


def test_lines_are_found() -> None:
    assert len(LINES) > 20


@pytest.mark.parametrize(("line", "file"), LINES)
def test_lines_stand_in_their_files(line: str, file: str) -> None:
    assert line in (ROOT / file).read_text()


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in their order, at tiny size; the Python of a section after its commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classifier, "STEPS", 60)
    commands = 0
    for section in SECTIONS:
        for language, block in re.findall(r"```(\w*)\n(.*?)```", section, re.S):
            if language == "python":
                exec(block, {})
                continue
            for command in block.strip().splitlines():
                script = shlex.split(command)[1]
                run_in_process(shlex.split(f"{command} {SMALL[script]}")[2:], script.removesuffix(".py"))
                commands += 1
    assert commands >= 12
    assert (tmp_path / "strip.png").is_file()
