import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch.testing import assert_close

from pipelines import LatentDiffusionPipeline
from snowmelt.data import latent_cache as latents_module
from snowmelt.data import loader, passes, store
from snowmelt.data.latent_cache import LatentCache, build_latents
from snowmelt.data.loader import batches
from snowmelt.errors import UserError
from snowmelt.spaces import LatentSpace, PixelSpace, load_autoencoder
from tests.autoencoders import KINDS, STOCHASTIC, tiny_vae
from tests.pipelines.models import tiny_unet

SIDE, COUNT = 16, 10


@pytest.fixture
def images(load, folder):
    """Ten coloured images that differ from their mirror images."""
    rng = np.random.default_rng(0)
    for n in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    return load(train_data_dir=str(folder), resolution=SIDE)


@pytest.fixture
def few(monkeypatch):
    """Four images in a pass, so that ten take three."""
    monkeypatch.setattr(latents_module, "PIXELS_PER_PASS", 4 * SIDE**2)


class Encoder:
    """Pixels as they are, and how many were asked for; it fails, as a kill would, after `passes` calls."""

    def __init__(self, passes: int | None = None) -> None:
        self.seen: list[int] = []
        self.passes = passes

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        if len(self.seen) == self.passes:
            raise KeyboardInterrupt
        self.seen.append(len(batch))
        return batch.float()


def build(images, encode: Callable = torch.Tensor.float, **changes) -> LatentCache:
    options = {"autoencoder": "a", "random_flip": True, "dtype": np.float32}
    return build_latents(images, encode, **{**options, **changes})


def codec(kind: str) -> LatentSpace:
    return LatentSpace(tiny_vae(kind), PixelSpace())


FLOAT32 = {"random_flip": False, "mixed_precision": "no"}


def mirror_image(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_holds_what_the_encoder_says_of_images_and_of_mirror_images(images, kind):
    cache = codec(kind).encode(images, random_flip=True, mixed_precision="no")
    values = cache.as_tensor()
    x = images.as_tensor() / 127.5 - 1
    vae = tiny_vae(kind)
    with torch.no_grad():
        for variant, photos in enumerate((x, mirror_image(x))):
            encoded = vae.encode(photos, return_dict=False)[0]
            if kind in STOCHASTIC:
                encoded = torch.cat([encoded.mean, encoded.std], 1)
            assert_close(values[:, variant], encoded, atol=1e-4, rtol=1e-4)
    assert (values[:, 0] - mirror_image(values[:, 1])).abs().max() > 0.01, "mirrored latents aren't of mirror images"


@pytest.mark.parametrize("kind", KINDS)
def test_x0_is_a_fresh_draw_as_diffusers_scales_it(images, kind):
    coding = codec(kind)
    raw = coding.to_cache(images.as_tensor())
    x0 = coding.from_cache(raw, torch.Generator().manual_seed(1))
    vae = coding.vae
    encoded = vae.encode(images.as_tensor() / 127.5 - 1, return_dict=False)[0]
    z = encoded.sample(torch.Generator().manual_seed(1)) if kind in STOCHASTIC else encoded
    mean, std = (torch.tensor(v).view(4, 1, 1) for v in ([-1.6, 2.4, 1.7, 0.1], [8.4, 5.9, 4.5, 5.3]))
    scaled = {
        "sd": lambda: z * 0.18215,
        "sd3": lambda: (z - 0.0609) * 1.5305,
        "sdxl-like": lambda: (z - mean) / std * 0.5,
        "vq": lambda: z * 0.18215,
        "tiny": lambda: z,
        "dc": lambda: z * 0.4,
    }
    expected = scaled[kind]()
    assert x0.dtype == torch.float32
    assert_close(x0, expected, atol=1e-4, rtol=1e-4)
    assert x0.shape[1:] == (coding.latent_channels, SIDE // coding.vae_scale_factor, SIDE // coding.vae_scale_factor)
    again = coding.from_cache(raw, torch.Generator().manual_seed(2))
    assert torch.equal(x0, again) == (kind not in STOCHASTIC)
    pipeline = LatentDiffusionPipeline(vae, tiny_unet(coding.latent_channels), DDPMScheduler())
    assert_close(pipeline.decode(x0), vae.decode(z, return_dict=False)[0], atol=1e-4, rtol=1e-4)


def test_draws_have_the_posteriors_mean_and_deviation():
    coding = codec("sd")
    raw = torch.cat([torch.full((4000, 4, 1, 1), 3.0), torch.full((4000, 4, 1, 1), 0.5)], 1).half()
    z = coding.from_cache(raw, torch.Generator().manual_seed(0)) / 0.18215
    assert z.mean() == pytest.approx(3, abs=0.02)
    assert z.std() == pytest.approx(0.5, abs=0.02)


def test_half_precision_unless_the_network_is_in_float32(images):
    coding = codec("sd")
    full = coding.encode(images, **FLOAT32).as_tensor()
    half = coding.encode(images, random_flip=False, mixed_precision="bf16").as_tensor()
    assert (full.dtype, half.dtype) == (torch.float32, torch.float16)
    assert full.shape == (COUNT, 8, 4, 4)
    assert_close(half.float(), full, rtol=1e-3, atol=1e-6)


def test_killed_and_resumed_is_as_if_it_had_not_been(images, few):
    whole = build(images, autoencoder="b")
    with pytest.raises(KeyboardInterrupt):
        build(images, Encoder(passes=2 + 2 * 2))  # the shape, then two passes of images and mirror images
    (partial,) = images.path.parent.glob("*.partial")
    with (partial / latents_module.VALUES).open("ab") as file:
        file.write(b"half a pass")
    encoder = Encoder()
    resumed = build(images, encoder)
    assert encoder.seen == [1, 1, 2, 2], "only the last pass was missing"
    assert torch.equal(resumed.as_tensor(), whole.as_tensor())
    assert not list(images.path.parent.glob("*.partial"))
    encoder.seen.clear()
    build(images, encoder)
    assert not encoder.seen, "a complete cache is opened"


def test_one_builds_and_the_other_waits(images, few):
    started, together = threading.Event(), []

    def slow(batch: torch.Tensor) -> torch.Tensor:
        together.append(threading.get_ident())
        started.wait(0.2)
        return batch.float()

    threads = [threading.Thread(target=build, args=(images, slow)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 2 + 2 * 3
    assert len(set(together)) == 1


def test_whatever_changes_latents_makes_another_cache(images, load, folder):
    kept = {build(images).fingerprint}
    for change in ({"autoencoder": "b"}, {"random_flip": False}, {"dtype": np.float16}):
        kept.add(build(images, **change).fingerprint)
    Image.new("RGB", (SIDE, SIDE)).save(folder / "another.png")
    kept.add(build(load(train_data_dir=str(folder), resolution=SIDE)).fingerprint)
    assert len(kept) == 5


def test_an_autoencoders_key_is_of_its_weights_and_configuration(tmp_path):
    first = codec("sd").fingerprint
    tiny_vae("sd").save_pretrained(tmp_path)
    assert LatentSpace(load_autoencoder(str(tmp_path)), PixelSpace()).fingerprint == first
    vae = tiny_vae("sd")
    vae.decoder.conv_out.bias.data[0] += 1e-6
    scaled = tiny_vae("sd")
    scaled.register_to_config(scaling_factor=0.2)
    assert len({first, *(LatentSpace(v, PixelSpace()).fingerprint for v in (vae, scaled))}) == 3


@pytest.mark.parametrize("what", ["of another autoencoder", "cut short"])
def test_a_cache_that_does_not_match_is_built_again(images, what, capsys):
    ours, other = build(images), build(images, autoencoder="b")
    expected = ours.as_tensor().clone()
    if what == "cut short":
        with (ours.path / latents_module.VALUES).open("ab") as file:
            file.truncate(100)
    else:
        shutil.rmtree(ours.path)
        other.path.rename(ours.path)
    encoder = Encoder()
    assert torch.equal(build(images, encoder).as_tensor(), expected)
    assert encoder.seen
    assert f"{ours.path}: " in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["values", "checksums", "no checksums", "a file", "a link"])
def test_what_a_killed_encoder_left_is_verified(images, few, damage):
    whole = build(images, autoencoder="b")
    with pytest.raises(KeyboardInterrupt):
        build(images, Encoder(passes=2 + 2 * 2))
    (partial,) = images.path.parent.glob("*.partial")
    if damage == "values":
        content = bytearray((partial / latents_module.VALUES).read_bytes())
        content[5000] ^= 1
        (partial / latents_module.VALUES).write_bytes(content)
    elif damage == "checksums":
        (partial / passes.PASSES).write_bytes(b"1234567")
    elif damage == "no checksums":
        (partial / passes.PASSES).unlink()
    else:
        shutil.move(partial, partial.parent / "elsewhere")
        partial.write_text("") if damage == "a file" else partial.symlink_to(partial.parent / "elsewhere")
    encoder = Encoder()
    assert torch.equal(build(images, encoder).as_tensor(), whole.as_tensor())
    assert len(encoder.seen) == 2 + 2 * 3
    assert not os.path.lexists(partial)


def test_images_that_are_not_square_are_refused(load, folder):
    Image.new("RGB", (SIDE, 2 * SIDE)).save(folder / "a.png")
    with pytest.raises(UserError, match="the images aren't all square, and each is encoded once; add --center_crop"):
        build(load(train_data_dir=str(folder), resolution=SIDE))
    assert len(build(load(train_data_dir=str(folder), resolution=SIDE, center_crop=True))) == 1


def test_latents_that_are_not_finite_are_refused(images, few):
    def overflow(batch: torch.Tensor) -> torch.Tensor:
        values = batch.float()
        values[1:2, 0, 0, 0] = 1e5
        return values

    assert build(images, overflow).as_tensor().max() == 1e5
    with pytest.raises(UserError, match=r"latents of row 1 aren't finite in float16; .*--mixed_precision no"):
        build(images, overflow, dtype=np.float16)


def test_a_disk_without_room_and_one_that_fills_up(images, few, monkeypatch):
    class Usage:
        free = COUNT * 2 * 3 * SIDE**2 * 4 - 1

    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "disk_usage", lambda _: Usage)
        with pytest.raises(UserError, match=r"the latents need 61.4 kB and 61.4 kB are free"):
            build(images)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(passes.os, "fsync", lambda _: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="disk full; free some space or give another --cache_dir"):
        build(images)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("sd", {"channels": 1}, "--autoencoder: takes 3 channels, the images have 1; .* --channels 3"),
        ("sd", {"resolution": 18}, "--resolution 18: not a multiple of 4, by which --autoencoder divides it"),
        ("vq", {"resolution": 15}, "--resolution 15: not a multiple of 2"),
    ],
)
def test_images_that_do_not_suit_the_autoencoder(load, folder, kind, change, message):
    Image.new("RGB", (SIDE, SIDE)).save(folder / "a.png")
    with pytest.raises(UserError, match=message):
        codec(kind).channels(load(**{"train_data_dir": str(folder), "resolution": SIDE} | change))


def stream(cache, **changes) -> list[dict[str, torch.Tensor]]:
    options = {"batch_size": 7, "seed": 0, "start_step": 0, "rank": 0, "world_size": 1, "accumulation": 1}
    options |= {"device": torch.device("cpu"), "num_workers": 0, "random_flip": True, "labels": False}
    return list(islice(batches({"image": cache}, **{**options, **changes}), 4))


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_batches_show_the_images_and_mirror_images_that_pixels_would(images, monkeypatch, workers):
    if workers is not None:
        monkeypatch.setattr(loader, "_resident", lambda cache, device: None)
    pixels, latents = stream(images), stream(build(images), num_workers=workers or 0)
    for ours, theirs in zip(latents, pixels, strict=True):
        assert torch.equal(ours["image"], theirs["image"].float())
        assert torch.equal(ours["indices"], theirs["indices"])
    plain = stream(build(images, random_flip=False), random_flip=False)
    assert torch.equal(plain[0]["image"], stream(images, random_flip=False)[0]["image"].float())


def test_pickling_copies_no_latents(images):
    cache = build(images)
    cache.as_tensor()
    data = pickle.dumps(cache)
    assert len(data) < 5_000 < cache.as_tensor().nbytes
    assert torch.equal(pickle.loads(data).as_tensor(), cache.as_tensor())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subfolder", ["", "vae", "vqvae"])
def test_an_autoencoder_is_found_by_its_folder_or_its_pipelines(tmp_path, kind, subfolder):
    tiny_vae(kind).bfloat16().save_pretrained(tmp_path / subfolder)
    vae = load_autoencoder(str(tmp_path))
    assert type(vae) is type(tiny_vae(kind))
    assert vae.dtype == torch.float32


def test_folders_without_an_autoencoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="no AutoencoderKL, .* there, nor in its sub-folder vae or vqvae: a UNet2DMo"):
        load_autoencoder(str(tmp_path))
    tiny_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="can't read its weights"):
        load_autoencoder(str(tmp_path))
