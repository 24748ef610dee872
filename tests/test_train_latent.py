"""Training in the latent space of an autoencoder, from the command line to a loaded pipeline."""

import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL

import generate
from pipelines import LatentDiffusionPipeline, image_generators
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from snowmelt.objectives import RECIPES
from snowmelt.tracking import read_metrics
from tests.autoencoders import KINDS, tiny_vae
from tests.conftest import trained
from tests.pipelines.models import quiet
from tests.pipelines.test_latent import pipeline_of
from tests.publishing.test_self_contained import stranger
from tests.test_resume import interrupted


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, for gray images, by its name."""
    folder = tmp_path_factory.mktemp("autoencoders")
    for kind in KINDS:
        tiny_vae(kind, channels=1).save_pretrained(folder / kind)
    return folder


@pytest.fixture
def no_encoding_or_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a training step, that is: there it is an error."""
    from snowmelt.trainer import Trainer

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the autoencoder ran in a training step")

    step = Trainer.train_step

    def train_step(self: Trainer, *args: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AutoencoderKL, "encode", refuse)
            patch.setattr(AutoencoderKL, "decode", refuse)
            step(self, *args)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_trained_resumed_and_loaded_by_a_stranger(train, autoencoders, tmp_path, capfd, no_encoding_or_decoding):
    options = {
        "autoencoder": autoencoders / "sd",
        "resolution": 16,
        "random_flip": True,
        "label_dropout": 0.3,
        "max_train_steps": 4,
        "checkpointing_steps": 1,
        "eval_batch_size": 4,
    }
    run = train(tmp_path / "run", **options)
    assert "1797 latents of 4 x 4 x 4, mean" in capfd.readouterr().out
    resumed = interrupted(run, 2, tmp_path / "resumed")
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=2) == trained(run, since=2)
    losses = [[line["loss"] for line in read_metrics(folder)] for folder in (run, resumed)]
    assert losses[0] == losses[1]

    pipeline = quiet(load_pipeline(str(run)))
    assert type(pipeline) is LatentDiffusionPipeline
    assert pipeline.unet.config.sample_size == 4
    assert pipeline.num_classes == 10
    weights = tiny_vae("sd", channels=1).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in pipeline.vae.state_dict().items())
    call = {"class_labels": 1, "num_inference_steps": 2, "guidance_scale": 2, "output_type": "np"}
    images = pipeline(generator=torch.Generator().manual_seed(3), **call).images
    assert images.shape == (1, 16, 16, 1)

    pipeline.save_pretrained(tmp_path / "published")
    pipeline.complete(tmp_path / "published")
    code = """
pipeline = load(sys.argv[1], trust_remote_code=True)
np.save(sys.argv[2], pipeline(class_labels=1, num_inference_steps=2, guidance_scale=2, output_type="np",
                              generator=torch.Generator().manual_seed(3)).images)
"""
    done = stranger(code, tmp_path / "published", tmp_path / "images.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), images, atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "sd"])
def test_every_autoencoder(train, autoencoders, tmp_path, kind):
    options = {"autoencoder": autoencoders / kind, "resolution": 16, "max_train_steps": 1}
    pipeline = load_pipeline(str(train(tmp_path / "run", **options)))
    assert type(pipeline.vae) is type(tiny_vae(kind))
    (image,) = quiet(pipeline)(num_inference_steps=1, class_labels=0).images
    assert image.size == (16, 16)


@pytest.mark.parametrize("objective", RECIPES)
def test_every_objective(train, autoencoders, tmp_path, objective):
    """Latents have unit variance and no bounds, which the schedulers that are saved must know."""
    options = {"autoencoder": autoencoders / "tiny", "resolution": 16, "max_train_steps": 1, "objective": objective}
    pipeline = quiet(load_pipeline(str(train(tmp_path / "run", **options))))
    config = pipeline.scheduler.config
    assert not config.get("clip_sample")
    assert config.get("sigma_data", 1.0) == 1.0
    generators = image_generators(0, range(2))
    latents = pipeline(2, num_inference_steps=2, class_labels=0, output_type="latent", generator=generators).images
    assert latents.isfinite().all()


def test_another_autoencoder_cannot_take_over_a_run(train, autoencoders, tmp_path):
    """Neither by its name nor, where that is the same, by its weights."""
    options = {"resolution": 16, "checkpointing_steps": 1}
    own = shutil.copytree(autoencoders / "sd", tmp_path / "vae")
    run = train(tmp_path / "run", autoencoder=own, **options)
    again = {**options, "resume_from_checkpoint": "latest", "max_train_steps": 3}
    with pytest.raises(UserError, match="was made with --autoencoder "):
        train(run, autoencoder=autoencoders / "tiny", **again)
    with pytest.raises(UserError, match=r"was made with --autoencoder .* \(now None\)"):
        train(run, **again)
    shutil.rmtree(own)
    shutil.copytree(autoencoders / "tiny", own)
    with pytest.raises(UserError, match="was made with content="):
        train(run, autoencoder=own, **again)
    shutil.rmtree(own)
    shutil.copytree(autoencoders / "sd", own)
    train(run, autoencoder=own, **again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": "not/a/folder"}, "--autoencoder not/a/folder: no such folder; give one, or a name of the Hub"),
        ({"channels": 3}, "--autoencoder: takes 1 channels, the images have 3; .* --channels 1"),
        ({"resolution": 18}, "--resolution 18: not a multiple of 4, by which --autoencoder divides it"),
        ({"resolution": 20}, "--resolution 20: this network divides the latents' side, 5, by 2; take 16 or 24"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(train, autoencoders, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", **{"autoencoder": autoencoders / "sd", "resolution": 16, **change})
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_in_the_folder_that_is_overwritten(train, autoencoders, tmp_path):
    shutil.copytree(autoencoders / "sd", tmp_path / "run/vae")
    with pytest.raises(UserError, match="--overwrite_output_dir: --autoencoder .*vae is inside --output_dir"):
        train(tmp_path / "run", autoencoder=tmp_path / "run/vae", overwrite_output_dir=True)
    assert (tmp_path / "run/vae/config.json").exists()


def test_processes_share_the_latents(launch, autoencoders, tmp_path):
    options = {"autoencoder": autoencoders / "sd3", "resolution": 16, "cache_dir": tmp_path / "cache"}
    statuses, printed = launch(tmp_path / "run", 2, **options)
    assert statuses == [0, 0], printed
    assert printed.count("1797 latents of 16 x 8 x 8") == 1
    assert load_pipeline(str(tmp_path / "run")).unet.config.in_channels == 16


def test_generate_makes_images_of_a_latent_model(tmp_path, monkeypatch):
    """Gray ones, though latents have four channels."""
    pipeline_of(channels=1).save_pretrained(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--output_dir", tmp_path / "out", "--num_images", 2, "--trajectory"]
    words += ["--num_inference_steps", 2, "--bit_depth", 16]
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, words)])
    generate.main()
    image = np.asarray(PIL.Image.open(tmp_path / "out/000001.png"))
    assert image.dtype == np.uint16
    expected = pipeline_of(channels=1)(2, num_inference_steps=2, generator=image_generators(0, range(2)))
    assert abs(image / 257 - np.asarray(expected.images[1])).max() <= 0.51
    assert PIL.Image.open(tmp_path / "out/strip.png").size == (2 * 64, 4 * 64)
