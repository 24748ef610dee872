"""Augmentation on which the network is conditioned (Karras et al. 2022, appendix F.2), and dropout."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from pipelines import PixelDiffusionPipeline
from pipelines.denoiser import CONCATENATED, Predictor
from pipelines.prediction import NoiseLevel, PredictionType
from snowmelt.augmentation import AUGMENT_CHANNELS, SCALE, Augmentation, conditions, draw, transform
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from snowmelt.tracking import read_metrics
from tests.pipelines.models import quiet, tiny_unet

FLIP_X, FLIP_Y, SCALING, ROTATION, ANGLE, STRETCH, SHIFT_X, SHIFT_Y = range(8)


def moved(images: Tensor, **parameters: float) -> Tensor:
    """Images, moved by the parameters of these names."""
    a = torch.zeros(len(images), 8)
    for name, value in parameters.items():
        a[:, globals()[name]] = value
    return transform(images, a)


def blob(x: float, y: float, width: float = 3.0, height: float = 3.0, side: int = 32) -> Tensor:
    """A smooth spot at (x, y) in pixels from the middle."""
    at = torch.arange(float(side)) - (side - 1) / 2
    return torch.exp(-(((at - x) / width) ** 2)[None, :] - (((at - y) / height) ** 2)[:, None])[None, None]


def test_each_parameter_moves_as_it_says() -> None:
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(moved(image, FLIP_X=1), image.flip(-1), **close)
    torch.testing.assert_close(moved(image, FLIP_Y=1), image.flip(-2), **close)
    torch.testing.assert_close(moved(image, ROTATION=math.pi / 2), image.rot90(-1, (-2, -1)), **close)
    # Half a side further, of 16 pixels by 1 / 8: two pixels; what comes in is mirrored at the edge.
    shifted = moved(image, SHIFT_X=1)
    torch.testing.assert_close(shifted[..., 2:], image[..., :-2], **close)
    torch.testing.assert_close(shifted[..., :2], image[..., :2].flip(-1), **close)
    torch.testing.assert_close(moved(image, SHIFT_Y=-1)[..., :-2, :], image[..., 2:, :], **close)


def test_scales_and_stretches_are_about_the_middle() -> None:
    s = SCALE
    for parameters, expected in (
        ({"SCALING": 1}, blob(4 * s, -2 * s, 3 * s, 3 * s)),
        ({"STRETCH": 1}, blob(4 * s, -2 / s, 3 * s, 3 / s)),
        ({"STRETCH": 1, "ANGLE": math.pi / 2}, blob(4 / s, -2 * s, 3 / s, 3 * s)),
        ({"SCALING": 1, "SHIFT_X": 1}, blob(4 * s + 4, -2 * s, 3 * s, 3 * s)),  # the shift comes last: it isn't scaled
    ):
        torch.testing.assert_close(moved(blob(4, -2), **parameters), expected, atol=0.02, rtol=0)


def test_images_that_are_not_square_keep_their_proportions() -> None:
    """A quarter turn takes what is right of the middle below it, as many pixels away."""
    padded = torch.nn.functional.pad(blob(5, -2), (8, 8))  # (32, 48)
    turned = torch.nn.functional.pad(blob(2, 5), (8, 8))
    middle = (..., slice(8, -8))  # beyond which images are mirrored
    torch.testing.assert_close(moved(padded, ROTATION=math.pi / 2)[middle], turned[middle], atol=1e-3, rtol=0)
    larger = torch.nn.functional.pad(blob(5 * SCALE, -2 * SCALE, 3 * SCALE, 3 * SCALE), (8, 8))
    torch.testing.assert_close(moved(padded, SCALING=1)[middle], larger[middle], atol=0.02, rtol=0)
    torch.testing.assert_close(moved(padded, SHIFT_X=1), padded.roll(6, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(moved(padded, SHIFT_Y=1), padded.roll(4, 2), atol=1e-3, rtol=0)


def test_an_image_that_is_spared_stays_as_it_is() -> None:
    image = torch.randn(4, 1, 8, 8)
    a = torch.zeros(4, 8)
    a[1, SCALING] = 1.0
    same = [torch.equal(x, y) for x, y in zip(transform(image, a), image, strict=True)]
    assert same == [True, False, True, True]
    assert not conditions(a)[[0, 2, 3]].any()


def test_the_networks_condition() -> None:
    """Nine numbers, and the same for angles that are the same (table 6)."""
    a = torch.tensor([[1.0, 0.0, 0.7, 2.0, 0.5, -1.1, 0.3, -0.4]])
    cos, sin = math.cos, math.sin
    expected = [1, 0, 0.7, cos(2) - 1, sin(2), -1.1 * cos(0.5), -1.1 * sin(0.5), 0.3, -0.4]
    torch.testing.assert_close(conditions(a), torch.tensor([expected]))
    assert conditions(a).shape == (1, AUGMENT_CHANNELS)


def test_frequencies() -> None:
    """Of 20,000 images; half have a horizontal flip, and p / 2 a vertical one."""
    a = draw(20_000, 0.12, torch.Generator().manual_seed(0))
    shares = (a != 0).float().mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.06, *[0.12] * 6]), atol=0.012, rtol=0)
    assert torch.equal(a[:, ANGLE] != 0, a[:, STRETCH] != 0)
    assert torch.equal(a[:, SHIFT_X] != 0, a[:, SHIFT_Y] != 0)
    together = ((a[:, SCALING] != 0) & (a[:, ROTATION] != 0)).float().mean().item()
    assert together == pytest.approx(0.12**2, abs=0.004)
    for column in (SCALING, STRETCH, SHIFT_X, SHIFT_Y):
        chosen = a[a[:, column] != 0, column]
        assert (chosen.mean().item(), chosen.std().item()) == pytest.approx((0, 1), abs=0.06)
    angles = a[a[:, ROTATION] != 0, ROTATION]
    assert -math.pi < angles.min() < -3 < 3 < angles.max() < math.pi


def test_none_at_all() -> None:
    """For images that a network is judged by."""
    images, generator = torch.randn(3, 1, 8, 8), torch.Generator()
    same, planes = Augmentation(0.0)(images, generator)
    assert torch.equal(same, images)
    assert planes.shape == (3, 9, 8, 8)
    assert not planes.any()


def test_planes_are_zero_unless_given() -> None:
    """And aren't scaled with the noisy data."""
    unet = tiny_unet(10)
    level = NoiseLevel(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.5))
    predict = Predictor(unet, PredictionType("edm"), zero_channels=9)
    x_t = torch.randn(2, 1, 16, 16)
    zeros = {CONCATENATED: torch.zeros(2, 9, 16, 16)}
    with torch.no_grad():
        expected = unet(torch.cat([x_t / 2, zeros[CONCATENATED]], 1), torch.tensor([3.0, 3.0])).sample[:, :1]
        assert torch.equal(predict(x_t, level, {}).output, expected)
        assert torch.equal(predict(x_t, level, zeros).output, expected)
        given = predict(x_t, level, {CONCATENATED: torch.ones(2, 9, 16, 16)}).output
    assert not torch.allclose(given, expected, atol=1e-2)


DIT = {"backbone": "dit", "model_size": "tiny", "model_config_name_or_path": None, "dropout": 0.1}


@pytest.mark.parametrize("options", [{"objective": "edm"}, {"objective": "ve"}, {"objective": "improved_ddpm"}, DIT])
def test_training(options: dict[str, Any], train: Callable[..., Path], tmp_path: Path) -> None:
    """The model samples and is judged without augmentation, and is loaded by diffusers alone."""
    more = {"augment_p": 0.12, "validation_share": 0.1, "eval_steps": 2}
    run = train(tmp_path / "run", **options, **more, max_train_steps=2)
    pipeline = load_pipeline(str(run))
    assert (pipeline.data_channels, pipeline.channels, pipeline.network.config.in_channels) == (1, 1, 10)
    given = {"num_inference_steps": 2, "output_type": "pt", "class_labels": 3}
    images = quiet(pipeline)(generator=torch.Generator().manual_seed(0), **given).images
    assert images.shape == (1, 1, 8, 8)
    index = json.loads((run / "model_index.json").read_text())
    assert index["augment_channels"] == 9
    alone = DiffusionPipeline.from_pretrained(run, custom_pipeline=str(run), trust_remote_code=True)
    again = quiet(alone)(generator=torch.Generator().manual_seed(0), **given).images
    assert torch.allclose(again, images, atol=1e-5)
    assert any("eval_loss" in line for line in read_metrics(run))


def test_held_out_images_are_not_augmented(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    original = Augmentation.__call__

    def record(self: Augmentation, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        used.append(self.p)
        return original(self, images, generator)

    monkeypatch.setattr(Augmentation, "__call__", record)
    more = {"validation_share": 0.1, "eval_steps": 2, "train_batch_size": 512, "max_train_steps": 2}
    train(tmp_path / "run", augment_p=0.5, objective="edm", **more)
    assert used == [0.5, 0.5, 0.0, 0.0]  # two steps, and 1,024 losses


def test_dropout_is_the_networks_and_ends_with_training(train: Callable[..., Path], tmp_path: Path) -> None:
    """The saved configuration has it; what is sampled doesn't drop."""
    run = train(tmp_path / "run", dropout=0.5, learning_rate=0.0, checkpointing_steps=2, lr_warmup_steps=0)
    assert json.loads((run / "unet/config.json").read_text())["dropout"] == 0.5
    plain = train(tmp_path / "plain", learning_rate=0.0, lr_warmup_steps=0)
    dropped, kept = ([line["loss"] for line in read_metrics(folder) if "loss" in line] for folder in (run, plain))
    assert all(abs(a - b) > 1e-6 for a, b in zip(dropped, kept, strict=True))
    pipelines = [load_pipeline(str(folder)) for folder in (run, plain)]
    images = [
        quiet(p)(generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="pt").images
        for p in pipelines
    ]
    assert torch.equal(*images)


def test_pixels_alone_are_augmented(train: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--augment_p: moves pixels, which --autoencoder's latents aren't"):
        train(tmp_path / "run", augment_p=0.1, autoencoder="some/vae")


def test_channels_that_a_network_lacks() -> None:
    for given, line in ((1, "augment_channels: must be from 0 to 0, got 1"), (-1, "augment_channels: must be from 0")):
        with pytest.raises(ValueError, match=line):
            PixelDiffusionPipeline(tiny_unet(1), EDMEulerScheduler(), augment_channels=given)
    with pytest.raises(TypeError, match="augment_channels: must be a whole number"):
        PixelDiffusionPipeline(tiny_unet(1), EDMEulerScheduler(), augment_channels="9")
