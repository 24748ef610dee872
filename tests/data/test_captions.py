import datasets
import numpy as np
import pytest
from PIL import Image

from snowmelt.data.captions import Captions, caption_column, load_captioned
from snowmelt.data.held_out import load_captioned_splits
from snowmelt.errors import UserError
from snowmelt.options import DataOptions, HeldOutOptions

TEXT, TEXTS, NUMBER = datasets.Value("string"), datasets.List(datasets.Value("string")), datasets.Value("int64")


def features(**columns: object) -> datasets.Features:
    return datasets.Features({"image": datasets.Image(), **columns})


@pytest.fixture
def load(tmp_path):
    """`load_captioned` of images 10, 20, ... with the given columns beside."""

    def load(column=None, *, skip_empty=False, most=None, **columns):
        count = len(next(iter(columns.values())))
        images = [Image.new("L", (4, 4), 10 * (i + 1)) for i in range(count)]
        datasets.Dataset.from_dict({"image": images, **columns}).save_to_disk(tmp_path / "data")
        options = DataOptions(dataset_name=str(tmp_path / "data"), resolution=4, cache_dir=str(tmp_path / "cache"))
        cache, captions = load_captioned(options, column, skip_empty=skip_empty, most=most)
        return cache.as_tensor()[:, 0, 0, 0].tolist(), captions

    return load


def test_strings(load):
    shades, captions = load(text=["a", "b", "c"])
    assert shades == [10, 20, 30]
    assert [captions.of(i) for i in range(3)] == [["a"], ["b"], ["c"]]
    assert len(captions) == 3


def test_several_captions(load):
    _, captions = load(text=[["a", "b"], ["c"], ["d", "", "e"]])
    assert [captions.of(i) for i in range(3)] == [["a", "b"], ["c"], ["d", "e"]]
    assert captions.texts == ["a", "b", "c", "d", "e"]
    assert captions.starts.tolist() == [0, 2, 3, 5]


def test_the_first_so_many(load):
    shades, captions = load(text=["a", "b", "c"], most=2)
    assert (shades, captions.texts) == ([10, 20], ["a", "b"])


@pytest.mark.parametrize("text", [["a", None, "  ", "d"], [["a"], [], [None, ""], ["d"]]])
def test_empty_captions(load, text):
    with pytest.raises(
        UserError, match=r"--caption_column text: 2 of 4 rows have no caption \(rows 1, 2\); .*--skip_empty_captions"
    ):
        load(text=text)
    shades, captions = load(text=text, skip_empty=True)
    assert (shades, captions.texts) == ([10, 40], ["a", "d"])


def test_all_empty(load):
    with pytest.raises(UserError, match="2 of 2 rows have no caption"):
        load(text=["", ""], skip_empty=True)


def test_captions_stay_with_their_images_when_some_cannot_be_read(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("L", (4, 4), 20).save(tmp_path / "good.png")
    table = {"image": [str(tmp_path / "bad.png"), str(tmp_path / "good.png")], "text": ["bad", "good"]}
    dataset = datasets.Dataset.from_dict(table, features=features(text=TEXT))
    dataset.save_to_disk(tmp_path / "data")
    options = DataOptions(
        dataset_name=str(tmp_path / "data"), resolution=4, cache_dir=str(tmp_path / "cache"), skip_bad_images=True
    )
    cache, captions = load_captioned(options, None, skip_empty=False)
    assert captions.texts == ["good"]
    assert len(cache) == len(captions) == 1


@pytest.mark.parametrize("by", ["share", "split"])
def test_held_out_captions_stay_with_their_images(tmp_path, by):
    """Where some rows have no caption, and some images can't be read."""
    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths, texts = [], []
    for i in range(20):
        paths.append(str(tmp_path / ("bad.png" if i == 5 else f"{i}.png")))
        texts.append("" if i % 7 == 3 else f"shade {10 * i}")
        if i != 5:
            Image.new("L", (4, 4), 10 * i).save(paths[-1])
    table = datasets.Dataset.from_dict({"image": paths, "text": texts}, features=features(text=TEXT))
    parts = (
        {"train": table} if by == "share" else {"train": table.select(range(12)), "test": table.select(range(12, 20))}
    )
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "data")
    chosen = {"validation_share": 0.3} if by == "share" else {"validation_split": "test"}
    options = HeldOutOptions(
        dataset_name=str(tmp_path / "data"),
        resolution=4,
        cache_dir=str(tmp_path / "cache"),
        skip_bad_images=True,
        **chosen,
    )
    both = load_captioned_splits(options, None, skip_empty=True, most=None if by == "share" else 9)
    seen = []
    for cache, captions in both:
        shades = cache.as_tensor()[:, 0, 0, 0].tolist()
        assert captions.texts == [f"shade {shade}" for shade in shades]
        seen += [shade // 10 for shade in shades]
    kept = [i for i in range(20) if i % 7 != 3 and i != 5 and (by == "share" or i < 9 or i >= 12)]
    assert sorted(seen) == kept
    assert len(both[1][1]) == (5 if by == "share" else 7)


@pytest.mark.parametrize(
    ("columns", "name", "found"),
    [
        ({"text": TEXT}, None, "text"),
        ({"title": TEXT}, None, "title"),
        ({"title": TEXT, "caption": TEXTS}, None, "caption"),
        ({"title": TEXT, "text": TEXT}, "title", "title"),
        ({"text": NUMBER, "title": TEXT}, None, "title"),
    ],
)
def test_the_column_that_is_found(columns, name, found):
    assert caption_column(features(**columns), name) == found


@pytest.mark.parametrize(
    ("columns", "name", "message"),
    [
        ({"text": TEXT}, "caption", "--caption_column caption: no such column; columns of text: text; all columns: im"),
        ({"text": TEXT, "n": NUMBER}, "n", "--caption_column n: holds no strings"),
        ({"n": NUMBER}, None, "no column holds captions; columns of text: none; all columns: image, n; name one with"),
        ({"title": TEXT, "author": TEXT}, None, "several columns may hold the captions: title, author; choose with"),
    ],
)
def test_columns_that_are_refused(columns, name, message):
    with pytest.raises(UserError, match=message):
        caption_column(features(**columns), name)


def test_captions_of_an_image():
    captions = Captions(["a", "b", "c"], np.array([0, 1, 3]))
    assert captions.of(1) == ["b", "c"]
