"""A Space: a page on the Hub that samples a published model."""

import shutil
import tempfile
from pathlib import Path

from snowmelt.publishing.upload import Repository, open_repository, upload
from snowmelt.shipped import shipped

APP = shipped("app.py")
README = """\
---
title: {name}
sdk: gradio
app_file: app.py
models:
- {model}
---

Samples [{model}](https://huggingface.co/{model}), whose code it runs.
"""
REQUIREMENTS = "torch\ndiffusers\ntransformers\naccelerate\nsafetensors\n"


def publish_space(model: Repository, *, private: bool) -> str:
    """Make, or bring up to date, the Space that has the model's name; the model must be published.

    Returns:
        Its address.

    Raises:
        UserError: if the Hub refuses or can't be reached.
    """
    space = open_repository(model.id, private=private, token=model.token, space_sdk="gradio")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(APP, folder / "app.py")
        (folder / "model.txt").write_text(model.id)
        (folder / "README.md").write_text(README.format(name=model.id.rpartition("/")[-1], model=model.id))
        (folder / "requirements.txt").write_text(REQUIREMENTS)
        info = upload(folder, space, "Page that samples the model")
    return str(info.repo_url)
