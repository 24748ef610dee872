from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from snowmelt.data import loader
from snowmelt.data.loader import batches
from snowmelt.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def digits(load):
    return load(dataset_name="digits", resolution=8)


@pytest.fixture
def mixed(load, folder):
    """23 images of which some aren't square, so that crops are drawn."""
    rng = np.random.default_rng(0)
    for n in range(23):
        Image.fromarray(rng.integers(0, 256, (8, 8 + n % 5, 3), dtype=np.uint8)).save(folder / f"{n:02}.png")
    return load(train_data_dir=str(folder), resolution=8)


USUAL = {
    "batch_size": 10,
    "seed": 0,
    "start_step": 0,
    "rank": 0,
    "world_size": 1,
    "accumulation": 1,
    "device": CPU,
    "num_workers": 0,
    "random_flip": True,
    "labels": False,
}


def take(cache, count, **changes):
    """The first `count` micro-steps."""
    return list(islice(batches({"image": cache}, **USUAL | changes), count))


def same(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("batch_size", [10, 50])
def test_each_epoch_shows_each_row_once_in_its_own_order(mixed, batch_size):
    stream = torch.cat([b["indices"] for b in take(mixed, 20, batch_size=batch_size)])
    assert stream.dtype == torch.int64
    epochs = [stream[start : start + 23].tolist() for start in range(0, len(stream) - 23, 23)]
    assert len(epochs) > 7
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.fixture
def wide(load, folder):
    """One image of 8 x 40: all that differs between batches is crops and flips."""
    Image.fromarray(np.arange(320, dtype=np.uint16).reshape(8, 40)).save(folder / "a.png")
    return load(train_data_dir=str(folder), resolution=8, preserve_input_precision=True)


def test_the_seed_decides_the_order(mixed):
    first, again, other = (take(mixed, 5, seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert not torch.equal(first[0]["indices"], other[0]["indices"])


def test_crops_follow_seed_step_and_shard(wide):
    drawn = [*take(wide, 4, accumulation=2, random_flip=False), *take(wide, 4, seed=1, random_flip=False)]
    corners = [tuple(batch["image"][:, 0, 0, 0].tolist()) for batch in drawn]
    assert len(set(corners)) == 8
    assert set(sum(corners, ())) <= set(range(33))


@pytest.mark.parametrize("name", ["digits", "mixed"])
def test_accumulation_and_processes_see_the_same(request, name):
    cache = request.getfixturevalue(name)
    alone = take(cache, 8, accumulation=2)
    pair = [take(cache, 4, world_size=2, rank=rank) for rank in range(2)]
    assert same(alone, [batch for step in zip(*pair, strict=True) for batch in step])
    four = [take(cache, 4, world_size=2, rank=rank, accumulation=2) for rank in range(2)]
    assert same(take(cache, 8, accumulation=4), [batch for step in zip(*four, strict=True) for batch in step])


def test_flips_follow_seed_step_and_shard(load, folder):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "a.png")
    cache = load(train_data_dir=str(folder), resolution=8)
    drawn = [*take(cache, 4, batch_size=64, accumulation=2), *take(cache, 4, batch_size=64, seed=1)]
    assert len({tuple(batch["image"][:, 0, 0, 0].tolist()) for batch in drawn}) == 8


@pytest.mark.parametrize("name", ["digits", "mixed"])
def test_a_restart_equals_the_tail(request, name):
    cache = request.getfixturevalue(name)
    whole = take(cache, 24, accumulation=2)
    assert same(whole[14:], take(cache, 10, accumulation=2, start_step=7))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_that_is_not_resident_gives_the_same(digits, monkeypatch, workers):
    resident = take(digits, 6, accumulation=2, labels=True)
    monkeypatch.setattr(loader, "_resident", lambda fields, device: None)
    assert same(resident, take(digits, 6, accumulation=2, labels=True, num_workers=workers))


def test_workers_draw_the_same_crops(mixed):
    assert same(take(mixed, 6), take(mixed, 6, num_workers=2))


def test_a_set_is_resident_only_within_half_of_the_memory(digits, mixed, monkeypatch):
    class Memory:
        available = 2 * 1797 * 64

    monkeypatch.setattr(loader.psutil, "virtual_memory", lambda: Memory)
    assert loader._resident([{"image": digits}], CPU) is not None
    Memory.available -= 1
    assert loader._resident([{"image": digits}], CPU) is None
    Memory.available = 2**60
    assert loader._resident([{"image": mixed}], CPU) is None


def test_labels_and_images_are_those_of_the_indices(digits):
    (batch,) = take(digits, 1, labels=True, random_flip=False)
    assert torch.equal(batch["image"], digits.as_tensor()[batch["indices"]])
    assert batch["label"].dtype == torch.int64
    assert (batch["label"].numpy() == digits.labels[batch["indices"]]).all()


def test_half_of_the_images_are_mirrored(digits):
    flipped, plain = (take(digits, 1, batch_size=1000, random_flip=flag)[0]["image"] for flag in (True, False))
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    kept = (flipped == plain).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert 400 < mirrored.sum() < 600


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_16_bit_batches_have_the_right_values(load, folder, monkeypatch, workers):
    values = np.random.default_rng(0).integers(0, 65536, (4, 8, 8), dtype=np.uint16)
    for n, image in enumerate(values):
        Image.fromarray(image).save(folder / f"{n}.png")
    cache = load(train_data_dir=str(folder), resolution=8, preserve_input_precision=True)
    if workers is not None:
        monkeypatch.setattr(loader, "_resident", lambda fields, device: None)
    (batch,) = take(cache, 1, batch_size=64, num_workers=workers or 0)
    assert batch["image"].dtype == torch.uint16
    expected = values[batch["indices"]].astype(np.float32)
    shown = batch["image"].float().numpy()[:, 0]
    mirrored = (shown != expected).any((1, 2))
    assert 16 < mirrored.sum() < 48
    assert (np.where(mirrored[:, None, None], expected[..., ::-1], expected) == shown).all()


def test_labels_must_exist(mixed):
    with pytest.raises(UserError, match="no labels; name their column with --label_column"):
        take(mixed, 0, labels=True)


def pair(load, folder, small: int = 16) -> dict:
    """Images that say where each of their pixels is, and others that say so at a fraction of the resolution."""
    for name, side in (("image", 16), ("condition", small)):
        (folder / name).mkdir()
        for n in range(7):
            y, x = np.mgrid[0:side, 0 : side * (4 + n) // 4] * (16 // side)
            Image.fromarray(np.stack([y, x, np.full_like(y, n)], -1).astype(np.uint8)).save(folder / name / f"{n}.png")
    return {
        "image": load(train_data_dir=str(folder / "image"), resolution=16),
        "condition": load(train_data_dir=str(folder / "condition"), resolution=small),
    }


@pytest.mark.parametrize("small", [16, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_fields_share_one_crop_and_one_mirror(load, folder, small, workers):
    fields = pair(load, folder, small)
    seen = set()
    for batch in islice(batches(fields, **USUAL | {"num_workers": workers}), 20):
        image, condition = batch["image"], batch["condition"]
        assert condition.shape == (10, 3, small, small)
        assert (image[:, 2, 0, 0] == batch["indices"]).all()
        factor = 16 // small
        # Of each block of pixels the condition has the corner that lies first in the file.
        blocks = image.unflatten(2, (small, factor)).unflatten(4, (small, factor)).amin((3, 5))
        assert torch.equal(blocks, condition)
        mirrored = image[:, 1, 0, 0] > image[:, 1, 0, -1]
        seen |= set(zip(mirrored.tolist(), image[:, 1].amin((1, 2)).tolist(), strict=True))
    assert {flipped for flipped, _ in seen} == {False, True}
    assert len({left for _, left in seen}) > 3


def test_fields_that_do_not_belong_together_are_refused(load, folder, digits):
    fields = pair(load, folder)
    with pytest.raises(UserError, match="mask: not of the same rows of the data set as image"):
        next(batches(fields | {"mask": digits}, **USUAL))
    Image.new("RGB", (40, 16)).save(folder / "condition" / "3.png")
    changed = load(train_data_dir=str(folder / "condition"), resolution=16)
    with pytest.raises(UserError, match="condition: its images don't have the shapes of those of image"):
        next(batches(fields | {"condition": changed}, **USUAL))
