import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snowmelt.data import cache as cache_module
from snowmelt.data import content, store
from snowmelt.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
DIGITS = {"dataset_name": "digits", "resolution": 8}

CHILD = """
import sys, time
from snowmelt.data import cache
from snowmelt.data.sources import load_images
from snowmelt.options import DataOptions

write = cache._write
def slow_write(folder, *rest):
    print("writing", flush=True)
    content = write(folder, *rest)
    time.sleep(float(sys.argv[2]))
    return content
cache._write = slow_write
images = load_images(DataOptions(dataset_name="digits", resolution=8, cache_dir=sys.argv[1]))
print(len(images), int(images.as_tensor().sum()), flush=True)
"""


def start_child(cache_dir: Path, seconds: float) -> subprocess.Popen:
    """A process that builds the cache of the digits and pauses just before that is complete."""
    command = [sys.executable, "-c", CHILD, str(cache_dir), str(seconds)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture
def panoramas(folder):
    """Six images of 10 x 16, 16 x 10 and 10 x 10, with pixels that tell where they were."""
    for n in range(6):
        height, width = [(10, 16), (16, 10), (10, 10)][n % 3]
        y, x = np.mgrid[:height, :width]
        Image.fromarray(np.stack([y, x, np.full_like(y, n)], -1).astype(np.uint8)).save(folder / f"{n}.png")
    return folder


def test_crops_begin_at_their_corners(load, panoramas):
    cache = load(train_data_dir=str(panoramas), resolution=10)
    assert cache.as_tensor() is None
    everything = np.arange(6)
    seen = set()
    for seed in range(60):
        corners = np.random.default_rng(seed).integers(cache.sizes - 10 + 1)
        batch = cache.gather(everything, corners)
        for n, image in enumerate(batch):
            top, left = image[:2, 0, 0]
            y, x = np.mgrid[top : top + 10, left : left + 10]
            assert (image == [y, x, np.full_like(y, n)]).all()
            seen.add((n % 3, int(top), int(left)))
    assert seen == {(0, 0, i) for i in range(7)} | {(1, i, 0) for i in range(7)} | {(2, 0, 0)}


def test_centre_crop_is_the_same_now_or_later(load, panoramas):
    later = load(train_data_dir=str(panoramas), resolution=10).gather(np.arange(6), None)
    now = load(train_data_dir=str(panoramas), resolution=10, center_crop=True)
    assert (now.as_tensor().numpy() == later).all()
    assert (now.gather(np.array([4, 1]), None) == later[[4, 1]]).all()


def test_shorter_side_is_resized(load, folder):
    Image.new("L", (90, 30)).save(folder / "a.png")
    assert load(train_data_dir=str(folder), resolution=10).sizes.tolist() == [[10, 30]]


def test_crops_of_another_shape_than_a_square(load, folder):
    """An image covers 16 x 24 with one side as long; what is cropped begins where its values say."""
    for name, (height, width) in {"tall": (21, 24), "wide": (16, 31), "large": (42, 48)}.items():
        y, x = np.mgrid[:height, :width]
        Image.fromarray(np.stack([y, x, np.full_like(y, height)], -1).astype(np.uint8)).save(folder / f"{name}.png")
    options = {"train_data_dir": str(folder), "resolution": "16x24"}
    cache = load(**options)
    assert (cache.size, cache.as_tensor()) == ((16, 24), None)
    rows = {int(cache.gather(np.array([n]), None)[0, 2, 0, 0]): n for n in range(3)}
    assert cache.sizes[[rows[21], rows[16], rows[42]]].tolist() == [[21, 24], [16, 31], [21, 24]]
    seen = set()
    for seed in range(60):
        which = np.array([rows[21], rows[16]])
        for image in cache.gather(which, np.random.default_rng(seed).integers(cache.sizes[which] - cache.size + 1)):
            top, left, height = image[:, 0, 0].tolist()
            assert (image[:2] == np.mgrid[top : top + 16, left : left + 24]).all()
            seen.add((height, top, left))
    assert seen == {(21, top, 0) for top in range(6)} | {(16, 0, left) for left in range(8)}
    centred = load(**options, center_crop=True)
    assert centred.as_tensor().shape == (3, 3, 16, 24)
    assert centred.gather(np.arange(3), None)[[rows[21], rows[16]], :2, 0, 0].tolist() == [[2, 0], [0, 3]]
    assert (centred.as_tensor().numpy() == cache.gather(np.arange(3), None)).all()
    assert load(**options | {"resolution": "24x16"}).fingerprint != cache.fingerprint


def test_opened_again_without_decoding(load, monkeypatch):
    first = load(**DIGITS)
    monkeypatch.setattr(cache_module, "_build", None)
    second = load(**DIGITS)
    assert second.fingerprint == first.fingerprint
    assert (second.as_tensor() == first.as_tensor()).all()
    assert (second.labels == first.labels).all()


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 9},
        {"interpolation": "lanczos"},
        {"center_crop": True},
        {"channels": 3},
        {"background": "black"},
        {"preserve_input_precision": False},
        {"skip_bad_images": True},
    ],
)
def test_other_preprocessing_is_another_cache(load, change):
    assert load(**DIGITS).fingerprint != load(**{**DIGITS, **change}).fingerprint


@pytest.mark.parametrize("metadata", [False, True])
def test_a_replaced_file_is_another_cache(load, folder, metadata):
    Image.new("L", (4, 4), 1).save(folder / "a.png")
    if metadata:
        (folder / "metadata.csv").write_text("file_name,text\na.png,one\n")
    first = load(train_data_dir=str(folder), resolution=4)
    Image.new("L", (4, 4), 2).save(folder / "a.png")
    os.utime(folder / "a.png", (2e9, 2e9))  # whatever the clock's resolution
    second = load(train_data_dir=str(folder), resolution=4)
    assert first.fingerprint != second.fingerprint
    assert second.as_tensor().unique().tolist() == [2]


def test_a_folder_that_moves_keeps_its_cache(load, folder, monkeypatch):
    for n in range(3):
        Image.new("L", (4, 4), n).save(folder / f"{n}.png")
    first = load(train_data_dir=str(folder), resolution=4)
    monkeypatch.setattr(cache_module, "_build", None)
    os.utime(folder / "0.png", (2e9, 2e9))
    moved = folder.rename(folder.parent / "elsewhere")
    assert load(train_data_dir=str(moved), resolution=4).fingerprint == first.fingerprint


def test_contents_are_read_once(load, folder, monkeypatch):
    Image.new("L", (4, 4), 1).save(folder / "a.png")
    first = load(train_data_dir=str(folder), resolution=4)
    monkeypatch.setattr(content, "_digest", None)
    assert load(train_data_dir=str(folder), resolution=4).fingerprint == first.fingerprint


def test_pickling_copies_no_pixels(load):
    cache = load(**DIGITS)
    cache.gather(np.arange(3), None)
    data = pickle.dumps(cache)
    assert len(data) < 200_000 < 1797 * 64 + 200_000
    assert (pickle.loads(data).as_tensor() == cache.as_tensor()).all()


def test_two_processes_build_one_cache(tmp_path):
    children = [start_child(tmp_path, seconds=1) for _ in range(2)]
    outputs = [child.communicate(timeout=120)[0].split("\n") for child in children]
    assert sorted(len(lines) for lines in outputs) == [2, 3], "one process writes, the other waits"
    assert len({lines[-2] for lines in outputs}) == 1


def test_a_kill_while_writing_leaves_nothing_that_counts(tmp_path, load):
    child = start_child(tmp_path / "cache", seconds=60)
    assert child.stdout.readline() == "writing\n"
    partial = wait_for(tmp_path / "cache" / "snowmelt")
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not partial.with_suffix("").exists()
    assert load(**DIGITS).as_tensor().shape == (1797, 1, 8, 8)
    assert not partial.exists()


def built(tmp_path: Path) -> list[Path]:
    """All that the cache holds but locks, and keys of contents."""
    found = (tmp_path / "cache" / "snowmelt").iterdir()
    return [p for p in found if p.suffix != ".lock" and [f.name for f in p.iterdir()] != [store.MANIFEST]]


def wait_for(root: Path) -> Path:
    """The partial folder, once its last file is written."""
    while not (found := list(root.glob("*.partial/sizes.npy"))):
        time.sleep(0.05)
    return found[0].parent


def test_an_error_while_writing_leaves_nothing(load, folder, tmp_path):
    Image.new("L", (40, 40)).save(folder / "a.png")
    whole = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"b\.png"):
        load(train_data_dir=str(folder), resolution=4)
    assert built(tmp_path) == []


def test_a_disk_without_room_is_refused_before_decoding(load, monkeypatch):
    class Usage:
        free = 1797 * 64 - 1

    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: Usage)
    monkeypatch.setattr(cache_module, "_write", None)
    with pytest.raises(UserError, match=r"decoded at --resolution 8, need 115 kB and 115 kB are free"):
        load(**DIGITS)


def test_a_disk_that_fills_up(load, monkeypatch, tmp_path):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.np, "save", full)
    with pytest.raises(UserError, match="disk full"):
        load(**DIGITS)
    assert built(tmp_path) == []
