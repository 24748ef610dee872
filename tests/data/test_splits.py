"""A slice means the same for every source, and what `datasets` means by it."""

import datasets
import numpy as np
import pytest
from PIL import Image

from snowmelt.data.held_out import load_splits
from snowmelt.data.splits import Split
from snowmelt.errors import UserError
from snowmelt.options import HeldOutOptions

COUNT = 20
SPECS = {
    "train": range(20),
    "train[:10%]": range(2),
    "train[-3:]": range(17, 20),
    "train[25%:50%]": range(5, 10),
    "train[4:6] + train[:1]": [4, 5, 0],
    "train[:99]": range(20),
    "train[:7%](closest)": range(1),
    "all": range(20),
    "all[18:]": range(18, 20),
}


def photo(n: int) -> Image.Image:
    return Image.new("L", (4, 4), n)


@pytest.fixture
def sources(tmp_path):
    """The same twenty images in each kind of source."""
    captions = [f"image {n}" for n in range(COUNT)]
    rows = datasets.Dataset.from_dict({"image": [photo(n) for n in range(COUNT)], "text": captions})
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "dict")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    for name in ("folder", "captioned"):
        (tmp_path / name).mkdir()
        for n in range(COUNT):
            photo(n).save(tmp_path / name / f"{n:02}.png")
    lines = "".join(f"{n:02}.png,{text}\n" for n, text in enumerate(captions))
    (tmp_path / "captioned" / "metadata.csv").write_text("file_name,text\n" + lines)
    return tmp_path


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["saved", "dict", "parquet", "folder", "captioned"])
def test_slices(load, sources, kind, spec):
    cache = load(train_data_dir=str(sources / kind), resolution=4, split=spec)
    assert cache.as_tensor()[:, 0, 0, 0].tolist() == list(SPECS[spec])


def test_slices_of_embedded_data(load):
    whole = load(dataset_name="digits", resolution=8)
    tenth = load(dataset_name="digits", resolution=8, split="train[:10%]")
    assert len(tenth) == 180
    assert (tenth.as_tensor() == whole.as_tensor()[:180]).all()
    assert (tenth.labels == whole.labels[:180]).all()


def test_sums_over_splits(load, folder):
    for name, numbers in {"train": range(4), "test": range(4, 6)}.items():
        (folder / name).mkdir()
        for n in numbers:
            photo(n).save(folder / name / f"{n}.png")
    for spec, expected in {"train+test": range(6), "test[1:]+train[:1]": [5, 0], "all[3:5]": [3, 4]}.items():
        cache = load(train_data_dir=str(folder), resolution=4, split=spec)
        assert cache.as_tensor()[:, 0, 0, 0].tolist() == list(expected)


@pytest.mark.parametrize("spec", ["train[:0]", "train[5:2]", "train[30:]", "train+train[:0]", "train[:2%]"])
def test_pieces_without_rows(spec):
    with pytest.raises(UserError, match=r"--validation_split .*: no rows in it; train has 20, numbered from 0"):
        Split(spec, "validation_split").pieces({"train": 20})


@pytest.mark.parametrize("spec", ["", " ", "+", "train[", "train[abc]", "[5:]", "a[:101%]", "a[:5", "a[_:]"])
def test_what_cannot_be_read(spec):
    with pytest.raises(UserError, match=r"--split .*: can't be read"):
        Split(spec).names()


@pytest.fixture
def splits(tmp_path):
    def splits(**options):
        return load_splits(HeldOutOptions(cache_dir=str(tmp_path / "cache"), **{"resolution": 4, **options}))

    return splits


def floats(path, *values: float) -> None:
    path.mkdir(parents=True)
    for n, value in enumerate(values):
        np.save(path / f"{n}.npy", np.linspace(0, value, 16, dtype=np.float32).reshape(4, 4))


def test_held_out_floats_have_the_range_of_those_that_are_trained_on(splits, folder):
    floats(folder / "train", 1, 2)
    floats(folder / "test", 8)
    train, held_out = splits(train_data_dir=str(folder), validation_split="test")
    assert (train.value_range, held_out.value_range) == ((0, 2), (0, 2))
    assert held_out.as_tensor().max() == 8, "and their values are their own"


def test_a_share_of_floats_has_the_range_of_the_rest(splits, folder):
    floats(folder / "data", *range(1, 11))
    train, held_out = splits(train_data_dir=str(folder), validation_share=0.3, seed=1)
    assert train.value_range == held_out.value_range
    assert train.value_range == (0, train.as_tensor().max())
    assert held_out.as_tensor().max() != train.as_tensor().max()


def test_held_out_images_of_one_value(splits, folder):
    floats(folder / "train", 1, 2)
    floats(folder / "test", 0)
    assert splits(train_data_dir=str(folder), validation_split="test")[1].value_range == (0, 2)


def test_held_out_images_are_converted_as_those_that_are_trained_on(splits, folder):
    for name, modes in {"train": ["L", "RGB", "I;16"], "test": ["L"], "validation": ["RGBA"]}.items():
        (folder / name).mkdir()
        for mode in modes:
            Image.new(mode, (4, 4)).save(folder / name / f"{mode[:4].strip(';')}.png")
    with pytest.raises(UserError, match="arrays aren't converted"):
        splits(train_data_dir=str(folder), validation_split="test")
    (folder / "train" / "I16.png").unlink(missing_ok=True)
    for path in (folder / "train").glob("I*"):
        path.unlink()
    for name in ("test", "validation"):
        train, held_out = splits(train_data_dir=str(folder), validation_split=name)
        assert (train.channels, held_out.channels, held_out.dtype) == (3, 3, np.uint8)


def test_held_out_images_keep_the_precision_of_those_that_are_trained_on(splits, folder):
    for name, dtype in {"train": np.uint16, "test": np.uint8}.items():
        (folder / name).mkdir()
        np.save(folder / name / "a.npy", np.full((4, 4), np.iinfo(dtype).max, dtype))
    for ours, theirs in (("train", "test"), ("test", "train")):
        train, held_out = splits(train_data_dir=str(folder), split=ours, validation_split=theirs)
        assert train.dtype == held_out.dtype
        assert held_out.as_tensor().numpy().max() == train.value_range[1] == held_out.value_range[1]


def test_floats_are_not_held_out_of_integers(splits, folder):
    floats(folder / "test", 1)
    (folder / "train").mkdir()
    photo(3).save(folder / "train" / "a.png")
    with pytest.raises(UserError, match=r"--split has uint8 images, and here are 1 float32; float images can't"):
        splits(train_data_dir=str(folder), validation_split="test")


@pytest.mark.parametrize(
    ("split", "validation"),
    [("train", "train"), ("train", "train[:1]"), ("train[:60%]", "train[50%:]"), ("all", "train[3:4]")],
)
def test_rows_that_are_trained_on_are_not_held_out(splits, split, validation):
    with pytest.raises(UserError, match=r"--validation_split \S+: is trained on, or some of it, by --split"):
        splits(dataset_name="digits", resolution=8, split=split, validation_split=validation)


def test_slices_side_by_side_are_held_out(splits):
    train, held_out = splits(dataset_name="digits", resolution=8, split="train[:90%]", validation_split="train[90%:]")
    assert len(train) + len(held_out) == 1797


def test_the_classes_of_a_folder_are_the_same_in_all_splits(splits, folder):
    for where in ("train/a", "train/b", "test/b"):
        (folder / where).mkdir(parents=True)
        photo(1).save(folder / where / "x.png")
    train, held_out = splits(train_data_dir=str(folder), validation_split="test")
    assert train.class_names == held_out.class_names == ["a", "b"]
    assert held_out.labels.tolist() == [1]
