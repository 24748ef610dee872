"""Commands in the documents have flags that exist, and values that these take; their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from snowmelt.cli import COMMANDS, config_of
from snowmelt.config import make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = {command.script: name for name, command in COMMANDS.items()}
STARTERS = r"(?:accelerate launch|torchrun|python) .*?"


def commands(page: Path) -> list[str]:
    """Lines of the page that call a script, in blocks or in code of its text, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = [line for block in blocks for line in block.splitlines()] + inline
    names = "|".join([*map(re.escape, SCRIPTS), *(f"snowmelt {name}" for name in COMMANDS)])
    return [line for line in lines if re.search(rf"(?:^|\s|/)(?:{names})\s+-", line)]


TRAINING = " ".join(f'"--{name}"' for name in config_of("train").fields())
"""What benchmarks take that hand on what they don't know to the training."""

FOUND = [pytest.param(line, id=f"{page.stem}-{i}") for page in PAGES for i, line in enumerate(commands(page))]


@pytest.mark.parametrize("line", FOUND)
def test_flags_exist(line: str) -> None:
    words = shlex.split(line.split("  #")[0].replace("...", "").replace("…", ""), comments=True)
    start, name = next(
        (i + 1, SCRIPTS[Path(word).name] if Path(word).name in SCRIPTS else words[i + 1])
        for i, word in enumerate(words)
        if Path(word).name in SCRIPTS or (word == "snowmelt" and words[i + 1] in COMMANDS)
    )
    given = words[start:] if words[start - 1] != "snowmelt" else words[start + 1 :]
    parser = make_parser(config_of(name))
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for word in given:
        if word.startswith("--"):
            assert word.split("=")[0] in flags, f"{word} in: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_benchmarks_exist_with_their_flags(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for module, rest in re.findall(r"python (?:-m )?(benchmarks[./]\w+)(?:\.py)?([^`\n]*)", text):
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        if "add_arguments(parser)" in source:
            source += (ROOT / "benchmarks/scripts.py").read_text()
        if "parse_known_args" in source:
            source += TRAINING
        for flag in re.findall(r"\s(--\w+)", re.sub(r'"[^"]*"', "", rest)):
            assert f'"{flag}"' in source, f"{page.name}: {module} has no {flag}"


LANGUAGES = [
    ("README.md", "README.zh.md"),
    *((f"docs/{page.name}", f"docs/zh/{page.name}") for page in sorted((ROOT / "docs/zh").glob("*.md"))),
]


@pytest.mark.parametrize(("english", "other"), LANGUAGES)
def test_languages_say_the_same(english: str, other: str) -> None:
    """Headings of the same depth, the same commands, code, figures and links, in the same order."""
    texts = [
        re.sub(r"^\[[^]]*\]\(README\S*\)$", "", (ROOT / name).read_text(), flags=re.M) for name in (english, other)
    ]
    blocks, headings, code, links, cells = (
        [re.findall(pattern, text, re.S | re.M) for text in texts]
        for pattern in (r"```.*?```", r"^#+(?= )", r"`[^`\n]+`", r"\]\(([^)]+)\)", r"^\|.*\|$")
    )
    assert blocks[0] == blocks[1]
    assert headings[0] == headings[1]
    assert sorted(code[0]) == sorted(code[1])
    assert links[0] == [link.removeprefix("../").replace("docs/zh/", "docs/") for link in links[1]]
    assert [row.count("|") for row in cells[0]] == [row.count("|") for row in cells[1]]
    prose = [re.sub(r"```.*?```|`[^`\n]+`|\]\([^)]+\)", "", text, flags=re.S) for text in texts]
    assert sorted(re.findall(r"\d+(?:\.\d+)?%?", prose[0])) == sorted(re.findall(r"\d+(?:\.\d+)?%?", prose[1]))


def test_they_are_found() -> None:
    assert len(FOUND) > 60
