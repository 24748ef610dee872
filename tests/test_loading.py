"""Which weights the options of a script choose."""

from pathlib import Path

import pytest
import torch

from pipelines import PixelDiffusionPipeline
from snowmelt.errors import UserError
from snowmelt.loading import PipelineOptions, checkpoints, choose_pipeline, load_pipeline
from tests.autoencoders import tiny_vae
from tests.pipelines.models import tiny_pipeline, tiny_unet

FOLDERS = ("unet_ema_0.050", "checkpoint-9/unet", "checkpoint-9/unet_ema", "checkpoint-10/unet")
SEVERAL = ("checkpoint-11/unet_ema_0.050", "checkpoint-11/unet_ema_0.100")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, each network of which has its own number as a bias."""
    folder = tmp_path_factory.mktemp("run")
    tiny_pipeline().save_pretrained(folder)
    for number, name in enumerate((*FOLDERS, *SEVERAL)):
        unet = tiny_unet()
        unet.conv_out.bias.data.fill_(number)
        unet.save_pretrained(folder / name)
        if name.startswith("checkpoint"):
            (folder / name).parent.joinpath("trainer_state.json").touch()
    (folder / "checkpoint-12").mkdir()  # incomplete
    return folder


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"ema": 0.05}, 0),
        ({"checkpoint": "9"}, 2),
        ({"checkpoint": "checkpoint-10"}, 3),
        ({"checkpoint": "11", "ema": 0.1}, 5),
    ],
)
def test_weights(run: Path, options: dict, chosen: int) -> None:
    """A checkpoint's average rather than the weights it was made of, and of several the one that is named."""
    pipeline = choose_pipeline(PipelineOptions(model=str(run), **options))
    assert pipeline.unet.conv_out.bias.tolist() == [chosen]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "12"}, "--checkpoint 12: .* has 9, 10, 11"),
        ({"checkpoint": "11"}, "--ema: .*checkpoint-11 has several averages; choose one: unet_ema_0.050, unet_ema_0.1"),
        ({"checkpoint": "9", "ema": 0.1}, "--ema: .*checkpoint-9 has no average of width 0.100; it has none"),
    ],
)
def test_weights_that_are_not_there(run: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_pipeline(PipelineOptions(model=str(run), **options))


def test_checkpoints_in_the_order_of_training(run: Path) -> None:
    assert checkpoints(run) == [9, 10, 11]


def test_published_and_plain_folders(run: Path, tmp_path: Path) -> None:
    """A published folder's own code isn't run: our class reads it, and so it does what diffusers' pipelines saved."""
    from diffusers import DDPMPipeline, DDPMScheduler

    tiny_pipeline().save_pretrained(tmp_path / "published")
    PixelDiffusionPipeline.complete(tmp_path / "published")
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "stock")
    for name in ("published", "stock"):
        pipeline = load_pipeline(str(tmp_path / name))
        assert type(pipeline) is PixelDiffusionPipeline
        assert torch.equal(pipeline.unet.conv_in.weight, tiny_unet().conv_in.weight)


def test_stock_pipelines_of_other_parts_are_refused(tmp_path: Path) -> None:
    """As a pixel model they would sample latents and call them pictures."""
    from diffusers import DDIMScheduler, LDMPipeline

    LDMPipeline(tiny_vae("vq"), tiny_unet(), DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="it is a LDMPipeline of scheduler, unet, vqvae; load it with diffusers itself"):
        load_pipeline(str(tmp_path))
