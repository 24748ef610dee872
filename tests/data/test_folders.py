"""Folders of files, as people have them."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from snowmelt.data import folders
from snowmelt.data.captions import load_captioned
from snowmelt.errors import UserError
from snowmelt.options import DataOptions


def save(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)
    return path


def shades(cache) -> list[int]:
    return cache.as_tensor()[:, 0, 0, 0].tolist()


@pytest.fixture
def captioned(tmp_path, folder):
    """Shades and captions of the folder's images."""

    def captioned(**options) -> list[tuple[int, list[str]]]:
        given = DataOptions(train_data_dir=str(folder), resolution=4, cache_dir=str(tmp_path / "cache"), **options)
        images, captions = load_captioned(given, None, skip_empty=False)
        return [(shade, captions.of(i)) for i, shade in enumerate(shades(images))]

    return captioned


def zipped(path: Path, files: dict[str, int | str]) -> None:
    """A zip of images of some shades, and of texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            if isinstance(content, int):
                archive.write(save(path.parent.parent / "zipping.png", content), name)
            else:
                archive.writestr(name, content)


def test_links_are_followed_and_loops_are_not(load, folder, tmp_path, capsys):
    save(folder / "cats" / "a.png", 1)
    save(folder / "dogs" / "b.png", 2)
    save(tmp_path / "elsewhere" / "c.png", 3)
    (folder / "owls").symlink_to(tmp_path / "elsewhere")
    (folder / "elks").mkdir()
    (folder / "elks" / "d.png").symlink_to(folder / "cats" / "a.png")
    for n in range(3):
        (folder / "cats" / f"self{n}").symlink_to(folder / "cats")
        (folder / "dogs" / f"top{n}").symlink_to(folder)
    (folder / "everything").symlink_to("/")
    (folder / "aliens").symlink_to(folder / "cats")
    cache = load(train_data_dir=str(folder), resolution=4)
    assert shades(cache) == [1, 2, 1, 3]
    assert cache.class_names == ["cats", "dogs", "elks", "owls"]
    assert f"{folder}: left out 8 links to folders that are read already: aliens, " in capsys.readouterr().out


def test_folders_linked_to_each_other(load, folder):
    for name in "abcd":
        save(folder / name / f"{name}.png", ord(name))
        for other in "abcd":
            (folder / name / f"to-{other}").symlink_to(folder / other)
    assert shades(load(train_data_dir=str(folder), resolution=4)) == [97, 98, 99, 100]


def test_a_folder_that_cannot_be_read_is_named(load, folder, monkeypatch):
    save(folder / "cats" / "a.png", 1)
    save(folder / "dogs" / "b.png", 2)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(UserError, match=r"can't be read: \S+/dogs: Permission denied; change its permissions"):
        load(train_data_dir=str(folder), resolution=4)


def test_a_file_that_cannot_be_read_is_named_or_left_out(load, folder, monkeypatch):
    save(folder / "a.png", 1)
    save(folder / "b.png", 2)
    opened = Image.open

    def refuse(path, **options):
        if str(path).endswith("b.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, **options)

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError, match=r"b\.png: can't be decoded \(Permission denied\)"):
        load(train_data_dir=str(folder), resolution=4)
    assert shades(load(train_data_dir=str(folder), resolution=4, skip_bad_images=True)) == [1]


def test_what_is_no_file_is_left_out_when_asked(load, folder):
    save(folder / "a.png", 1)
    os.mkfifo(folder / "b.png")
    (folder / "c.png").symlink_to("nowhere.png")
    (folder / "d.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "notes.txt")  # no image, and never opened
    cache = load(train_data_dir=str(folder), resolution=4, skip_bad_images=True)
    assert [Path(name).name for name in cache.skipped] == ["b.png", "c.png", "d.png"]


def test_zips_are_read_as_if_they_were_unpacked(load, folder):
    zipped(folder / "more.zip", {"cats/a.png": 1, "dogs/b.png": 2, "__MACOSX/c.png": 9, ".d.png": 9, "notes": "hello"})
    save(folder / "cats" / "d.png", 3)
    cache = load(train_data_dir=str(folder), resolution=4)
    assert (cache.class_names, shades(cache), cache.labels.tolist()) == (["cats", "dogs"], [3, 1, 2], [0, 0, 1])
    before = cache.fingerprint
    zipped(folder / "more.zip", {"cats/a.png": 5, "dogs/b.png": 2})
    again = load(train_data_dir=str(folder), resolution=4)
    assert (again.fingerprint != before, shades(again)) == (True, [3, 5, 2])


@pytest.mark.parametrize("inside", ["", "train/"])
def test_zips_named_as_splits(load, folder, inside):
    zipped(folder / "train.zip", {f"{inside}cats/a.png": 1, f"{inside}dogs/b.png": 2})
    zipped(folder / "test.zip", {"cats/c.png": 3})
    cache = load(train_data_dir=str(folder), resolution=4)
    assert (shades(cache), cache.class_names) == ([1, 2], ["cats", "dogs"])
    assert shades(load(train_data_dir=str(folder), resolution=4, split="test")) == [3]


def test_zipped_npy_and_metadata(load, folder, captioned):
    zipped(folder / "data.zip", {"a.png": 1, "b.png": 2, "metadata.csv": "file_name,text\nb.png,two\na.png,one\n"})
    assert captioned() == [(2, ["two"]), (1, ["one"])]
    other = folder.parent / "arrays"
    other.mkdir()
    np.save(other / "x.npy", np.full((4, 4), 7, np.uint8))
    with zipfile.ZipFile(other / "x.zip", "w") as archive:
        archive.write(other / "x.npy", "x.npy")
    (other / "x.npy").unlink()
    assert shades(load(train_data_dir=str(other), resolution=4)) == [7]


def test_the_folders_of_splits_have_the_names_that_datasets_knows(load, folder):
    save(folder / "training" / "cats" / "a.png", 1)
    save(folder / "val" / "cats" / "b.png", 2)
    save(folder / "val" / "dogs" / "c.png", 3)
    train = load(train_data_dir=str(folder), resolution=4)
    validation = load(train_data_dir=str(folder), resolution=4, split="validation")
    assert (shades(train), shades(validation)) == ([1], [2, 3])
    assert train.class_names == validation.class_names == ["cats", "dogs"], "a label means the same in both"


def test_splits_in_the_only_folder_at_the_top(load, folder):
    save(folder / "data" / "train" / "cats" / "a.png", 1)
    save(folder / "data" / "test" / "cats" / "b.png", 2)
    cache = load(train_data_dir=str(folder), resolution=4)
    assert (shades(cache), cache.class_names) == ([1], ["cats"])


WORDS = ["NA", "null", "None", "nan", "N/A", "true", "-1", " spaced "]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_captions_are_what_is_written(folder, captioned, kind):
    names = [save(folder / f"{n}.png", n).name for n in range(len(WORDS))]
    path = folder / f"metadata.{kind}"
    if kind == "csv":
        path.write_text("\ufefffile_name,text\n" + "".join(f"{n},{w}\n" for n, w in zip(names, WORDS, strict=True)))
    elif kind == "jsonl":
        rows = [{"file_name": n, "text": w} for n, w in zip(names, WORDS, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        parquet.write_table(pa.table({"file_name": names, "text": WORDS}), path)
    assert captioned() == [(n, [word]) for n, word in enumerate(WORDS)]


def test_numbers_are_captions_in_a_column_of_texts_and_labels_elsewhere(load, folder, captioned):
    for n in (1, 2):
        save(folder / f"{n}.png", n)
    (folder / "metadata.csv").write_text("file_name,text,kind\n1.png,10,10\n2.png,9,9\n")
    assert captioned() == [(1, ["10"]), (2, ["9"])]
    cache = load(train_data_dir=str(folder), resolution=4, label_column="kind")
    assert (cache.class_names, cache.labels.tolist()) == (["9", "10"], [1, 0])


def test_quotes_commas_and_lines_in_captions(folder, captioned):
    save(folder / "a.png", 1)
    (folder / "metadata.csv").write_text('file_name,text\r\n\r\na.png,"a ""dog"", a cat\nand more"\r\n')
    assert captioned() == [(1, ['a "dog", a cat\nand more'])]


def test_rows_with_some_keys_only(folder, captioned):
    for n in (1, 2):
        save(folder / f"{n}.png", n)
    rows = [{"file_name": "1.png", "text": "one"}, {"more": 5, "file_name": "2.png", "text": "two"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captioned() == [(1, ["one"]), (2, ["two"])]


@pytest.mark.parametrize("at_the_top", [False, True])
def test_captioned_splits(folder, captioned, at_the_top):
    for n, name in enumerate(["train", "test"]):
        save(folder / name / "a.png", n)
        if not at_the_top:
            (folder / name / "metadata.csv").write_text(f"file_name,text\na.png,{name}\n")
    if at_the_top:
        (folder / "metadata.csv").write_text("file_name,text\ntrain/a.png,train\ntest/a.png,test\n")
    assert captioned() == [(0, ["train"])]
    assert captioned(split="test") == [(1, ["test"])]
    assert captioned(split="train+test") == [(0, ["train"]), (1, ["test"])]


def test_metadata_in_sub_folders_are_joined(folder, captioned):
    save(folder / "x" / "a.png", 1)
    save(folder / "y" / "deep" / "a.png", 2)
    (folder / "x" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}')
    (folder / "y" / "metadata.jsonl").write_text('{"file_name": "deep/../deep/a.png", "text": "two", "more": 1}')
    assert captioned() == [(1, ["one"]), (2, ["two"])]


def test_other_columns_of_files_are_images_too(load, folder):
    for name, shade in {"a": 1, "mask": 2}.items():
        save(folder / f"{name}.png", shade)
    (folder / "metadata.csv").write_text("file_name,mask_file_name\na.png,mask.png\n")
    assert shades(load(train_data_dir=str(folder), resolution=4, image_column="mask")) == [2]


def test_images_that_metadata_name_may_be_links(folder, tmp_path, captioned):
    (folder / "a.png").symlink_to(save(tmp_path / "far" / "a.png", 3))
    (folder / "metadata.csv").write_text("file_name,text\na.png,one\n")
    assert captioned() == [(3, ["one"])]
