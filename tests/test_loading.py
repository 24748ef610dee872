"""Which weights the options of a script choose."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import PixelDiffusionPipeline
from snowmelt.errors import UserError
from snowmelt.evaluation.options import checkpoints
from snowmelt.loading import PipelineOptions, choose_pipeline, load_pipeline
from snowmelt.model_source import find_source
from tests.autoencoders import tiny_vae
from tests.pipelines.models import seal, tiny_pipeline, tiny_unet
from tests.pipelines.test_text2img import make as make_text2img

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
            seal((folder / name).parent)
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
        ({"checkpoint": "11"}, "--ema: .*checkpoint-11 has several EMAs; choose one: unet_ema_0.050, unet_ema_0.1"),
        ({"checkpoint": "9", "ema": 0.1}, "--ema: .*checkpoint-9 has none of sigma_rel 0.100; it has none"),
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
    """As a pixel model they would sample latents and call them images."""
    from diffusers import DDIMScheduler, LDMPipeline

    LDMPipeline(tiny_vae("vq"), tiny_unet(), DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a LDMPipeline of scheduler, unet, vqvae; load it with diffusers itself"):
        load_pipeline(str(tmp_path))


def biased(folder: Path, number: float) -> None:
    """Make a network's folder one whose parameters are all of that value."""
    for path in folder.glob("*.safetensors"):
        save_file({k: torch.full_like(v, number) for k, v in load_file(path).items()}, path, {"format": "pt"})


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image run: in checkpoint 5 both networks and their EMA, in 6 a network alone, in 7 LoRA matrices."""
    folder = tmp_path_factory.mktemp("text") / "run"
    make_text2img(latent=False).save_pretrained(folder)
    for number, name in enumerate(("unet", "unet_ema", "text_encoder", "text_encoder_ema")):
        biased(Path(shutil.copytree(folder / name.removesuffix("_ema"), folder / "checkpoint-5" / name)), number)
    shutil.copytree(folder / "checkpoint-5/unet", folder / "checkpoint-6/unet")
    for name in ("unet", "text_encoder"):
        (folder / "checkpoint-7" / name).mkdir(parents=True)
        save_file({"lora": torch.zeros(1)}, folder / "checkpoint-7" / name / "trained.safetensors")
    for step in (5, 6, 7):
        seal(folder / f"checkpoint-{step}")
    return folder


def test_a_checkpoint_of_a_text_model_brings_its_text_encoder(text_run: Path) -> None:
    whole, part = (choose_pipeline(PipelineOptions(model=str(text_run), checkpoint=step)) for step in ("5", "6"))
    own = load_pipeline(str(text_run))
    assert {p.unique().item() for p in whole.unet.parameters()} == {1}
    assert {p.unique().item() for p in whole.text_encoder.parameters()} == {3}
    assert {p.unique().item() for p in part.unet.parameters()} == {0}
    for a, b in zip(part.text_encoder.parameters(), own.text_encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_lora_is_given_from_one_of_a_network(text_run: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint-7: text_encoder holds what was trained beside .*\(LoRA\)"):
        choose_pipeline(PipelineOptions(model=str(text_run), checkpoint="7"))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda f: biased(f / "unet_ema", 9),
            "is damaged: unet_ema/diffusion_pytorch_model.safetensors .* has changed",
        ),
        (lambda f: (f / "unet_ema/config.json").unlink(), "is damaged: unet_ema/config.json is missing or has changed"),
        (lambda f: (f / "text_encoder_ema/config.json").write_text("{}"), "is damaged: text_encoder_ema/config.json"),
        (lambda f: (f / "trainer_state.json").write_text("{}"), "is damaged: trainer_state.json"),
    ],
)
def test_a_damaged_checkpoint(text_run: Path, tmp_path: Path, damage: Callable[[Path], None], line: str) -> None:
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    damage(run / "checkpoint-5")
    with pytest.raises(UserError, match=line):
        choose_pipeline(PipelineOptions(model=str(run), checkpoint="5"))


def test_weights_that_are_missing(text_run: Path, tmp_path: Path) -> None:
    """diffusers leaves them without values, and transformers draws some; either says so in a warning."""
    for name in ("unet", "text_encoder"):
        run = Path(shutil.copytree(text_run, tmp_path / name))
        path = next((run / name).glob("*.safetensors"))
        state = load_file(path)
        lost = sorted(state)[3]
        save_file({k: v for k, v in state.items() if k != lost}, path, {"format": "pt"})
        with pytest.raises(UserError, match=f"{name}: lacks 1 of its weights, such as {lost}"):
            load_pipeline(str(run))


def test_pickles_are_refused(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        UserError, match=r"diffusion_pytorch_model.bin alone; a .bin is a pickle, .* convert it as docs/"
    ):
        load_pipeline(str(tmp_path))


def test_a_digest_is_of_the_weights_that_are_taken(run: Path) -> None:
    sources = [find_source(str(run), checkpoint=step) for step in (None, "9", "10")]
    assert [source.checkpoint for source in sources] == [None, "checkpoint-9", "checkpoint-10"]
    assert len({source.digest() for source in sources}) == 3
    (copy := run.parent / "copy").exists() or shutil.copytree(run, copy)
    assert find_source(str(copy), checkpoint="9").digest() == sources[1].digest()


def test_a_save_that_was_killed_is_completed_before_the_model_is_read(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "run")
    newer = tiny_pipeline()
    newer.unet.conv_out.bias.data.fill_(7)
    newer.save_pretrained(tmp_path / "run/.pending-model")
    (tmp_path / "run/model_index.json").unlink()
    assert load_pipeline(str(tmp_path / "run")).unet.conv_out.bias.tolist() == [7]
    assert not (tmp_path / "run/.pending-model").exists()
