"""Imports point one way, files stay short, and what is public is documented."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(ROOT.glob("*.py"))
FILES = sorted([*SCRIPTS, *(ROOT / "pipelines").rglob("*.py"), *(ROOT / "snowmelt").rglob("*.py")])
PUBLISHED = {"torch", "numpy", "PIL", "diffusers", "transformers", "huggingface_hub", "pipelines"}


def names(paths: list[Path]) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in paths]


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports, at any depth of it; relative ones are made absolute."""
    found = set()
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def tops(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(file)}


def below(folder: str) -> list[Path]:
    return [f for f in FILES if f.is_relative_to(ROOT / folder)]


@pytest.mark.parametrize("name", names(below("pipelines")))
def test_pipelines_ship_alone(name):
    assert tops(ROOT / name) - set(sys.stdlib_module_names) <= PUBLISHED


@pytest.mark.parametrize("name", names(below("snowmelt/objectives")))
def test_objectives_are_mathematics(name):
    ours = {n for n in imported(ROOT / name) if n.startswith("snowmelt.")}
    assert tops(ROOT / name) - set(sys.stdlib_module_names) <= {"torch", "scipy", "diffusers", "pipelines", "snowmelt"}
    allowed = ("snowmelt.objectives", "snowmelt.errors", "snowmelt.objective_options")
    assert all(n.startswith(allowed) for n in ours), ours


@pytest.mark.parametrize("name", names(below("snowmelt/data")))
def test_data_knows_no_training(name):
    allowed = ("snowmelt.data", "snowmelt.errors", "snowmelt.files", "snowmelt.options", "snowmelt.values")
    assert all(n.startswith(allowed) for n in imported(ROOT / name) if n.startswith("snowmelt."))


@pytest.mark.parametrize("name", names(FILES))
def test_nothing_imports_a_script(name):
    assert not tops(ROOT / name) & {script.stem for script in SCRIPTS}


def test_configuration_is_light():
    """`--help` needs no more than this to be imported."""
    for name in (
        "config",
        "options",
        "objective_options",
        "few_step_options",
        "reflow_options",
        "errors",
        "files",
        "values",
    ):
        assert tops(ROOT / "snowmelt" / f"{name}.py") <= {*sys.stdlib_module_names, "yaml", "snowmelt"}


def test_no_cycles():
    """Among the modules of snowmelt and pipelines: each can be understood after those that it imports."""
    modules = {str(f.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): f for f in FILES}
    needs = {m: {n for n in imported(f) if n in modules and n != m and not m.startswith(n)} for m, f in modules.items()}
    while needs:
        free = {m for m, others in needs.items() if not others & needs.keys()}
        assert free, f"a cycle among {sorted(needs)}"
        needs = {m: others for m, others in needs.items() if m not in free}


@pytest.mark.parametrize("name", names(FILES))
def test_short(name):
    assert (ROOT / name).read_text().count("\n") <= 300


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions at module level and in public classes, whose names don't begin with an underscore."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from public_functions(node.body, f"{prefix}{node.name}.")
            else:
                yield prefix + node.name, node


@pytest.mark.parametrize("name", names([*below("pipelines"), *below("snowmelt")]))
def test_documented(name):
    """Every public function has a docstring, and one of three or more arguments has a section on them."""
    missing, undescribed = [], []
    for function, node in public_functions(ast.parse((ROOT / name).read_text()).body):
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        docstring = ast.get_docstring(node)
        if not docstring:
            missing.append(function)
        elif len(set(arguments) - {"self", "cls"}) >= 3 and "Args:" not in docstring:
            undescribed.append(function)
    assert not missing, f"{name}: without a docstring: {', '.join(missing)}"
    assert not undescribed, f"{name}: three or more arguments and no 'Args:': {', '.join(undescribed)}"
