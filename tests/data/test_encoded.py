"""Latents that encode.py writes: the same files from one process and two, read again bit for bit."""

import hashlib
import json
import os
import shutil
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from snowmelt.data.encoded import digest_of, find_encoded
from snowmelt.data.held_out import load_splits
from snowmelt.data.loader import batches
from snowmelt.data.sources import load_images
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from snowmelt.options import DataOptions, HeldOutOptions
from snowmelt.spaces import LatentSpace, PixelSpace, load_autoencoder
from tests.autoencoders import tiny_vae
from tests.conftest import run_in_process, trained
from tests.data.shards import CLASSES, png, write_parquet
from tests.data.test_stream import USUAL
from tests.pipelines.models import quiet
from tests.test_resume import interrupted

SIDE, COUNT = 16, 600
FILES = [f"latents-{n:05}-of-00003.parquet" for n in range(3)]  # 256 images are encoded together


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Options that name 600 coloured images of three classes, and an autoencoder."""
    folder = tmp_path_factory.mktemp("given")
    write_parquet(folder / "set", (350, 250), group=64, encode=lambda row: png(row, side=SIDE))
    tiny_vae("sd").save_pretrained(folder / "vae")
    return {
        "train_data_dir": folder / "set",
        "autoencoder": folder / "vae",
        "resolution": SIDE,
        "center_crop": True,
        "random_flip": True,
        "rows_per_file": 200,  # so it is 256
        "cache_dir": folder / "cache",
    }


def encode(folder: Path, options: dict[str, object]) -> Path:
    words: list[str] = []
    for name, value in (options | {"output_dir": folder}).items():
        words += [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    run_in_process(words, "encode")
    return folder


@pytest.fixture(scope="module")
def encoded(given: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("one") / "encoded", given)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def opened(folder: Path, given: dict[str, object], **changes: object):
    names = ("autoencoder", "rows_per_file", "center_crop")
    options = {k: v for k, v in given.items() if k not in names} | {"train_data_dir": str(folder)} | changes
    config = HeldOutOptions(**options | {"cache_dir": str(given["cache_dir"]), "shuffle_buffer_size": 64})
    return load_splits(config, labels=True, encoded=find_encoded(config, str(given["autoencoder"])))


def test_rows_are_those_of_the_cache(given, encoded):
    space = LatentSpace(load_autoencoder(str(given["autoencoder"])), PixelSpace())
    options = {"train_data_dir": str(given["train_data_dir"]), "cache_dir": str(given["cache_dir"])}
    images = load_images(DataOptions(**options, resolution=SIDE, center_crop=True))
    held = space.encode(images, random_flip=True, mixed_precision="bf16").as_tensor().numpy()
    latents, _ = opened(encoded, given)
    assert (len(latents), latents.class_names, latents.dtype) == (COUNT, CLASSES, np.uint8)
    every = np.arange(COUNT)
    assert latents.gather(every, None).tobytes() == held.tobytes()
    assert (latents.read_labels(every) == images.labels).all()
    alone, _ = opened(encoded, given, random_flip=False)
    assert (alone.gather(every, None) == held[:, 0]).all()
    table = datasets.load_dataset("parquet", data_files=str(encoded / "*.parquet"), split="train")
    assert table.features["label"].names == CLASSES


def test_batches(given, encoded):
    """Of one process and of two: each row once an epoch, with its label and, half of the time, its mirror image."""
    latents, _ = opened(encoded, given)
    every = latents.gather(np.arange(COUNT), None)
    steps = {}
    for processes in (1, 2):
        parts = []
        for rank in range(processes):
            changes = {"batch_size": 40 // processes, "world_size": processes, "rank": rank, "labels": True}
            found = batches({"image": latents}, **USUAL | changes)
            parts.append([*islice(found, 15)])
            found.close()
        for batch in (batch for part in parts for batch in part):
            rows, values = batch["indices"].numpy(), batch["image"].numpy()
            is_mirror = (values == every[rows, 1]).all((1, 2, 3))
            assert (is_mirror | (values == every[rows, 0]).all((1, 2, 3))).all()
            assert 0 < is_mirror.sum() < len(rows)
            assert batch["label"].tolist() == (rows % 3).tolist()
        steps[processes] = [
            sorted(torch.cat([b["indices"] for b in step]).tolist()) for step in zip(*parts, strict=True)
        ]
    assert steps[1] == steps[2]
    assert sorted(sum(steps[1], [])) == list(range(COUNT))


def test_two_processes_and_streams_write_the_same(given, encoded, fork, tmp_path):
    unused = ("dataset_name", "class_conditional", "model_config_name_or_path", "train_batch_size", "eval_batch_size")
    unused += (
        "ddpm_num_inference_steps",
        "logging_steps",
        "save_images_epochs",
        "save_model_epochs",
        "max_train_steps",
    )
    changes = {"mixed_precision": "bf16", "streaming": True, "dataloader_num_workers": 2}
    processes = fork(tmp_path / "two", 2, "encode", **dict.fromkeys(unused) | given | changes)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "two.0.log").read_text()
    ours, theirs = digests(encoded), digests(tmp_path / "two")
    assert ours.keys() == theirs.keys() == {*FILES, "manifest.json"}
    assert all(ours[name] == theirs[name] for name in FILES)
    manifest = json.loads((encoded / "manifest.json").read_text())
    assert [(file["rows"], file["sha256"]) for file in manifest["files"]] == [
        (rows, ours[name]) for rows, name in zip((256, 256, 88), FILES, strict=True)
    ]


def test_a_kill_loses_no_file(given, encoded, tmp_path, monkeypatch):
    folder, of = tmp_path / "encoded", LatentSpace.to_cache
    seen: list[int] = []

    def to_cache(space: LatentSpace, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if sum(seen) > 2 * 400:
            raise KeyboardInterrupt
        return of(space, images)

    monkeypatch.setattr(LatentSpace, "to_cache", to_cache)
    with pytest.raises(KeyboardInterrupt):
        encode(folder, given)
    monkeypatch.undo()
    assert {path.name for path in folder.iterdir()} == {FILES[0], "encoding"}
    with pytest.raises(UserError, match=r"--train_data_dir .*: encode.py hasn't finished there; run it again"):
        opened(folder, given)
    with pytest.raises(UserError, match="was begun with another --random_flip; give the same again, or another folder"):
        encode(folder, given | {"random_flip": False})
    os.utime(folder / FILES[0], (1, 1))
    encode(folder, given)
    assert digests(folder) == digests(encoded)
    assert (folder / FILES[0]).stat().st_mtime == 1
    (folder / FILES[2]).unlink()
    encode(folder, given)
    assert digests(folder) == digests(encoded)
    assert (folder / FILES[0]).stat().st_mtime == 1


def test_trained_resumed_and_sampled(given, encoded, train, tmp_path):
    options = {k: given[k] for k in ("autoencoder", "resolution", "random_flip", "cache_dir")}
    options |= {"dataset_name": None, "train_data_dir": encoded, "checkpointing_steps": 1, "max_train_steps": 3}
    options |= {"validation_share": 0.1, "eval_steps": 3}
    run = train(tmp_path / "run", **options)
    resumed = interrupted(run, 1, tmp_path / "resumed")
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=1) == trained(run, since=1)
    pipeline = quiet(load_pipeline(str(run)))
    assert pipeline(class_labels=1, num_inference_steps=1).images[0].size == (SIDE, SIDE)
    assert pipeline.id2label == dict(enumerate(CLASSES))


WRONG = [
    ({"autoencoder": None}, "holds latents; give the --autoencoder that they are of$"),
    ({"resolution": 32}, "--resolution 32: the latents in .* are of images of 16; give --resolution 16$"),
    ({"channels": 1}, "--channels 1: the latents in .* are of images of 3 channels; leave it out$"),
    ({"condition": "mask"}, "--condition: needs images, and .* holds latents; leave it out, or train on the images$"),
    ({"dataset_name": "digits"}, "--dataset_name digits and --train_data_dir .*: give one of the two$"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_options_that_latents_refuse(given, encoded, train, tmp_path, changes, message):
    options = {"dataset_name": None, "train_data_dir": encoded, "resolution": SIDE, "autoencoder": given["autoencoder"]}
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", **options | changes)


def test_another_autoencoder(given, encoded, train, tmp_path):
    tiny_vae("tiny").save_pretrained(tmp_path / "other")
    options = {"dataset_name": None, "train_data_dir": encoded, "resolution": SIDE, "autoencoder": tmp_path / "other"}
    with pytest.raises(
        UserError, match="--autoencoder: isn't the one that the latents in .* are of; name that one, or"
    ):
        train(tmp_path / "run", **options)
    folder = shutil.copytree(encoded, tmp_path / "encoded")
    with pytest.raises(UserError, match="was begun with another --autoencoder; give the same again"):
        encode(folder, given | {"autoencoder": tmp_path / "other"})


def damage(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[:-9])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


DAMAGE = [
    (FILES[1], "missing", f"{FILES[1]}: can't be read: no such file; restore it"),
    (FILES[1], "cut", f"{FILES[1]}: can't be read: "),
    (FILES[1], "flipped", f"{FILES[1]}: can't be read: .*CRC"),
    ("manifest.json", "flipped", "manifest.json: "),
    ("manifest.json", "missing", "holds latents without their manifest.json; restore it"),
]


@pytest.mark.parametrize(("name", "kind", "message"), DAMAGE)
def test_damage(given, encoded, tmp_path, name, kind, message):
    folder = shutil.copytree(encoded, tmp_path / "encoded")
    damage(folder, name, kind)

    def read() -> None:
        latents, _ = opened(folder, given)
        latents.gather(np.arange(COUNT), None)

    with pytest.raises(UserError, match=message):
        read()


STRANGE = [
    (
        {"files": [{"name": "../set/train.parquet", "rows": 1, "bytes": 1}]},
        "'../set/train.parquet' isn't a file of",
    ),
    ({"files": [{"name": "latents-00000-of-00001.parquet", "rows": 1}]}, "has no 'bytes', so it isn't what was"),
    ({"files": [7]}, "must map names to values, holds a whole number"),
    ({"dtype": "object"}, "'dtype' must be one of float16, float32, is 'object'; restore it"),
    ({"image_dtype": "V8"}, "'image_dtype' must be one of uint8, uint16, float32, is 'V8'; restore it"),
    ({"shape": [4, -2, 2]}, r"'shape' can't be \[4, -2, 2\]; restore it"),
    ({"size": [16]}, r"'size' can't be \[16\]; restore it"),
    ({"value_range": ["a", "b"]}, r"'value_range' can't be \['a', 'b'\]; restore it"),
    ({"class_names": [1, 2]}, r"'class_names' must be texts, are \[1, 2\]; restore it"),
    ({"random_flip": "no"}, "'random_flip' must be true or false, is 'no'; restore it"),
]


@pytest.mark.parametrize(("changes", "message"), STRANGE)
def test_manifests_that_somebody_else_wrote(given, encoded, tmp_path, changes, message):
    """They are of a fitting digest, as anybody can make them."""
    path = shutil.copytree(encoded, tmp_path / "encoded") / "manifest.json"
    body = json.loads(path.read_text()) | changes
    del body["sha256"]
    path.write_text(json.dumps(body | {"sha256": digest_of(body)}))
    with pytest.raises(UserError, match=message):
        opened(path.parent, given)


def test_folders_and_images_that_are_refused(given, tmp_path):
    (tmp_path / "note.txt").touch()
    with pytest.raises(UserError, match="is not empty, and holds no latents of encode.py; name another"):
        encode(tmp_path, given)
    with pytest.raises(UserError, match="no --autoencoder: name the one to encode with"):
        encode(tmp_path / "encoded", {k: v for k, v in given.items() if k != "autoencoder"})
    with pytest.raises(UserError, match="images of any shape may come, and each is encoded once; add --center_crop"):
        encode(tmp_path / "encoded", given | {"streaming": True, "center_crop": False})
    (tmp_path / "set").mkdir()
    for n in range(2):
        Image.new("RGB", (SIDE, SIDE + n)).save(tmp_path / "set" / f"{n}.png")
    with pytest.raises(UserError, match="the images aren't all of one shape, and each is encoded once; add --center_c"):
        encode(tmp_path / "encoded", given | {"train_data_dir": tmp_path / "set", "center_crop": False})
