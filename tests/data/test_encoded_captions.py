"""Captions and their text embeddings in the files of encode.py, and how they are read again."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
import torch

from snowmelt.data.encoded import digest_of, find_encoded
from snowmelt.data.held_out import load_captioned_splits
from snowmelt.data.loader import batch_of, batches
from snowmelt.errors import UserError
from snowmelt.options import HeldOutOptions
from snowmelt.text.caption_conditioning import token_tables
from snowmelt.text.embeddings import embed
from snowmelt.text.pretrained_encoder import load_text_encoder
from snowmelt.text.tokens import fit_length
from tests.autoencoders import tiny_vae
from tests.conftest import ROOT
from tests.data.shards import png
from tests.data.test_encoded import damage, digests, encode
from tests.data.test_stream import USUAL
from tests.text.models import CAPTIONS, save_pretrained

SIDE, COUNT = 16, 300
FILES = [f"latents-{n:05}-of-00002.parquet" for n in range(2)]  # 256 images are encoded together
WIDTH = 32


def texts(row: int) -> list[str]:
    """One to three captions of a row."""
    return [f"{CAPTIONS[(row + n) % 4]} {n}" for n in range(1 + row % 3)]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Options that name images with captions, an autoencoder and a text encoder."""
    folder = tmp_path_factory.mktemp("given")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    (folder / "set").mkdir()
    rows = {"image": [{"bytes": png(n, SIDE), "path": None} for n in range(COUNT)], "text": [*map(texts, range(COUNT))]}
    for number, part in enumerate((slice(0, 180), slice(180, COUNT))):
        cut = {name: column[part] for name, column in rows.items()}
        path = folder / "set" / f"train-{number:05}-of-00002.parquet"
        datasets.Dataset.from_dict(cut, features=features).to_parquet(path, batch_size=64)
    tiny_vae("sd").save_pretrained(folder / "vae")
    return {
        "train_data_dir": folder / "set",
        "autoencoder": folder / "vae",
        "text_encoder": save_pretrained(folder / "clip"),
        "caption_column": "text",
        "resolution": SIDE,
        "center_crop": True,
        "rows_per_file": 256,
        "cache_dir": folder / "cache",
    }


@pytest.fixture(scope="module")
def encoded(given: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("one") / "encoded", given)


def opened(folder: Path | str, given: dict[str, object], **changes: object):
    options = {"train_data_dir": str(folder), "resolution": SIDE, "cache_dir": str(given["cache_dir"])} | changes
    config = HeldOutOptions(**{"shuffle_buffer_size": 64} | options)
    found = find_encoded(config, str(given["autoencoder"]))
    return load_captioned_splits(config, None, skip_empty=False, encoded=found)


def test_states_are_those_of_the_encoder(given, encoded):
    (latents, captions), _ = opened(encoded, given)
    encoder, tokenizer = load_text_encoder(str(given["text_encoder"]))
    every = [text for row in range(COUNT) for text in texts(row)]
    fit_length(tokenizer, [*every, ""], 16)
    assert captions.rows.length == tokenizer.model_max_length == 9
    batch = batch_of({"image": latents}, np.arange(COUNT), labels=False, random_flip=False, device=torch.device("cpu"))
    states, mask = captions.padded([own for of_image in batch["captions"] for own in of_image])
    tokens = token_tables(tokenizer, every)
    assert np.array_equal(states, np.concatenate([*embed(tokens, encoder, np.dtype(np.float16))]))
    assert np.array_equal(mask, tokens["attention_mask"])
    empty, mask = captions.padded([captions.empty])
    tokens = token_tables(tokenizer, [""])
    assert np.array_equal(empty, next(embed(tokens, encoder, np.dtype(np.float16))))
    assert np.array_equal(mask, tokens["attention_mask"])
    assert [captions.of(row) for row in (0, 1, 299)] == [texts(0), texts(1), texts(299)]
    assert len(captions) == COUNT
    table = datasets.load_dataset("parquet", data_files=str(encoded / "*.parquet"), split="train")
    assert table["captions"] == [texts(row) for row in range(COUNT)]


def test_a_batch_has_the_captions_of_its_rows(given, encoded):
    (latents, _), _ = opened(encoded, given)
    sums = [[float(own.sum()) for own in batch_captions(latents, row)] for row in range(COUNT)]
    found = batches({"image": latents}, **USUAL | {"batch_size": 50})
    for batch in islice(found, COUNT // 50):
        for row, states in zip(batch["indices"].tolist(), batch["captions"], strict=True):
            assert [float(own.sum()) for own in states] == sums[row]
    found.close()


def batch_captions(latents, row: int) -> list[np.ndarray]:
    given = {"labels": False, "random_flip": False, "device": torch.device("cpu")}
    return batch_of({"image": latents}, np.array([row]), **given)["captions"][0]


def test_held_out_captions(given, encoded):
    (ours, captions), (theirs, others) = opened(encoded, given, split="train[:200]", validation_split="train[200:]")
    assert len(ours) + len(theirs) == COUNT == len(captions) + len(others)
    assert [captions.of(0), captions.of(199), others.of(0), others.of(99)] == [*map(texts, (0, 199, 200, 299))]


UNUSED = (
    *("dataset_name", "class_conditional", "model_config_name_or_path", "train_batch_size", "eval_batch_size"),
    *("ddpm_num_inference_steps", "logging_steps", "save_images_epochs", "save_model_epochs", "max_train_steps"),
)
"""Options of trainings, which `fork` would give."""


def test_two_processes_and_streams_write_the_same(given, encoded, fork, tmp_path):
    changes = {"mixed_precision": "bf16", "streaming": True}
    processes = fork(tmp_path / "two", 2, "encode", **dict.fromkeys(UNUSED) | given | changes)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "two.0.log").read_text()
    ours, theirs = digests(encoded), digests(tmp_path / "two")
    assert ours.keys() == theirs.keys() == {*FILES, "empty_caption.bin", "manifest.json"}
    assert all(ours[name] == theirs[name] for name in ours if name != "manifest.json")


def test_what_has_changed_is_written_again(given, encoded, tmp_path, capfd):
    folder = shutil.copytree(encoded, tmp_path / "encoded")
    for name in folder.iterdir():
        os.utime(name, (1, 1))
    encode(folder, given)
    assert all(path.stat().st_mtime == 1 for path in folder.iterdir())
    for name in (FILES[1], "empty_caption.bin"):
        damage(folder, name, "flipped")
    encode(folder, given)
    assert capfd.readouterr().out.count("has changed since it was written; writing it again") == 2
    assert digests(folder) == digests(encoded)
    assert (folder / FILES[0]).stat().st_mtime == 1
    (folder / "empty_caption.bin").unlink()
    encode(folder, given)
    assert digests(folder) == digests(encoded)


def test_full_precision_and_padding_as_text(given, tmp_path):
    options = given | {"mixed_precision": "no", "random_flip": True}
    (latents, captions), _ = opened(encode(tmp_path / "encoded", options), given, random_flip=True)
    assert captions.empty.dtype == batch_captions(latents, 0)[0].dtype == np.float32
    assert latents.pixels.dtype == np.float32


ANOTHER = [
    ({"text_encoder": None, "caption_column": None}, "was begun with another --text_encoder, or other captions; give"),
    ({"mixed_precision": "no"}, "was begun with another --mixed_precision; give the same again, or another folder"),
    (
        {"caption_column": "tex"},
        "--caption_column tex: no such column; columns of text: text; all",
    ),
    ({"text_encoder": None}, "--caption_column: captions are encoded by a --text_encoder; name it, or leave this out"),
    ({"revision": "main"}, "--revision: needs --pretrained_model_name_or_path"),
    ({"pretrained_model_name_or_path": "x/y"}, "--autoencoder: that of --pretrained_model_name_or_path x/y is taken"),
    ({"streaming": True, "skip_empty_captions": True}, "--streaming: can't leave out rows, as --skip_empty_captions"),
]


@pytest.mark.parametrize(("changes", "message"), ANOTHER)
def test_options_of_encode(given, encoded, changes, message):
    options = {name: value for name, value in (given | changes).items() if value is not None}
    with pytest.raises(UserError, match=message):
        encode(encoded, options)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_a_caption(given, tmp_path, streaming):
    folder = tmp_path / "set"
    folder.mkdir()
    columns = {"image": [{"bytes": png(n, SIDE), "path": None} for n in range(3)], "text": ["a cat", None, "a dog"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    options = given | {"train_data_dir": folder, "streaming": streaming}
    message = "row 1 has no caption; mend the data, or" if streaming else r"1 of 3 rows have no caption \(rows 1\)"
    with pytest.raises(UserError, match=f"--caption_column text: {message}"):
        encode(tmp_path / "encoded", options)
    if not streaming:
        (latents, captions), _ = opened(encode(tmp_path / "two", options | {"skip_empty_captions": True}), given)
        assert [captions.of(n) for n in range(len(latents))] == [["a cat"], ["a dog"]]


DAMAGE = [
    ("empty_caption.bin", "flipped", "empty_caption.bin: isn't as it was written; restore it, or run encode.py again"),
    ("empty_caption.bin", "cut", "empty_caption.bin: isn't as it was written"),
    ("empty_caption.bin", "missing", "empty_caption.bin: can't be read: no such file"),
]


@pytest.mark.parametrize(("name", "kind", "message"), DAMAGE)
def test_damage(given, encoded, tmp_path, name, kind, message):
    folder = shutil.copytree(encoded, tmp_path / "encoded")
    damage(folder, name, kind)
    with pytest.raises(UserError, match=message):
        opened(folder, given)


STRANGE = [
    ({"length": -1}, "'length' can't be -1; restore it"),
    ({"length": 2**40}, "'length' can't be 1099511627776; restore it"),
    ({"width": "32"}, "'text': 'width' must be a whole number, is '32'; restore it"),
    ({"masked": 1}, "'text': 'masked' must be true or false, is 1; restore it"),
    ({"masked": False}, "empty_caption.bin: embeddings of 2 tokens, where captions have 9; restore it, or run"),
    ({"width": 48}, "empty_caption.bin: cannot reshape"),
    ({"encoder": None}, "'text': 'encoder' must be text, is None; restore it"),
]


def rewritten(folder: Path, text: dict, **changes: object) -> None:
    """Change a manifest, whose digest fits, as anybody can make it."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text()) | changes
    del body["sha256"]
    body["text"] = body["text"] | text
    path.write_text(json.dumps(body | {"sha256": digest_of(body)}))


@pytest.mark.parametrize(("text", "message"), STRANGE)
def test_manifests_that_somebody_else_wrote(given, encoded, tmp_path, text, message):
    folder = shutil.copytree(encoded, tmp_path / "encoded")
    rewritten(folder, text)
    with pytest.raises(UserError, match=message):
        opened(folder, given)


def test_rows_that_somebody_else_wrote(given, encoded, tmp_path):
    """Embeddings of more tokens than a caption may have."""
    folder = shutil.copytree(encoded, tmp_path / "encoded")
    short = bytes(4 * WIDTH)
    (folder / "empty_caption.bin").write_bytes(short)
    written = {"bytes": len(short), "sha256": hashlib.sha256(short).hexdigest()}
    rewritten(folder, {"length": 2}, empty_caption=written)
    (latents, _), _ = opened(folder, given)
    with pytest.raises(UserError, match=r"row 0: can't be decoded \(embeddings of \d tokens, where captions have 2\)"):
        batch_captions(latents, 0)


def test_read_by_url(given, encoded, tmp_path):
    """Of an object store, as of a folder; a damaged answer is asked for again."""
    store = fsspec.filesystem("memory")
    store.put(str(encoded), f"/{tmp_path.name}/encoded", recursive=True)
    (latents, captions), _ = opened(encoded, given)
    (remote, said), _ = opened(f"memory://{tmp_path.name}/encoded", given)
    assert said.of(COUNT - 1) == texts(COUNT - 1)
    assert np.array_equal(said.empty, captions.empty)
    for ours, theirs in zip(first_batches(latents), first_batches(remote), strict=True):
        assert torch.equal(ours["image"], theirs["image"])
        assert [own.tobytes() for states in ours["captions"] for own in states] == [
            own.tobytes() for states in theirs["captions"] for own in states
        ]


def first_batches(latents) -> list[dict]:
    found = batches({"image": latents}, **USUAL | {"batch_size": 50})
    taken = [*islice(found, 3)]
    found.close()
    return taken


@pytest.mark.slow  # of two processes that import everything
def test_a_process_that_is_killed_loses_no_file(given, encoded, tmp_path):
    """SIGKILL, once the first file is there; the next process writes the second, and the same files are there."""
    folder, words = tmp_path / "encoded", [sys.executable, "encode.py"]
    for name, value in (given | {"output_dir": folder, "rows_per_file": 256}).items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (folder / FILES[0]).exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    with pytest.raises(UserError, match="encode.py hasn't finished there; run it again"):
        opened(folder, given)
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert digests(folder) == digests(encoded)
