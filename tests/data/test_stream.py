"""Streamed images: which rows a step sees, in whatever they are laid out, and what is said of bad input."""

import os
from itertools import islice

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from snowmelt.data.held_out import load_splits
from snowmelt.data.loader import batches, labels_of
from snowmelt.errors import UserError
from snowmelt.options import HeldOutOptions
from tests.data.shards import FEATURES, png, rows_of, write_images, write_parquet, write_tars

USUAL = {
    "batch_size": 10,
    "seed": 0,
    "start_step": 0,
    "rank": 0,
    "world_size": 1,
    "accumulation": 1,
    "device": torch.device("cpu"),
    "num_workers": 2,
    "random_flip": True,
    "labels": False,
}


@pytest.fixture
def stream(tmp_path):
    def stream(labels: bool = False, **options: object):
        """Images to train on, and those held out."""
        usual = {"resolution": 4, "streaming": True, "shuffle_buffer_size": 32, "cache_dir": str(tmp_path / "cache")}
        return load_splits(HeldOutOptions(**usual | options), labels=labels)

    return stream


def take(images, count, **changes):
    """The first `count` micro-steps."""
    found = batches({"image": images}, **USUAL | changes)
    try:
        return list(islice(found, count))
    finally:
        found.close()


def indices(taken) -> list[int]:
    return torch.cat([batch["indices"] for batch in taken]).tolist()


def check_rows(taken, label=lambda row: row % 3) -> None:
    """Images and labels are those of the rows that they are said to be."""
    for batch in taken:
        assert (rows_of(batch["image"].numpy()) == batch["indices"].numpy()).all()
        if "label" in batch:
            assert batch["label"].tolist() == [label(row) for row in batch["indices"].tolist()]


LAYOUTS = {"parquet": (write_parquet, 100), "tar": (write_tars, 170), "images": (write_images, 30)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ["folder", "store"])
def test_each_row_once_an_epoch(stream, tmp_path, layout, where):
    write, count = LAYOUTS[layout]
    source = str(write(tmp_path / "set"))
    if where == "store":
        store = fsspec.filesystem("memory")
        store.put(source, f"/{tmp_path.name}/set", recursive=True)
        source = f"memory://{tmp_path.name}/set"
    images, _ = stream(True, train_data_dir=source, label_column="cls" if layout == "tar" else None)
    assert (len(images), images.channels, images.class_names) == (
        count,
        3,
        ["0", "1", "2"] if layout == "tar" else ["a", "b", "c"],
    )
    taken = take(images, 3 * count // 10, labels=True)
    if layout == "images":  # whose rows are in the order of their paths
        order = {row: n for n, row in enumerate(sorted(range(30), key=lambda row: (row % 3, row)))}
        assert all([order[r] for r in rows_of(b["image"].numpy())] == b["indices"].tolist() for b in taken)
    else:
        check_rows(taken)
    stream_of = indices(taken)
    epochs = [stream_of[start : start + count] for start in range(0, len(stream_of), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_workers_and_where_it_begins_change_nothing(stream, tmp_path):
    images, _ = stream(
        train_data_dir=str(write_parquet(tmp_path / "set", encode=lambda row: png(row, side=6))), resolution=5
    )
    whole = take(images, 24, accumulation=2, num_workers=1)
    again = take(images, 24, accumulation=2, num_workers=4)
    tail = take(images, 10, accumulation=2, start_step=7)
    for one, other in [*zip(whole, again, strict=True), *zip(whole[14:], tail, strict=True)]:
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_processes_see_the_same_global_batches(stream, tmp_path):
    images, _ = stream(train_data_dir=str(write_parquet(tmp_path / "set")))
    steps = {}
    for processes in (1, 2, 4):
        size = 40 // processes
        every = [take(images, 6, batch_size=size, world_size=processes, rank=rank) for rank in range(processes)]
        steps[processes] = [sorted(indices(parts)) for parts in zip(*every, strict=True)]
    assert steps[1] == steps[2] == steps[4]


def test_streamed_values_are_the_cached_ones(stream, tmp_path):
    """Of images that are resized, laid on a background, and of 16 bits."""
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(rng.integers(0, 256, (9 + n, 8, 4), dtype=np.uint8)).save(folder / f"{n}.png")
    for options in ({"channels": 3, "background": "red"}, {"channels": 1, "interpolation": "lanczos"}, {}):
        given = {"train_data_dir": str(folder), "resolution": 6} | options
        cached, _ = stream(**given, streaming=False)
        streamed, _ = stream(**given)
        every = np.arange(4)
        assert (cached.gather(every, None) == streamed.gather(every, None)).all()
        assert (cached.channels, cached.value_range) == (streamed.channels, streamed.value_range)
    Image.fromarray(rng.integers(0, 65536, (8, 8), dtype=np.uint16)).save(tmp_path / "set" / "0.png")
    for n in range(1, 4):
        (folder / f"{n}.png").unlink()
    images, _ = stream(train_data_dir=str(folder), resolution=8)
    assert images.dtype == np.uint16
    assert (images.gather(np.arange(1), None)[0, 0] == np.array(Image.open(folder / "0.png"))).all()


def test_crops_and_flips_follow_the_step(stream, tmp_path):
    def ramp(row: int) -> bytes:
        path = tmp_path / "ramp.png"
        Image.fromarray(np.arange(160, dtype=np.uint8).reshape(8, 20)).save(path)
        return path.read_bytes()

    images, _ = stream(train_data_dir=str(write_parquet(tmp_path / "set", (20,), encode=ramp)), resolution=8)
    first, again, other = (take(images, 4, seed=seed) for seed in (0, 0, 1))
    corners = [{*batch["image"][:, 0, 0].amin(1).tolist()} for batch in (*first, *other)]
    assert len(set(map(frozenset, corners))) == 8
    assert set.union(*corners) <= set(range(13))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    mirrored = torch.cat([batch["image"][:, 0, 0, 0] > batch["image"][:, 0, 0, 1] for batch in first])
    assert 0 < mirrored.sum() < len(mirrored)


def test_slices_and_sums_of_splits(stream, tmp_path):
    write_parquet(tmp_path / "set")
    write_parquet(tmp_path / "set", (20,), split="test", start=200)
    images, _ = stream(train_data_dir=str(tmp_path / "set"), split="train[33:58]+test[:50%]")
    assert rows_of(images.gather(np.arange(35), None)).tolist() == [*range(33, 58), *range(200, 210)]
    assert sorted(indices(take(images, 7, batch_size=5))) == list(range(35))


@pytest.mark.parametrize("kind", ["string", "int64"])
def test_labels_of_other_types(stream, tmp_path, kind):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    images, _ = stream(True, train_data_dir=str(write_parquet(tmp_path / "set", features=features)))
    assert images.class_names == (["a", "b", "c"] if kind == "string" else ["0", "1", "2"])
    check_rows(take(images, 5, random_flip=False, labels=True))


def test_held_out_rows(stream, tmp_path):
    write_parquet(tmp_path / "set")
    write_parquet(tmp_path / "set", (20,), split="test", start=200)
    train, held_out = stream(train_data_dir=str(tmp_path / "set"), validation_share=0.15)
    ours, theirs = (rows_of(x.gather(np.arange(len(x)), None)).tolist() for x in (train, held_out))
    assert sorted(ours + theirs) == list(range(100))
    assert 15 <= len(theirs) < 25
    assert (train.rows[np.arange(len(train))] == ours).all()
    assert (held_out.rows[np.arange(len(held_out))] == theirs).all()
    assert (
        stream(train_data_dir=str(tmp_path / "set"), validation_share=0.15, seed=1)[0].fingerprint != train.fingerprint
    )
    _, held_out = stream(True, train_data_dir=str(tmp_path / "set"), validation_split="test")
    taken = held_out.take(np.arange(20))
    assert taken.labels.tolist() == [row % 3 for row in range(200, 220)]
    assert labels_of(held_out, np.arange(20)).tolist() == taken.labels.tolist()


def test_the_fingerprint_is_of_the_contents(stream, tmp_path):
    first, _ = stream(train_data_dir=str(write_parquet(tmp_path / "set")))
    os.utime(next((tmp_path / "set").iterdir()), (1, 1))
    moved = (tmp_path / "set").rename(tmp_path / "moved")
    assert stream(train_data_dir=str(moved))[0].fingerprint == first.fingerprint
    for change in ({"resolution": 8}, {"shuffle_buffer_size": 64}, {"split": "train[:50]"}):
        assert stream(train_data_dir=str(moved), **change)[0].fingerprint != first.fingerprint
    write_parquet(moved, start=1)
    assert stream(train_data_dir=str(moved))[0].fingerprint != first.fingerprint


def test_bad_images_stop_or_are_replaced(stream, tmp_path, capsys):
    def encode(row: int) -> bytes:
        return b"no image" if row in (12, 13) else png(row)

    folder = str(write_parquet(tmp_path / "set", encode=encode))
    with pytest.raises(UserError, match=r"train-00000-of-00003\.parquet: row 12: can't be decoded .*--skip_bad_images"):
        stream(train_data_dir=folder)[0].gather(np.array([12]), None)
    images, _ = stream(train_data_dir=folder, skip_bad_images=True)
    assert rows_of(images.gather(np.array([11, 12, 13, 14]), None)).tolist() == [11, 14, 14, 14]
    assert "row 12: can't be decoded" in capsys.readouterr().out


def gray_then_colour(row: int) -> bytes:
    return png(row, mode="L" if row < 80 or row == 99 else "RGB")


def rewrite(path, write) -> None:
    content = bytearray(path.read_bytes())
    path.write_bytes(write(content))


def flipped(content: bytearray) -> bytearray:
    content[content.index(b"IDAT", len(content) // 4) + 8] ^= 1
    return content


def test_images_unlike_the_first(stream, tmp_path):
    folder = str(write_parquet(tmp_path / "set", encode=gray_then_colour))
    with pytest.raises(UserError, match=r"row 90 has 3 channels, and the first have 1; give --channels 3, or 1"):
        stream(train_data_dir=folder)[0].gather(np.array([90]), None)
    assert stream(train_data_dir=folder, channels=3)[0].gather(np.array([5, 90]), None).shape == (2, 3, 4, 4)


DAMAGE = {
    "truncated": lambda path: rewrite(path, lambda content: content[: len(content) // 2]),
    "flipped": lambda path: rewrite(path, flipped),
    "vanished": lambda path: path.unlink(),
    "replaced": lambda path: write_parquet(path.parent, (37, 3, 13)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_that_is_damaged_while_training(stream, tmp_path, damage):
    folder = write_parquet(tmp_path / "set")
    images, _ = stream(train_data_dir=str(folder))
    DAMAGE[damage](folder / "train-00001-of-00003.parquet")
    seen: list[int] = []

    def epoch() -> None:
        for batch in islice(batches({"image": images}, **USUAL), 10):
            check_rows([batch])
            seen.extend(batch["indices"].tolist())

    line = r"train-00001-of-00003\.parquet: (can't be read: .*|has changed since .*)$"
    with pytest.raises(UserError, match=line) as raised:
        epoch()
    assert str(raised.value).isprintable()
    assert len(seen) == len(set(seen)) < 100


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_a_damaged_tar(stream, tmp_path, kind):
    folder = write_tars(tmp_path / "set")
    images, _ = stream(train_data_dir=str(folder))
    DAMAGE[kind](folder / "train-00000.tar")
    with pytest.raises(UserError, match=r"train-00000\.tar: "):
        take(images, 17)


def of_other_columns(folder):
    write_parquet(folder)
    write_parquet(folder, (10, 10), split="test", features=datasets.Features({"image": datasets.Image()}))


def of_other_classes(folder):
    write_parquet(folder)
    features = FEATURES | {"label": datasets.ClassLabel(names=["a", "b", "d"])}
    write_parquet(folder, (10,), split="test", features=datasets.Features(features))


def of_floats(folder):
    folder.mkdir()
    np.save(folder / "a.npy", np.zeros((4, 4), np.float32))


def saved(folder):
    datasets.Dataset.from_dict({"image": [1]}).save_to_disk(folder)


def without_labels(folder):
    write_parquet(folder, features=datasets.Features({"image": datasets.Image()}))


def of_text(folder):
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n')


def empty_tar(folder):
    write_tars(folder, (0,))


REFUSED = [
    (of_other_columns, {"split": "train+test"}, r"test-.*: its columns aren't those of .*: label \(missing, not class"),
    (of_other_classes, {"split": "all"}, r"test-.*: label \(classes a, b, d, not classes a, b, c\)"),
    (write_parquet, {"split": "dev"}, r"--split dev: .* has train$"),
    (write_parquet, {"split": "train[200:]"}, r"--split train\[200:\]: no rows in it; train has 100"),
    (
        write_parquet,
        {"validation_share": 0.99},
        r"--validation_share 0.99: with --streaming row groups .* are held out",
    ),
    (write_parquet, {"validation_split": "train[:5]"}, r"--validation_split train\[:5\]: is trained on"),
    (write_parquet, {"image_column": "photo"}, r"--image_column photo: no such column"),
    (write_parquet, {"label_column": "kind"}, r"--label_column kind: no such column"),
    (of_floats, {}, r"--streaming: float images aren't streamed"),
    (saved, {}, r"--streaming: .* was written by save_to_disk; write it by to_parquet"),
    (of_text, {}, r"--streaming: reads \.parquet, \.tar and images, and .* has \.jsonl files"),
    (empty_tar, {}, r"train-00000\.tar: can't be read: a tar without samples"),
]


@pytest.mark.parametrize(("write", "options", "line"), REFUSED)
def test_refused(stream, tmp_path, write, options, line):
    write(tmp_path / "set")
    with pytest.raises(UserError, match=line) as raised:
        stream(True, dataset_name=str(tmp_path / "set"), **options)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"dataset_name": "digits"}, r"--streaming: digits comes with the project, and is in memory"),
        ({"train_data_dir": "nowhere://bucket"}, r"nowhere://bucket: can't be opened: Protocol not known: nowhere"),
        ({"train_data_dir": "s3://bucket/set"}, r"s3://bucket/set: can't be opened: Install s3fs"),
        (
            {"train_data_dir": "memory://empty/of/all"},
            r"memory://empty/of/all: no \.parquet, \.tar or image file in it",
        ),
    ],
)
def test_refused_sources(stream, options, line):
    with pytest.raises(UserError, match=line):
        stream(**options)


def test_rows_without_a_class(stream, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    folder = str(write_parquet(tmp_path / "set", features=features))
    with pytest.raises(UserError, match=r"column label: some rows have label 2, but there are 2 classes"):
        stream(True, train_data_dir=folder)


def test_files_elsewhere_are_not_opened(stream, tmp_path):
    write_images(tmp_path / "other")
    folder = write_parquet(tmp_path / "set")
    cells = [{"bytes": None, "path": str(tmp_path / "other" / "a" / "0000.png")}]
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    path = next(folder.iterdir())
    for old in folder.iterdir():
        old.unlink()
    parquet.write_table(pa.table({"image": pa.array(cells, schema.field(0).type)}, schema=schema), path)
    with pytest.raises(UserError, match=r"row 0 names the file .*, outside .*set; only files of the data set"):
        stream(train_data_dir=str(folder))
