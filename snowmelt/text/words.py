"""New words of textual inversion, loaded into a pipeline that is sampled."""

import hashlib
from pathlib import Path
from typing import Any

from snowmelt.errors import UserError, one_line
from snowmelt.text.textual_inversion import EMBEDDINGS_FILE


def load_words(pipeline: Any, names: list[str]) -> None:
    """Give a pipeline's tokenizer and text encoder new words.

    Args:
        pipeline: the pipeline.
        names: files, folders that hold `EMBEDDINGS_FILE`, or repositories of the Hub.

    Raises:
        UserError: if the pipeline takes none, or one can't be loaded or is known already.
    """
    for name in names:
        flag = f"--textual_inversion {name}"
        if not hasattr(pipeline, "load_textual_inversion"):
            raise UserError(f"{flag}: this model, a {type(pipeline).__name__}, takes no new words; leave it out")
        try:
            pipeline.load_textual_inversion(name, use_safetensors=True)
        except Exception as error:  # whatever libraries raise at files that anybody may have written
            raise UserError(f"{flag}: can't be loaded ({one_line(error)})") from error


def words_digest(names: list[str]) -> dict[str, list[str]]:
    """`words_weights`, a hash of each of these files, those of the Hub by their names; nothing of none."""
    if not names:
        return {}
    files = [Path(name) / EMBEDDINGS_FILE if Path(name).is_dir() else Path(name) for name in names]
    digests = [
        hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else name
        for file, name in zip(files, names, strict=True)
    ]
    return {"words_weights": digests}
