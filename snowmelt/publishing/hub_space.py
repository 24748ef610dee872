"""A Space: a page on the Hub that samples a published model."""

import shutil
import tempfile
from pathlib import Path

from snowmelt.publishing.upload import Repository, open_repository, upload
from snowmelt.shipped import PACKAGE, shipped

CODE = {"snowmelt": PACKAGE, "pipelines": PACKAGE.parent / "pipelines"}
"""What the page runs, as it is here: a Space needs nothing of ours from an index."""
NEEDED = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
    "PyYAML",
    "filelock",
)
"""What that imports to sample a model, beside gradio, which the front matter names."""
README = """\
---
title: {name}
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
models:
- {model}
---

Samples [{model}](https://huggingface.co/{model}). The weights stay there; the code is Snowmelt's, as it was when the
model was published.
"""


def publish_space(model: Repository, *, private: bool) -> str:
    """Make, or bring up to date, the Space that has the model's name; the model must be published.

    Returns:
        Its address.

    Raises:
        UserError: if the Hub refuses or can't be reached.
    """
    space = open_repository(model.id, private=private, token=model.token, space_sdk="gradio")
    with tempfile.TemporaryDirectory() as name:
        write_space(Path(name), model.id)
        info = upload(Path(name), space, "Page that samples the model")
    return str(info.repo_url)


def write_space(folder: Path, model: str) -> None:
    """Write what a Space holds: the page's code, the versions that it was tested with, and the name of the model.

    Args:
        folder: an empty folder.
        model: user/name.
    """
    pins = read_pins(shipped("constraints.txt"))
    shutil.copyfile(shipped("app.py"), folder / "app.py")
    for name, source in CODE.items():
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "shipped"))
    (folder / "model.txt").write_text(model)
    readme = README.format(name=model.rpartition("/")[-1], model=model, gradio=pins["gradio"])
    (folder / "README.md").write_text(readme)
    (folder / "requirements.txt").write_text("".join(f"{name}=={pins[name.lower()]}\n" for name in NEEDED))


def read_pins(path: Path) -> dict[str, str]:
    """Versions by names in small letters, of a file of constraints."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines if line)}
