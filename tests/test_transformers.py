"""Transformers in training: sizes, initial weights, exact resuming, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from pipelines import LatentTransformerPipeline, PixelTransformerPipeline, TextToImageTransformerPipeline
from snowmelt.architectures import make_network
from snowmelt.errors import UserError
from snowmelt.tracking import read_metrics
from snowmelt.transformers import SIZES
from tests.autoencoders import tiny_vae
from tests.conftest import TINY_UNET, run_in_process, trained
from tests.pipelines.models import quiet
from tests.test_resume import interrupted
from tests.test_train_text2img import photos as photos
from tests.text.models import save_pretrained

TINY = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 2, "dropout": 0.1}
DIT = {"resolution": 16, "channels": 3, "seed": 0, "num_class_embeds": None}
PIXART = {"resolution": 16, "channels": 3, "seed": 0, "text_channels": 24}
KINDS = {"DiTTransformer2DModel": DIT, "PixArtTransformer2DModel": PIXART}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A configuration of one of the two classes; options replace those of the usual tiny one."""
    folder = tmp_path_factory.mktemp("transformer")

    def config(kind: str = "DiTTransformer2DModel", **options: object) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.json"
        path.write_text(json.dumps({"_class_name": kind} | TINY | options))
        return path

    return config


@pytest.mark.parametrize("kind", KINDS)
def test_named_sizes(kind: str) -> None:
    """They grow, and tokens are at most 16 x 16 whatever the side."""
    with torch.device("meta"):
        nets = [make_network(kind, size, None, **KINDS[kind]) for size in SIZES]
        counts = [sum(p.numel() for p in net.parameters()) for net in nets]
        assert counts == sorted(set(counts))
        assert 1e6 < counts[0] < 2e6
        for resolution, patch in ((4, 1), (8, 1), (28, 2), (32, 2), (64, 4), (96, 8), (256, 16)):
            net = make_network(kind, "tiny", None, **KINDS[kind] | {"resolution": resolution})
            assert net.config.patch_size == patch
            assert net.config.sample_size == resolution


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [None, 6])
def test_output(kind: str, channels: int | None) -> None:
    """It may have channels of its own, and DiT's begins as 0."""
    net = make_network(kind, "tiny", None, **KINDS[kind], out_channels=channels)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 0.7])
    text = kind == "PixArtTransformer2DModel"
    conditions = {"encoder_hidden_states": torch.randn(2, 5, 24)} if text else {"class_labels": torch.zeros(2).long()}
    output = net(x, timestep=t, **conditions).sample
    assert output.shape == (2, channels or 3, 16, 16)
    assert output.any() == text


def test_dit_blocks_begin_as_the_identity() -> None:
    net = make_network("DiTTransformer2DModel", "tiny", None, **DIT)
    x = torch.randn(2, 64, 128)
    block = net.transformer_blocks[-1]
    assert torch.equal(block(x, timestep=torch.tensor([1.0, 2.0]), class_labels=torch.zeros(2).long()), x)


@pytest.mark.parametrize(("rows", "expected"), [(None, 1), (3, 3)])
def test_labels_are_dropped_elsewhere(rows: int | None, expected: int) -> None:
    """By diffusers' class itself a tenth would be, from torch's global random numbers, in every block anew."""
    net = make_network("DiTTransformer2DModel", "tiny", None, **DIT | {"num_class_embeds": rows}).train()
    before = torch.get_rng_state()
    for block in net.transformer_blocks:
        embedder = block.norm1.emb.class_embedder
        assert embedder.embedding_table.num_embeddings == expected
        labels = torch.zeros(256).long()
        assert torch.equal(embedder(labels), embedder.embedding_table(labels))
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_checkpointing_gives_the_same_gradients(config: Callable[..., Path]) -> None:
    gradients = []
    for checkpointing in (False, True):
        net = make_network("DiTTransformer2DModel", "tiny", str(config()), **DIT).train()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        if checkpointing:
            net.enable_gradient_checkpointing()
        torch.manual_seed(0)
        labels = torch.zeros(2).long()
        net(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), labels).sample.square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(g.any() for g in gradients[0][-2:])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


RESUMED = {
    "backbone": "dit",
    "max_train_steps": 4,
    "checkpointing_steps": 1,
    "gradient_accumulation_steps": 2,
    "label_dropout": 0.3,
    "lr_warmup_steps": 1,
    "learning_rate": 1e-3,
}
VARIANTS = {
    "flow, classes": {"gradient_checkpointing": True},
    "edm, bf16, latents, no classes": {
        "objective": "edm",
        "mixed_precision": "bf16",
        "class_conditional": False,
        "resolution": 16,
        "validation_share": 0.01,
        "eval_steps": 3,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact(variant: str, train: Callable[..., Path], config: Callable[..., Path], tmp_path: Path) -> None:
    options = RESUMED | VARIANTS[variant] | {"model_config_name_or_path": config()}
    latent = "latents" in variant
    if latent:
        tiny_vae("sd", channels=1).save_pretrained(tmp_path / "vae")
        options |= {"autoencoder": tmp_path / "vae"}
    whole = train(tmp_path / "whole", **options)
    resumed = interrupted(whole, 2, tmp_path / "resumed")
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=2) == trained(whole, since=2)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(whole)]
    assert (whole / "checkpoint-4/transformer_ema").is_dir()
    kind = LatentTransformerPipeline if latent else PixelTransformerPipeline
    pipeline = quiet(kind.from_pretrained(whole))
    assert pipeline.num_classes == (0 if latent else 10)
    first = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    images = pipeline(**first).images
    alone = quiet(DiffusionPipeline.from_pretrained(whole, trust_remote_code=True))
    assert np.array_equal(alone(**first | {"generator": torch.Generator().manual_seed(0)}).images, images)
    arguments = ["--model", str(whole), "--checkpoint", "3", "--num_images", "2", "--num_inference_steps", "1"]
    run_in_process([*arguments, "--output_dir", str(tmp_path / "images")], "generate")
    side = options.get("resolution", 8)
    assert Image.open(tmp_path / "images/000001.png").size == (side, side)


@pytest.mark.parametrize("encoder", ["trained", "frozen"])
def test_text_resume_is_exact(
    encoder: str, train: Callable[..., Path], config: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    options = {k: v for k, v in RESUMED.items() if k != "label_dropout"} | {
        "backbone": "pixart",
        "script": "train_text2img",
        "dataset_name": photos,
        "class_conditional": None,
        "model_config_name_or_path": config("PixArtTransformer2DModel"),
        "caption_dropout": 0.3,
        "eval_batch_size": 3,
    }
    sizes = {"text_hidden_size": 64, "text_layers": 1, "vocab_size": 560}
    options |= sizes if encoder == "trained" else {"text_encoder": save_pretrained(tmp_path / "clip")}
    whole = train(tmp_path / "whole", **options)
    resumed = interrupted(whole, 2, tmp_path / "resumed")
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=2) == trained(whole, since=2)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(whole)]
    pipeline = quiet(TextToImageTransformerPipeline.from_pretrained(whole))
    assert pipeline("a red picture", num_inference_steps=1).images[0].size == (8, 8)
    made = dict.fromkeys(("backbone", "model_config_name_or_path", "text_encoder", *sizes))
    with pytest.raises(UserError, match="a TextToImageTransformerPipeline; known are StableDiffusionPipeline"):
        train(tmp_path / "tuned", **options | made | {"pretrained_model_name_or_path": whole})


def test_published(train: Callable[..., Path], config: Callable[..., Path], tmp_path: Path) -> None:
    """Its card calls it with a class, and the default's likelihood works on it."""
    run = train(tmp_path / "run", backbone="dit", model_config_name_or_path=config())
    run_in_process(["--model", str(run), "--output_dir", str(tmp_path / "export"), "--hub_model_id", "a/b"], "publish")
    assert "pipeline(class_labels=0, num_inference_steps=50)" in (tmp_path / "export/README.md").read_text()
    assert (tmp_path / "export/denoising.png").is_file()
    assert quiet(DiffusionPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True)).transformer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 9}, "--resolution 9: this network divides it by 2; take 8 or 10"),
        ({"dataset_name": None, "train_data_dir": "unlabelled"}, "--class_conditional: no column has a class"),
        ({"model_config_name_or_path": TINY_UNET}, "describes no DiTTransformer2DModel: its _class_name is another"),
        ({"model_config_name_or_path": {"sample_size": 8}}, "or it has no num_layers"),
        ({"model_config_name_or_path": TINY | {"patch_size": 0}}, "patch_size must be a whole number of at least 1"),
        ({"model_config_name_or_path": TINY | {"num_layers": 10**6}}, "num_layers must be at most 100"),
        ({"model_config_name_or_path": TINY | {"attention_head_dim": 7}}, "no such network can be built"),
        ({"model_config_name_or_path": TINY | {"attention_head_dim": 10**6}}, "no such network can be built"),
        ({"backbone": "pixart"}, "--backbone"),
        ({"backbone": "unet", "model_config_name_or_path": TINY}, "describes no UNet2DModel"),
    ],
)
def test_refused(options: dict, message: str, train: Callable[..., Path], config: Callable, tmp_path: Path) -> None:
    given = {"backbone": "dit", "model_config_name_or_path": config()} | options
    if isinstance(given["model_config_name_or_path"], dict):
        (tmp_path / "config.json").write_text(json.dumps(given["model_config_name_or_path"]))
        given["model_config_name_or_path"] = tmp_path / "config.json"
    if given.get("train_data_dir"):
        (tmp_path / "unlabelled").mkdir()
        Image.new("L", (8, 8)).save(tmp_path / "unlabelled/a.png")
        given["train_data_dir"] = tmp_path / "unlabelled"
    with pytest.raises(UserError, match=message) as caught:
        train(tmp_path / "run", **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
