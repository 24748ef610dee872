"""Files of every mode, made by Pillow, come out as the right pixels."""

import numpy as np
import PIL
import pytest
from PIL import Image

from snowmelt.data import images as images_module
from snowmelt.errors import UserError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
FLOAT = RNG.normal(size=(8, 8)).astype(np.float32)


def pixels(cache):
    """(N, H, W, C) of a square set."""
    return cache.as_tensor().numpy().transpose(0, 2, 3, 1)


UNREADABLE = pytest.mark.skipif(
    PIL.__version__.startswith("12."), reason="Pillow 12 can't read the YCbCr TIFF that it writes itself"
)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("1", "png", 1),
        ("L", "png", 1),
        ("LA", "png", 4),
        ("P", "png", 3),
        ("P", "gif", 3),
        ("RGB", "png", 3),
        ("RGB", "webp", 3),
        ("RGBA", "png", 4),
        ("CMYK", "tiff", 3),
        pytest.param("YCbCr", "tiff", 3, marks=UNREADABLE),
    ],
)
def test_images_have_the_channels_of_their_mode(load, folder, mode, suffix, channels):
    image = Image.fromarray(RGBA if mode.endswith("A") else RGB).convert(mode)
    options = {"lossless": True} if suffix == "webp" else {}
    image.save(folder / f"a.{suffix}", **options)
    cache = load(train_data_dir=str(folder), resolution=8)
    expected = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])).reshape(8, 8, channels)
    assert (cache.channels, cache.dtype, cache.value_range) == (channels, np.uint8, (0, 255))
    visible = expected[..., 3] > 0 if channels == 4 else np.ones((8, 8), bool)
    tolerance = 1 if suffix == "gif" else 0
    assert np.abs(pixels(cache)[0].astype(int) - expected)[visible].max() <= tolerance


def test_palette_with_transparency_has_alpha(load, folder):
    image = Image.fromarray(GRAY % 4)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(folder / "a.png", transparency=0)
    image.save(folder / "b.gif", transparency=0)
    cache = load(train_data_dir=str(folder), resolution=8)
    assert cache.channels == 4
    for shown in pixels(cache):
        assert ((shown[..., 3] == 0) == (GRAY % 4 == 0)).all()
        assert (shown[GRAY % 4 == 1] == (0, 255, 0, 255)).all()


def test_one_transparent_colour_has_alpha(load, folder):
    Image.fromarray(RGB).save(folder / "a.png", transparency=tuple(RGB[0, 0].tolist()))
    cache = load(train_data_dir=str(folder), resolution=8)
    assert pixels(cache)[0, 0, 0, 3] == 0
    assert pixels(cache)[0, 1, 1, 3] == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_composited_on_the_background(load, folder, channels):
    Image.fromarray(RGBA).save(folder / "a.png")
    cache = load(train_data_dir=str(folder), resolution=8, channels=channels, background="#ff8000")
    alpha = RGBA[..., 3:] / 255
    expected = RGBA[..., :3] * alpha + np.array([255, 128, 0]) * (1 - alpha)
    if channels == 1:
        expected = expected @ np.array([[0.299], [0.587], [0.114]])
    assert np.abs(pixels(cache)[0] - expected).max() <= 1.1


def test_rgb_as_rgba_is_opaque(load, folder):
    Image.fromarray(RGB).save(folder / "a.png")
    cache = load(train_data_dir=str(folder), resolution=8, channels=4)
    assert (pixels(cache)[0, ..., 3] == 255).all()
    assert (pixels(cache)[0, ..., :3] == RGB).all()


def test_colours_under_full_transparency_neither_bleed_nor_remain(load, folder):
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, :] = (255, 0, 0, 0)  # red, but invisible
    image[:, 9:] = (0, 0, 255, 255)
    Image.fromarray(image).save(folder / "a.png")
    shown = pixels(load(train_data_dir=str(folder), resolution=8, background="white"))[0]
    visible = shown[..., 3] > 0
    assert shown[visible][:, 0].max() == 0
    assert 0 < shown[0, 4, 3] < 255
    assert (shown[~visible][:, :3] == 255).all()


def test_exif_orientation(load, folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(RGB).save(folder / "a.png", exif=exif)
    cache = load(train_data_dir=str(folder), resolution=8)
    assert (pixels(cache)[0] == np.rot90(RGB, -1)).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [None, 3])
def test_16_bits_are_kept_exactly_or_rounded(load, folder, suffix, channels):
    Image.fromarray(DEEP).save(folder / f"a.{suffix}")
    options = {"train_data_dir": str(folder), "resolution": 8, "channels": channels}
    kept = load(**options)
    assert (kept.dtype, kept.value_range) == (np.uint16, (0, 65535))
    assert (pixels(kept)[0] == DEEP[..., None]).all()
    rounded = load(**options, preserve_input_precision=False)
    assert rounded.dtype == np.uint8
    assert (pixels(rounded)[0] == np.rint(DEEP / 257)[..., None]).all()


def test_big_endian_and_32_bit_integers_are_16_bit(load, folder):
    Image.fromarray(DEEP.astype(np.int32)).save(folder / "a.tiff")
    Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()).save(folder / "b.tiff")
    np.save(folder / "c.npy", DEEP.astype(">u2"))
    cache = load(train_data_dir=str(folder), resolution=8)
    assert (pixels(cache) == DEEP[..., None]).all()


def test_8_bits_among_16_keep_their_brightness(load, folder):
    Image.fromarray(GRAY).save(folder / "a.png")
    Image.fromarray(DEEP).save(folder / "b.png")
    cache = load(train_data_dir=str(folder), resolution=8)
    assert (pixels(cache)[0, ..., 0] == GRAY.astype(int) * 257).all()


def test_floats_keep_their_values_and_measure_their_range(load, folder):
    Image.fromarray(FLOAT).save(folder / "a.tiff")
    np.save(folder / "b.npy", FLOAT.astype(np.float64) * 3)
    cache = load(train_data_dir=str(folder), resolution=8)
    assert cache.dtype == np.float32
    np.testing.assert_array_equal(pixels(cache)[..., 0], [FLOAT, FLOAT * 3])
    assert cache.value_range == pytest.approx((FLOAT.min() * 3, FLOAT.max() * 3))


def test_arrays_have_their_smaller_outer_axis_as_channels(load, folder):
    values = RNG.integers(0, 256, (8, 8, 5), dtype=np.uint8)
    np.save(folder / "a.npy", values)
    np.save(folder / "b.npy", values.transpose(2, 0, 1))
    cache = load(train_data_dir=str(folder), resolution=8)
    assert (cache.channels, cache.dtype) == (5, np.uint8)
    assert (pixels(cache) == values).all()


def test_boolean_arrays_are_black_and_white(load, folder):
    np.save(folder / "a.npy", GRAY > 127)
    assert (pixels(load(train_data_dir=str(folder), resolution=8))[0, ..., 0] == np.where(GRAY > 127, 255, 0)).all()


def test_array_channels_are_resized_apart(load, folder):
    values = np.zeros((16, 16, 2), np.uint16)
    values[..., 1] = RNG.integers(0, 65536, (16, 16))
    np.save(folder / "a.npy", values)
    shown = pixels(load(train_data_dir=str(folder), resolution=8))[0]
    reference = Image.fromarray(values[..., 1].astype(np.float32)).resize((8, 8), Image.Resampling.BILINEAR)
    assert (shown[..., 0] == 0).all()
    assert (shown[..., 1] == np.rint(np.asarray(reference))).all()


def test_resampling_of_arrays_stays_inside_their_values(load, folder):
    step = np.zeros((16, 16), np.uint16)
    step[:, 8:] = 65535
    np.save(folder / "a.npy", step)
    shown = pixels(load(train_data_dir=str(folder), resolution=24, interpolation="lanczos"))[0, ..., 0]
    assert shown[:, :11].max() < 20000 < 40000 < shown[:, 13:].min(), "the ringing wraps round"


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_interpolation_is_pillows(load, folder, name):
    large = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    large.save(folder / "a.png")
    cache = load(train_data_dir=str(folder), resolution=8, center_crop=True, interpolation=name)
    expected = np.asarray(large.resize((12, 8), Image.Resampling[name.upper()]))[:, 2:10]
    assert (pixels(cache)[0] == expected).all()


def test_images_of_different_modes_become_rgb(load, folder, capsys):
    Image.fromarray(GRAY).save(folder / "a.png")
    Image.fromarray(RGB).save(folder / "b.png")
    Image.fromarray(RGBA).save(folder / "c.png")
    Image.fromarray(GRAY % 2).convert("P").save(folder / "d.png")
    Image.fromarray(GRAY).save(folder / "e.png")
    cache = load(train_data_dir=str(folder), resolution=8, background="black")
    assert cache.channels == 3
    assert (pixels(cache)[0] == GRAY[..., None]).all()
    assert (pixels(cache)[1] == RGB).all()
    assert np.abs(pixels(cache)[2] - RGBA[..., :3] * (RGBA[..., 3:] / 255)).max() <= 1.1
    said = "3 of 5 images become RGB: 2 gray, 1 RGBA laid on black; --channels chooses otherwise\n"
    assert said in capsys.readouterr().out
    assert load(train_data_dir=str(folder), resolution=8, channels=4).channels == 4
    assert "4 of 5 images become RGBA: 2 gray, 2 RGB; --channels" in capsys.readouterr().out


def test_arrays_are_never_mixed_with_other_channels(load, folder):
    Image.fromarray(RGB).save(folder / "b.png")
    np.save(folder / "a.npy", np.zeros((8, 8, 2), np.uint8))
    with pytest.raises(UserError, match=r"1 with 2 \(array\), 1 with 3 \(RGB\); arrays aren't converted"):
        load(train_data_dir=str(folder), resolution=8)


@pytest.mark.parametrize("size", [(2000, 1), (1, 51)])
def test_a_long_image_is_refused_before_its_resize(load, folder, size):
    Image.new("L", size).save(folder / "a.png")
    with pytest.raises(UserError, match=r"a\.png: can't be decoded \(\d+ x \d+ pixels, one side more than 50 times"):
        load(train_data_dir=str(folder), resolution=8)
    Image.new("L", (50, 1)).save(folder / "b.png")
    assert len(load(train_data_dir=str(folder), resolution=8, skip_bad_images=True)) == 1


@pytest.mark.parametrize("name", ["a.png", "a.npy"])
def test_a_bomb_is_refused_before_it_is_decoded(load, folder, monkeypatch, name):
    monkeypatch.setattr(images_module, "MOST_PIXELS", 63)
    Image.fromarray(GRAY).save(folder / name) if name == "a.png" else np.save(folder / name, GRAY)
    with pytest.raises(UserError, match=r"8 x 8 pixels, more than 63; make it smaller"):
        load(train_data_dir=str(folder), resolution=8)


def test_postscript_is_not_run(load, folder):
    Image.fromarray(GRAY).save(folder / "a.eps")
    with pytest.raises(UserError, match=r"a\.eps: can't be decoded \(cannot identify"):
        load(train_data_dir=str(folder), resolution=8)


def test_a_size_that_the_memory_cannot_hold(load):
    with pytest.raises(
        UserError, match=r"--resolution 10000000: to resize one image takes 800 TB of memory, and .* free"
    ):
        load(dataset_name="digits", resolution=10**7)


@pytest.mark.parametrize(
    ("array", "channels", "message"),
    [
        (GRAY, 2, "an array here has 1"),
        (RGBA, 3, "an array here has 4"),
        (np.zeros((4, 4, 4, 4)), None, "a.npy: can't be decoded"),
        (np.array(["a"]), None, "a.npy: can't be decoded"),
        (np.array([[np.nan, 1.0]]), None, "a.npy: can't be decoded .it holds NaN"),
        (np.array([[np.inf, 1.0]]), None, "a.npy: can't be decoded .it holds NaN"),
        (np.array([[1e300, 1.0]]), None, "a.npy: can't be decoded .it holds NaN"),
        (np.ones((4, 4)), None, "all values of the float images are 1.0"),
    ],
)
def test_arrays_that_cannot_be_used(load, folder, array, channels, message):
    np.save(folder / "a.npy", array)
    with pytest.raises(UserError, match=message):
        load(train_data_dir=str(folder), resolution=1, channels=channels)


def test_images_have_no_second_channel(load, folder):
    Image.fromarray(RGB).save(folder / "a.png")
    with pytest.raises(UserError, match="--channels 2: PIL images can be given 1, 3 or 4"):
        load(train_data_dir=str(folder), resolution=8, channels=2)


def test_floats_do_not_mix_with_integers(load, folder):
    Image.fromarray(GRAY).save(folder / "a.png")
    np.save(folder / "b.npy", FLOAT)
    with pytest.raises(UserError, match="1 uint8, 1 float32; float images can't be mixed"):
        load(train_data_dir=str(folder), resolution=8)


def test_integers_beyond_16_bits(load, folder):
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(folder / "a.tiff")
    with pytest.raises(UserError, match=r"outside 0\.\.65535"):
        load(train_data_dir=str(folder), resolution=8)


@pytest.mark.parametrize("colour", ["octarine", "#12"])
def test_background_that_is_no_colour(load, folder, colour):
    with pytest.raises(UserError, match=f"--background '{colour}' is not a colour"):
        load(train_data_dir=str(folder), background=colour)


@pytest.mark.parametrize("colour", ["rgb(300,0,0)", "hsl(0,900%,900%)"])
def test_background_that_is_out_of_range(load, folder, colour):
    with pytest.raises(UserError, match=r"is not a colour"):
        load(train_data_dir=str(folder), background=colour)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1', (((("),  # tokenize.TokenError
        ("b.png", b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miaf"),  # RuntimeError
        ("a.dds", b"DDS \x7c\x00\x00\x00" + bytes(72) + b"\x20\x00\x00\x00\xff\x20" + bytes(60)),  # NotImplementedError
    ],
)
def test_whatever_decoders_raise_is_a_bad_image(load, folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: can't be decoded"):
        load(train_data_dir=str(folder), resolution=8)
