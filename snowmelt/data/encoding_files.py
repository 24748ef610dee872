"""Which files of an encoded data set are complete, and the manifest of them."""

import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from snowmelt.data.encoded import MANIFEST, UNFINISHED, digest_of
from snowmelt.data.encoded_captions import EMPTY
from snowmelt.data.rows import cores
from snowmelt.errors import UserError
from snowmelt.files import read_mapping

NAMED = {
    "autoencoder": "--autoencoder",
    "text": "--text_encoder, or other captions",
    "random_flip": "--random_flip",
    "dtype": "--mixed_precision",
    "rows_per_file": "--rows_per_file",
    "size": "--resolution",
}
"""What differs between two encodings, by the flag; else it is the data, or how they are decoded."""
POLL, SAY = 0.2, 60.0
"""Seconds between looks at what others have finished, and between lines that say so."""

Notes = dict[str, dict[str, Any]]
"""What is known of complete files, by name."""


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there as a whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.rename(partial, path)


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in that way."""
    replace(path, (json.dumps(content, indent=1) + "\n").encode())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def complete(folder: Path, key: dict[str, Any], names: list[str]) -> Notes:
    """What is known of the files that are complete, and as long as they were written.

    Args:
        folder: of the files.
        key: what they must be of.
        names: of the files.

    Raises:
        UserError: if the folder holds something else.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    found = []
    if (folder / MANIFEST).is_file():
        manifest = read_mapping(folder / MANIFEST, {"files": list, "sha256": str})
        _check_same(folder, {name: manifest.get(name) for name in key}, key)
        found += manifest["files"]
    elif not (folder / UNFINISHED).is_dir():
        raise UserError(f"--output_dir {folder} is not empty, and holds no latents of encode.py; name another")
    for path in (folder / UNFINISHED).glob("*.json"):
        try:
            note = read_mapping(path, {"key": dict, "name": str, "rows": int, "bytes": int, "sha256": str})
        except UserError:
            if path.exists():
                raise
            return complete(folder, key, names)  # the main process has just made the manifest of them
        _check_same(folder, note.pop("key"), key)
        found.append(note)
    return {
        note["name"]: note
        for note in found
        if note["name"] in names
        and (folder / note["name"]).is_file()
        and (folder / note["name"]).stat().st_size == note["bytes"]
    }


def damaged(folder: Path, notes: Notes) -> list[str]:
    """Names of files, that of the empty caption too, whose content isn't what was written; a line says so of each.

    Args:
        folder: of the files.
        notes: of all of them, of which there is a manifest.
    """
    empty = read_mapping(folder / MANIFEST).get("empty_caption")
    written = {name: note["sha256"] for name, note in notes.items()} | ({EMPTY: empty["sha256"]} if empty else {})
    with ThreadPoolExecutor(cores()) as pool:
        digests = pool.map(lambda name: (folder / name).is_file() and sha256_of(folder / name), written)
    names = [name for name, digest in zip(written, digests, strict=True) if digest != written[name]]
    for name in names:
        print(f"{folder / name}: has changed since it was written; writing it again", flush=True)
    return names


def finish(folder: Path, key: dict[str, Any], names: list[str], empty: bytes | None) -> None:
    """Write the manifest, once all files are complete.

    Args:
        folder: of the files.
        key: what they are of.
        names: of the files.
        empty: the embeddings of the empty caption, which are written too; None where there are none.

    Raises:
        UserError: as `complete`.
    """
    for waited in count():
        done = complete(folder, key, names)
        missing = [name for name in names if name not in done]
        if not missing:
            break
        if waited * POLL % SAY == 0:
            print(f"waiting for other processes: {len(missing)} of {len(names)} files aren't complete", flush=True)
        time.sleep(POLL)
    body = {**key, "files": [done[name] for name in names]}
    if empty is not None:
        replace(folder / EMPTY, empty)
        body["empty_caption"] = {"bytes": len(empty), "sha256": hashlib.sha256(empty).hexdigest()}
    replace_json(folder / MANIFEST, {**body, "sha256": digest_of(json.loads(json.dumps(body)))})
    shutil.rmtree(folder / UNFINISHED)


def _check_same(folder: Path, there: dict[str, Any], key: dict[str, Any]) -> None:
    key = json.loads(json.dumps(key))
    differing = [name for name in key if there.get(name) != key[name]]
    if differing:
        named = next((flag for name, flag in NAMED.items() if name in differing), None)
        what = f"another {named}" if named else "other data, or other options of how they are decoded"
        raise UserError(f"--output_dir {folder}: was begun with {what}; give the same again, or another folder")
