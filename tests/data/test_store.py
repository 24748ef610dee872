"""Whatever happens to a cache, what is trained on is what the data are."""

import errno
import json
import os
import shutil
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

from snowmelt.data import locks, store
from snowmelt.data.cache import PIXELS, ROWS, SIZES
from snowmelt.data.store import MANIFEST, in_units
from snowmelt.errors import UserError
from snowmelt.text.caption_conditioning import token_tables
from snowmelt.text.embeddings import caption_embeddings
from snowmelt.text.pretrained_encoder import load_text_encoder
from tests.text.models import CAPTIONS, save_pretrained

DIGITS = {"dataset_name": "digits", "resolution": 8}


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def fake(path) -> None:
    """A manifest that fits its own checksum, of other data."""
    body = json.loads(path.read_text())
    del body["crc"]
    body["key"]["dataset"] = "another"
    path.write_text(json.dumps(body | {"crc": zlib.crc32(json.dumps(body, sort_keys=True).encode())}))


def fifo(path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "pixels changed": lambda folder: flip(folder / PIXELS),
    "rows changed": lambda folder: flip(folder / ROWS),
    "pixels cut": lambda folder: os.truncate(folder / PIXELS, 1000),
    "pixels gone": lambda folder: (folder / PIXELS).unlink(),
    "sizes gone": lambda folder: (folder / SIZES).unlink(),
    "pixels a FIFO": lambda folder: fifo(folder / PIXELS),
    "manifest a FIFO": lambda folder: fifo(folder / MANIFEST),
    "manifest gone": lambda folder: (folder / MANIFEST).unlink(),
    "manifest empty": lambda folder: (folder / MANIFEST).write_text(""),
    "manifest binary": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"),
    "manifest a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "manifest changed": lambda folder: (folder / MANIFEST).write_text(
        (folder / MANIFEST).read_text().replace('"channels": 1', '"channels": 3')
    ),
    "manifest of other data": lambda folder: fake(folder / MANIFEST),
    "of the first version": lambda folder: (folder / MANIFEST).write_text(
        '{"dtype": "uint8", "value_range": [0, 255], "channels": 1, "skipped": []}'
    ),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("hello")),
    "a link to nothing": lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")),
    "a link to another": lambda folder: (
        shutil.move(folder, f"{folder}-moved"),
        os.remove(f"{folder}-moved/{PIXELS}"),
        folder.symlink_to(f"{folder}-moved"),
    ),
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again(load, capsys, damage):
    whole = load(**DIGITS)
    expected = whole.as_tensor().clone()
    capsys.readouterr()
    DAMAGE[damage](whole.path)
    again = load(**DIGITS)
    assert torch.equal(again.as_tensor(), expected)
    said = [line for line in capsys.readouterr().out.splitlines() if str(whole.path) in line]
    assert len(said) == 1
    assert said[0].endswith("; building it again")
    load(**DIGITS)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("left", ["a folder", "a file", "a link"])
def test_what_a_killed_builder_left_is_removed(load, tmp_path, left):
    whole = load(**DIGITS)
    partial = whole.path.with_suffix(".partial")
    expected = whole.as_tensor().clone()
    shutil.rmtree(whole.path)
    if left == "a folder":
        partial.mkdir()
        (partial / PIXELS).write_bytes(b"half")
    elif left == "a file":
        partial.write_text("")
    else:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "keep").write_text("")
        partial.symlink_to(tmp_path / "mine")
    assert torch.equal(load(**DIGITS).as_tensor(), expected)
    assert not os.path.lexists(partial)
    assert left != "a link" or (tmp_path / "mine" / "keep").exists()


def test_a_large_file_is_sampled_and_its_time_is_kept(load, monkeypatch, capsys):
    monkeypatch.setattr(store, "WHOLE", 2**12)
    monkeypatch.setattr(store, "BLOCK", 2**6)
    monkeypatch.setattr(store, "BLOCKS", 8)
    whole = load(**DIGITS)
    load(**DIGITS)
    assert "again" not in capsys.readouterr().out
    content = bytearray((whole.path / PIXELS).read_bytes())
    content[100] ^= 1  # between two blocks
    (whole.path / PIXELS).write_bytes(content)
    load(**DIGITS)
    assert f"{PIXELS} has changed since it was written; building it again" in capsys.readouterr().out


def test_a_disk_that_fills_up_while_the_manifest_is_written(load, monkeypatch, tmp_path):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "rename", full)
    with pytest.raises(UserError, match="disk full; free some space or give another --cache_dir"):
        load(**DIGITS)
    assert [p.suffix for p in (tmp_path / "cache" / "snowmelt").iterdir()] == [".lock"]


@pytest.mark.parametrize("call", ["mkdir", "lock"])
def test_a_cache_that_cannot_be_written(load, monkeypatch, call):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "here")

    monkeypatch.setattr(*((store.Path, "mkdir") if call == "mkdir" else (FileLock, "acquire")), refuse)
    with pytest.raises(UserError, match=r"--cache_dir: the cache \S+ can't be used \(here: Permission denied; change"):
        load(**DIGITS)


def test_who_waits_for_another_process_says_so(load, monkeypatch):
    path = load(**DIGITS).path
    shutil.rmtree(path)
    other, said = FileLock(path.with_suffix(".lock")), []

    def hear(line: str, **_: object) -> None:
        said.append(line)
        if len(said) == 3:
            other.release()

    monkeypatch.setattr(locks, "SAY", 0.2)
    monkeypatch.setattr(locks, "print", hear, raising=False)
    other.acquire()
    assert len(load(**DIGITS)) == 1797
    assert len(said) == 3
    assert said[0].startswith("waiting since")
    assert said[0].endswith(f"s for another process, which is building the cache ({path})")
    other.acquire(timeout=0)  # it is free again


def test_a_cache_that_may_only_be_read_is_read(load, monkeypatch):
    load(**DIGITS)
    monkeypatch.setattr(store, "locked", None)
    monkeypatch.setattr(store.os, "access", lambda path, mode: not mode & os.W_OK)
    assert len(load(**DIGITS)) == 1797


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (115_008, "115 kB"), (2.5e9, "2.5 GB"), (8e20, "800000 PB")],
)
def test_units(count, said):
    assert in_units(count) == said


def test_the_manifest_lists_what_is_there(load):
    cache = load(**DIGITS)
    manifest = json.loads((cache.path / MANIFEST).read_text())
    assert sorted(manifest["files"]) == sorted(p.name for p in cache.path.iterdir() if p.name != MANIFEST)
    assert manifest["files"][PIXELS]["size"] == 1797 * 64
    assert np.load(cache.path / ROWS).tolist() == cache.rows.tolist()


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_embeddings_of_captions_are_verified_too(tmp_path, capsys, damage):
    encoder, tokenizer = load_text_encoder(str(save_pretrained(tmp_path / "model")))
    tokens = token_tables(tokenizer, CAPTIONS)
    expected = np.array(caption_embeddings(tokens, encoder, tmp_path / "cache"))
    (path,) = (tmp_path / "cache").glob("*/states.npy")
    {"changed": flip, "cut": lambda p: os.truncate(p, 200), "gone": os.remove}[damage](path)
    assert np.array_equal(caption_embeddings(tokens, encoder, tmp_path / "cache"), expected)
    assert "building it again" in capsys.readouterr().out


def test_embeddings_that_do_not_fit_on_the_disk(tmp_path, monkeypatch):
    encoder, tokenizer = load_text_encoder(str(save_pretrained(tmp_path / "model")))
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="the embeddings of the captions need 4.1 kB and 100 bytes are free"):
        caption_embeddings(token_tables(tokenizer, CAPTIONS), encoder, tmp_path / "cache")
