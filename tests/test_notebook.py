"""The notebook runs from top to bottom, and publishes to a Hub."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from huggingface_hub import HfApi
from nbclient import NotebookClient

from tests.hub_server import Hub

pytest_plugins = ["tests.hub"]
ROOT = Path(__file__).resolve().parent.parent


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(ROOT / "docs/quickstart.ipynb", 4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs(hub: Hub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for less training and fewer samples."""
    notebook = nbformat.read(ROOT / "docs/quickstart.ipynb", 4)
    changes = {"MINUTES = 3": "MINUTES = 0.1", "--num_images 500": "--num_images 20", 'NAME = "user"': 'NAME = "alice"'}
    changes["{NAME}/digits"] = "{NAME}/notebook"
    for old, new in changes.items():
        assert any(old in cell.source for cell in notebook.cells), old
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    for name, value in hub.environment(hub.token("alice"), tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    place = Path(sys.executable).parent  # where the command is
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(str(output) for cell in notebook.cells for output in cell.get("outputs", []))
    assert not re.search(r"error:|Traceback", said)
    images = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(images) >= 4
    assert "model_index.json" in api.list_repo_files("alice/notebook")
