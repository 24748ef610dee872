"""Images in aspect-ratio buckets: which they belong to, and the order in which they are shown."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base

from snowmelt.data import loader
from snowmelt.data.buckets import BucketedImages
from snowmelt.data.loader import batches
from snowmelt.errors import UserError

BUCKETS = "16,24;24,16;20,20"
SHAPES = [(16, 24), (16, 31), (20, 30), (24, 16), (40, 25), (20, 20), (20, 22), (60, 60)] * 4
NEAREST = [0, 0, 0, 1, 1, 2, 2, 2] * 4
USUAL = {"batch_size": 3, "seed": 5, "start_step": 0, "rank": 0, "world_size": 1, "accumulation": 1}
USUAL |= {"device": torch.device("cpu"), "num_workers": 0, "random_flip": False, "labels": False}


@pytest.fixture
def images(load, folder) -> BucketedImages:
    """Images whose pixels say where they are, and which row they are of."""
    for row, (height, width) in enumerate(SHAPES):
        y, x = np.mgrid[:height, :width]
        Image.fromarray(np.stack([y, x, np.full_like(y, row)], -1).astype(np.uint8)).save(folder / f"{row:02d}.png")
    return load(train_data_dir=str(folder), resolution="16x24", aspect_ratio_buckets=BUCKETS)


def test_each_image_is_in_the_bucket_nearest_to_its_shape(images):
    assert (len(images), images.size, images.as_tensor()) == (32, (16, 24), None)
    assert [part.size for part in images.parts] == [(16, 24), (24, 16), (20, 20)]
    for number, part in enumerate(images.parts):
        assert [NEAREST[row] for row in part.rows] == [number] * NEAREST.count(number)
        shown = part.gather(np.arange(len(part)), None)
        assert shown.shape == (len(part), 3, *part.size)
        assert shown[:, 2, 0, 0].tolist() == part.rows.tolist()
    assert sorted(images.rows) == list(range(32))
    numbers = np.array([12, 13])  # the first of the second bucket
    assert (images.gather(numbers, None) == images.parts[1].gather(np.array([0, 1]), None)).all()


def test_an_image_that_a_camera_turned(load, folder):
    """It is stored as 16 x 24 and seen as 24 x 16."""
    turned = Image.new("RGB", (24, 16))
    exif = turned.getexif()
    exif[Base.Orientation] = 6
    turned.save(folder / "a.jpg", exif=exif)
    Image.new("RGB", (24, 16)).save(folder / "b.jpg")
    images = load(train_data_dir=str(folder), resolution="16x24", aspect_ratio_buckets="16,24;24,16")
    assert [part.rows.tolist() for part in images.parts] == [[1], [0]]
    assert images.sizes.tolist() == [[16, 24], [24, 16]]


def global_batches(images, count: int, world_size: int = 1, accumulation: int = 1, start: int = 0) -> list[dict]:
    """All that the processes see in each of `count` steps, together."""
    given = {"world_size": world_size, "accumulation": accumulation, "start_step": start}
    given |= {"batch_size": 12 // world_size // accumulation}
    streams = [batches({"image": images}, **USUAL | given | {"rank": rank}) for rank in range(world_size)]
    found = []
    for _ in range(count):
        micro = [next(stream) for _ in range(accumulation) for stream in streams]
        found.append({name: torch.cat([batch[name] for batch in micro]) for name in micro[0]})
    return found


def test_a_batch_is_of_one_bucket_however_it_is_shared_out(images):
    alone = global_batches(images, 40)
    for batch in alone:
        rows = images.rows[batch["indices"].numpy()]
        assert len({NEAREST[row] for row in rows}) == 1
        assert batch["image"].shape[1:] == (3, *images.parts[NEAREST[rows[0]]].size)
        assert batch["image"][:, 2, 0, 0].tolist() == rows.tolist()
    for world_size, accumulation in ((2, 1), (3, 2)):
        shared = global_batches(images, 40, world_size, accumulation)
        assert all(torch.equal(a["indices"], b["indices"]) for a, b in zip(alone, shared, strict=True))


def test_any_step_can_be_begun_at(images):
    whole = global_batches(images, 30)
    for start in (1, 7, 29):
        for ours, theirs in zip(global_batches(images, 30 - start, start=start), whole[start:], strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_all_images_are_shown_equally_often(images):
    """Each bucket takes its turns in proportion, and goes through its images again and again."""
    counts = np.zeros(len(images))
    for batch in global_batches(images, 32 * 5):
        np.add.at(counts, batch["indices"].numpy(), 1)
    assert counts.sum() == 12 * 32 * 5
    assert (abs(counts - 60) <= 6).all()
    for part, start in zip(images.parts, (0, 12, 20), strict=True):
        own = counts[start : start + len(part)]
        assert own.max() - own.min() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_buckets_on_the_device_give_the_same(load, images, folder, monkeypatch, workers):
    """Where nothing is cropped, all of them are held there."""
    options = {"train_data_dir": str(folder), "resolution": "16x24", "aspect_ratio_buckets": BUCKETS}
    fields = {"image": load(**options, center_crop=True)}
    held = list(islice(batches(fields, **USUAL), 20))
    monkeypatch.setattr(loader, "_from_memory", None)
    with pytest.raises(TypeError):
        next(batches(fields, **USUAL))
    monkeypatch.setattr(loader, "_resident", lambda buckets, device: None)
    for ours, theirs in zip(batches(fields, **USUAL | {"num_workers": workers}), held, strict=False):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_orders_of_other_seeds(images):
    first, second = (
        next(batches({"image": images}, **USUAL | {"seed": seed, "batch_size": 12}))["indices"] for seed in (1, 2)
    )
    assert not torch.equal(first, second)


def test_crops_are_anywhere(images):
    """Of 16 x 31 and 20 x 22 pixels, by 16 x 24 and 20 x 20."""
    seen = set()
    for batch in islice(batches({"image": images}, **USUAL), 300):
        for image in batch["image"]:
            top, left, row = image[:, 0, 0].tolist()
            if SHAPES[row] in ((16, 31), (20, 22)):
                height, width = image.shape[1:]
                assert (image[:2].numpy() == np.mgrid[top : top + height, left : left + width]).all()
                seen.add((SHAPES[row], top, left))
    assert seen == {((16, 31), 0, left) for left in range(8)} | {((20, 22), 0, left) for left in range(3)}


def test_labels_and_gray_among_colours(load, folder):
    """Labels stay with their images, and all buckets have the channels of the whole set."""
    for name, mode, size in (("a", "L", (24, 16)), ("b", "RGB", (16, 24)), ("c", "L", (16, 24))):
        (folder / name).mkdir()
        Image.new(mode, size).save(folder / name / "0.png")
    images = load(train_data_dir=str(folder), resolution="16x24", aspect_ratio_buckets="16,24;24,16")
    assert {part.channels for part in images.parts} == {images.channels} == {3}
    assert (images.labels.tolist(), images.class_names) == ([0, 1, 2], ["a", "b", "c"])
    stream = batches({"image": images}, **USUAL | {"labels": True, "random_flip": True})
    for batch in islice(stream, 6):
        assert torch.equal(batch["label"], batch["indices"])


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ("16,24;24,16;8,64", "--aspect_ratio_buckets: 8,64 is nearest to no image; leave it out"),
        ("16x24", "--aspect_ratio_buckets 16x24: must be sizes HEIGHT,WIDTH, such as 64,96;96,64;80,80"),
        ("16,24;", "--aspect_ratio_buckets 16,24;: must be sizes HEIGHT,WIDTH"),
        ("16,24;0,8", "--aspect_ratio_buckets 16,24;0,8: holds a side of 0; take at least 1"),
        ("16,24;20,20;16,24", "--aspect_ratio_buckets 16,24;20,20;16,24: holds a size twice; leave one out"),
        ("24,16;20,20", "--resolution 16x24: is that of samples; take one of the sizes 24,16;20,20"),
    ],
)
def test_bad_buckets(load, folder, buckets, message):
    Image.new("L", (24, 16)).save(folder / "a.png")
    Image.new("L", (16, 24)).save(folder / "b.png")
    Image.new("L", (20, 20)).save(folder / "c.png")
    with pytest.raises(UserError) as caught:
        load(train_data_dir=str(folder), resolution="16x24", aspect_ratio_buckets=buckets)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_float_images_are_refused(load, folder):
    np.save(folder / "a.npy", np.random.default_rng(0).random((16, 24)).astype(np.float32))
    with pytest.raises(UserError, match="--aspect_ratio_buckets: isn't for float images"):
        load(train_data_dir=str(folder), resolution="16x24", aspect_ratio_buckets="16,24")


def test_an_image_that_cannot_be_read_is_left_out_and_named(load, folder):
    Image.new("L", (24, 16)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    options = {"train_data_dir": str(folder), "resolution": "16x24", "aspect_ratio_buckets": "16,24"}
    with pytest.raises(UserError, match=r"b.png: can't be decoded"):
        load(**options)
    images = load(**options, skip_bad_images=True)
    assert (len(images), len(images.skipped)) == (1, 1)
