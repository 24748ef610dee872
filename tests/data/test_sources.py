import json
import os

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from snowmelt.data.sources import open_dataset
from snowmelt.errors import UserError
from snowmelt.options import DataOptions


def photo(shade: int) -> Image.Image:
    return Image.new("L", (4, 4), shade)


def shades(cache) -> list[int]:
    return cache.as_tensor()[:, 0, 0, 0].tolist()


def save(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(shade).save(path)


def labelled(**columns) -> datasets.Dataset:
    """Two images, 10 and 20, beside other columns."""
    dataset = datasets.Dataset.from_dict({"image": [photo(10), photo(20)]})
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def test_digits(load):
    cache = load(dataset_name="digits", resolution=8)
    bunch = load_digits()
    assert (cache.as_tensor()[:, 0].numpy() == np.rint(bunch.images * 255 / 16)).all()
    assert (cache.labels == bunch.target).all()
    assert cache.labels.dtype == np.int64
    assert cache.class_names == list("0123456789")


def test_folders_are_classes_at_any_depth(load, folder):
    save(folder / "cats" / "tabby" / "test_1.png", 1)  # a name that datasets would take for the test split
    save(folder / "dogs" / "b.png", 2)
    save(folder / "cats" / "tabby" / "c.png", 3)
    save(folder / ".thumbnails" / "d.png", 4)
    cache = load(train_data_dir=str(folder), resolution=4)
    assert cache.class_names == ["cats/tabby", "dogs"]
    assert dict(zip(shades(cache), cache.labels.tolist(), strict=True)) == {1: 0, 3: 0, 2: 1}


def test_files_outside_any_folder_leave_no_labels(load, folder):
    save(folder / "a.png", 1)
    save(folder / "dogs" / "b.png", 2)
    assert load(train_data_dir=str(folder), resolution=4).labels is None


def test_a_class_may_be_called_train(load, folder):
    save(folder / "train" / "a.png", 1)
    save(folder / "truck" / "b.png", 2)
    assert load(train_data_dir=str(folder), resolution=4).class_names == ["train", "truck"]


def test_folders_named_as_splits_are_splits(load, folder):
    save(folder / "train" / "cats" / "a.png", 1)
    save(folder / "test" / "cats" / "b.png", 2)
    assert shades(load(train_data_dir=str(folder), resolution=4)) == [1]
    test = load(train_data_dir=str(folder), resolution=4, split="test")
    assert (shades(test), test.class_names) == ([2], ["cats"])
    with pytest.raises(UserError, match="--split validation: .* has train, test"):
        load(train_data_dir=str(folder), split="validation")


def test_metadata_files(load, folder):
    for name, shade in [("a", 1), ("b", 2)]:
        save(folder / f"{name}_test.png", shade)
    rows = [{"file_name": "b_test.png", "animal": "owl"}, {"file_name": "a_test.png", "animal": "elk"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cache = load(train_data_dir=str(folder), resolution=4, label_column="animal")
    assert (shades(cache), cache.labels.tolist(), cache.class_names) == ([2, 1], [1, 0], ["elk", "owl"])


def test_npy_folders_are_classes_too(load, folder):
    for name in "ab":
        (folder / name).mkdir()
        np.save(folder / name / "x.npy", np.full((4, 4), ord(name), np.uint8))
    cache = load(train_data_dir=str(folder), resolution=4)
    assert (shades(cache), cache.labels.tolist(), cache.class_names) == ([97, 98], [0, 1], ["a", "b"])


@pytest.mark.parametrize("flag", ["dataset_name", "train_data_dir"])
def test_parquet(load, folder, flag):
    labelled(label=[3, 7]).to_parquet(folder / "train-00000-of-00001.parquet")
    labelled(label=[0, 0]).to_parquet(folder / "test-00000-of-00001.parquet")
    cache = load(**{flag: str(folder)}, resolution=4)
    assert (shades(cache), cache.labels.tolist(), cache.class_names) == ([10, 20], [0, 1], ["3", "7"])
    assert shades(load(**{flag: str(folder)}, resolution=4, split="train[:50%]")) == [10]
    with pytest.raises(UserError, match=r"--split dev: .* has train, test"):
        load(**{flag: str(folder)}, split="dev")
    with pytest.raises(UserError, match=r"--dataset_config_name zzz: .*default"):
        load(dataset_name=str(folder), dataset_config_name="zzz")


def test_bytes_that_are_not_marked_as_images(load, folder):
    encoded = [item["bytes"] for item in labelled().cast_column("image", datasets.Image(decode=False))["image"]]
    datasets.Dataset.from_dict({"raw": encoded}).to_parquet(folder / "a.parquet")
    assert shades(load(train_data_dir=str(folder), resolution=4)) == [10, 20]


@pytest.mark.parametrize("flag", ["dataset_name", "train_data_dir"])
def test_save_to_disk(load, folder, flag):
    labelled().save_to_disk(folder / "one")
    assert shades(load(**{flag: str(folder / "one")}, resolution=4)) == [10, 20]
    datasets.DatasetDict({"train": labelled(), "test": labelled()}).save_to_disk(folder / "both")
    assert shades(load(**{flag: str(folder / "both")}, resolution=4)) == [10, 20]
    with pytest.raises(UserError, match="--split dev: .* has train, test"):
        load(**{flag: str(folder / "both")}, split="dev")


@pytest.mark.parametrize(
    ("feature", "dtype"),
    [
        (datasets.Array2D((4, 4), "uint8"), np.uint8),
        (datasets.Array3D((4, 4, 2), "float32"), np.float32),
        (datasets.List(datasets.List(datasets.Value("uint8"))), np.uint8),
        (datasets.List(datasets.List(datasets.Value("int64"))), np.float32),
    ],
)
def test_array_columns(load, folder, feature, dtype):
    shape = getattr(feature, "shape", (4, 4))
    values = np.random.default_rng(0).integers(0, 200, (3, *shape))
    features = datasets.Features({"id": datasets.Value("string"), "scan": feature})
    datasets.Dataset.from_dict({"id": ["a", "b", "c"], "scan": values.tolist()}, features).save_to_disk(folder)
    cache = load(dataset_name=str(folder), resolution=4)
    assert cache.dtype == dtype
    assert (cache.as_tensor().numpy().transpose(0, 2, 3, 1) == values.reshape(3, 4, 4, -1)).all()


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([7, 3], [1, 0], ["3", "7"]),
        (["owl", "elk"], [1, 0], ["elk", "owl"]),
        ([True, False], [1, 0], ["False", "True"]),
    ],
)
def test_labels_are_numbered_in_sorted_order(load, folder, values, labels, names):
    labelled(kind=values).save_to_disk(folder)
    assert load(dataset_name=str(folder), resolution=4).labels is None
    cache = load(dataset_name=str(folder), resolution=4, label_column="kind")
    assert (cache.labels.tolist(), cache.class_names) == (labels, names)


def test_hidden_labels_stop_only_those_who_ask_for_them(load, folder):
    hidden = labelled(label=[1, -1]).cast_column("label", datasets.ClassLabel(names=["a", "b"]))
    hidden.save_to_disk(folder)
    assert load(dataset_name=str(folder), resolution=4).labels is None
    with pytest.raises(UserError, match="--label_column label: row 1 has -1"):
        load(dataset_name=str(folder), label_column="label")


def test_labels_out_of_range_are_refused(load, folder):
    wrong = labelled(label=[0, 2]).cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    wrong.info.features["label"] = datasets.ClassLabel(names=["a", "b"])
    wrong.save_to_disk(folder)
    with pytest.raises(UserError, match="row 1 has label 2, but there are 2 classes, from 0 to 1"):
        load(dataset_name=str(folder), resolution=4)


def test_a_corrupt_table_is_named(load, folder):
    (folder / "train.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(UserError, match="can't be read: .*; check its files"):
        load(train_data_dir=str(folder))


def test_two_class_labels_need_a_choice(load, folder):
    feature = datasets.ClassLabel(names=["a", "b"])
    two = labelled(coarse=[0, 0], fine=[0, 1]).cast_column("coarse", feature).cast_column("fine", feature)
    two.save_to_disk(folder)
    assert load(dataset_name=str(folder), resolution=4).labels is None
    assert load(dataset_name=str(folder), resolution=4, label_column="fine").labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"kind": [None, 1]}, {"label_column": "kind"}, "--label_column kind: row 0 has None"),
        ({"kind": ["a", None]}, {"label_column": "kind"}, "--label_column kind: row 1 has None"),
        ({"kind": [0.5, 1.5]}, {"label_column": "kind"}, r"--label_column kind: float64 is no class"),
        ({}, {"label_column": "kind"}, r"--label_column kind: no such column; columns: image \(Image\)"),
        ({}, {"image_column": "img"}, r"--image_column img: no such column; columns: image \(Image\)"),
        ({"kind": [1, 2]}, {"image_column": "kind"}, "--image_column kind: int64 is no type of images"),
        ({}, {"train_data_dir": "x"}, "give one of the two"),
    ],
)
def test_wrong_columns_and_options(load, folder, columns, options, message):
    labelled(**columns).save_to_disk(folder)
    with pytest.raises(UserError, match=message):
        load(dataset_name=str(folder), **options)


def test_the_image_column_must_be_clear(load, folder):
    shown = [photo(10), photo(20)]
    datasets.Dataset.from_dict({"image": shown, "mask": shown[::-1]}).save_to_disk(folder / "two")
    with pytest.raises(UserError, match="several columns hold images: image, mask; choose one"):
        load(dataset_name=str(folder / "two"))
    assert shades(load(dataset_name=str(folder / "two"), image_column="mask", resolution=4)) == [20, 10]
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(folder / "none")
    with pytest.raises(UserError, match=r"no column holds images; columns: text \(string\)"):
        load(dataset_name=str(folder / "none"))


def test_no_data(load, folder):
    with pytest.raises(UserError, match="no data: give --dataset_name"):
        load()
    with pytest.raises(UserError, match="--train_data_dir .*nowhere: no such folder"):
        load(train_data_dir=str(folder / "nowhere"))
    with pytest.raises(UserError, match="--dataset_name .*nowhere: no such folder"):
        load(dataset_name=str(folder / "nowhere"))
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"no image, \.npy, \.zip or \.parquet file"):
        load(train_data_dir=str(folder))
    labelled().select([]).to_parquet(folder / "empty.parquet")
    with pytest.raises(UserError, match="--split train: no rows in it"):
        load(train_data_dir=str(folder))
    with pytest.raises(UserError, match="--split test: digits has train"):
        load(dataset_name="digits", split="test")


def test_a_broken_file_is_named_or_left_out(load, folder, capsys):
    for shade in range(4):
        save(folder / "a" / f"{shade}.png", shade)
    whole = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "1.png").write_bytes(whole[: len(whole) - 20])
    (folder / "a" / "2.png").write_text("not a picture")
    save(folder / "b" / "4.png", 4)
    with pytest.raises(UserError, match=r"a/2\.png: can't be decoded"):
        load(train_data_dir=str(folder), resolution=4)
    cache = load(train_data_dir=str(folder), resolution=4, skip_bad_images=True)
    assert shades(cache) == [0, 3, 4]
    assert cache.rows.tolist() == [0, 3, 4]
    assert cache.labels.tolist() == [0, 0, 1]
    assert cache.skipped == [str(folder / "a" / "1.png"), str(folder / "a" / "2.png")]
    assert "left out 2 of 5 images" in capsys.readouterr().out
    os.remove(folder / "a" / "2.png")
    with pytest.raises(UserError, match=r"a/1\.png: can't be decoded .*truncated"):
        load(train_data_dir=str(folder), resolution=4)


def test_names_of_files_that_are_left_out_forge_no_lines(load, folder, capsys):
    save(folder / "a.png", 1)
    (folder / "b\nepoch 1\x1b[2J.png").write_text("no image")
    cache = load(train_data_dir=str(folder), resolution=4, skip_bad_images=True)
    assert cache.skipped == [f"{folder}/b\\nepoch 1\\x1b[2J.png"]
    assert "\nepoch" not in capsys.readouterr().out


def test_a_broken_row_of_a_table_is_numbered(load, folder):
    good = labelled().cast_column("image", datasets.Image(decode=False))["image"][:]
    cut = {"bytes": good[0]["bytes"][:-20], "path": "x.png"}
    for row, message in [(None, "row 2: can't be decoded .no image"), (cut, r"row 2 \(x\.png\): can't be")]:
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": [*good, row]}, features=features).to_parquet(folder / "a.parquet")
        with pytest.raises(UserError, match=message):
            load(train_data_dir=str(folder), resolution=4)
    assert len(load(train_data_dir=str(folder), resolution=4, skip_bad_images=True)) == 2


def test_nothing_readable(load, folder):
    (folder / "a.png").write_text("")
    with pytest.raises(UserError, match="none of the 1 images can be decoded"):
        load(train_data_dir=str(folder), resolution=4, skip_bad_images=True)


def test_open_dataset_leaves_rows_as_they_are(folder):
    labelled(text=["one", "two"]).save_to_disk(folder)
    assert open_dataset(DataOptions(dataset_name=str(folder))).dataset["text"][:] == ["one", "two"]
