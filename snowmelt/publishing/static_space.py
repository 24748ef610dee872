"""A static Space: a page that samples a model in the visitor's browser, and no server."""

import importlib.util
import shutil
from pathlib import Path
from string import Template

from snowmelt.app.card import best_guidance
from snowmelt.errors import UserError
from snowmelt.files import read_mapping
from snowmelt.model_folder import INDEX_FILE
from snowmelt.publishing.export import METRICS_FILE
from snowmelt.publishing.upload import Repository, open_repository, upload

PAGE = Path(__file__).with_name("static")
"""Its files, which need no build."""
README = """\
---
title: {name}
sdk: static
models:
- {model}
---

Samples [{model}](https://huggingface.co/{model}) in the visitor's browser, by
[ONNX Runtime Web](https://onnxruntime.ai). The network is here as ONNX, and `model.json` has the steps of its sampler.
"""


def check_exporter() -> None:
    """Know, before anything is made, that `torch.onnx.export` has what it needs.

    Raises:
        UserError: naming the extra.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("--static_space needs onnx and onnxscript, which aren't there: pip install 'snowmelt[onnx]'")


def write_static_space(published: Path, folder: Path) -> None:
    """Write all but what names the repositories: the page, the model as ONNX and the steps of its sampler.

    Args:
        published: a folder as `export` writes it.
        folder: an empty folder.

    Raises:
        UserError: for a model that the page can't sample.
    """
    # Here, since it imports torch's exporter.
    from snowmelt.loading import load_pipeline
    from snowmelt.publishing.static_model import write_static_model

    if not (published / INDEX_FILE).is_file():
        raise UserError("--static_space: there is no pipeline here, but what a pipeline is given; publish without it")
    report = read_mapping(published / METRICS_FILE).get("evaluation") or {}
    write_static_model(load_pipeline(str(published)), folder, best_guidance(report))
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)


def publish_static_space(folder: Path, name: str, model: Repository, *, private: bool) -> str:
    """Make, or bring up to date, a static Space.

    Args:
        folder: as `write_static_space` leaves it.
        name: of the Space, user/name.
        model: the model, which the page names.
        private: where it is created.

    Returns:
        Its address.

    Raises:
        UserError: if the Hub refuses or can't be reached.
    """
    names = {"name": model.id.rpartition("/")[-1], "model": model.id}
    page = folder / "index.html"
    page.write_text(Template(page.read_text()).substitute(names))
    (folder / "README.md").write_text(README.format(**names))
    space = open_repository(name, private=private, token=model.token, space_sdk="static")
    return str(upload(folder, space, "Page that samples the model in the browser").repo_url)
