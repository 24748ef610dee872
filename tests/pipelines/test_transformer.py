"""Pipelines around transformers: labels, guidance, samplers, prompts, and what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
)

from pipelines import (
    LatentTransformerPipeline,
    PixelDiffusionPipeline,
    PixelTransformerPipeline,
    TextToImageTransformerPipeline,
    fitting_schedulers,
    make_scheduler,
)
from pipelines.denoiser import Predictor
from pipelines.prediction import NoiseLevel, PredictionType
from tests.autoencoders import tiny_vae
from tests.pipelines.models import quiet, tiny_unet
from tests.publishing.test_self_contained import ours, stranger
from tests.text.models import tiny_encoder, tiny_tokenizer

BLOCKS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
FAMILIES = {
    "discrete": DDPMScheduler(timestep_spacing="trailing"),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "edm": EDMEulerScheduler(),
}


def tiny_dit(classes: int = 0, channels: int = 1, **config: Any) -> DiTTransformer2DModel:
    """An untrained network with torch's own weights, with which everything matters."""
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        in_channels=channels, out_channels=channels, num_embeds_ada_norm=classes, **BLOCKS | config
    ).eval()


def tiny_pixart(text_channels: int = 32, **config: Any) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    options = {"in_channels": 3, "out_channels": 3, "caption_channels": text_channels, "cross_attention_dim": 16}
    return PixArtTransformer2DModel(**BLOCKS | options | {"use_additional_conditions": False} | config).eval()


def text_pipeline(scheduler: Any = None, **config: Any) -> TextToImageTransformerPipeline:
    tokenizer = tiny_tokenizer()
    encoder = tiny_encoder("clip", len(tokenizer))
    return quiet(
        TextToImageTransformerPipeline(
            tiny_pixart(encoder.config.hidden_size, **config), scheduler or FAMILIES["flow"], encoder, tokenizer
        )
    )


def drawn(pipeline: Any, **arguments: Any) -> torch.Tensor:
    usual = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    return pipeline(**usual | arguments).images


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sampler(family: str) -> None:
    """Their times are whole, real and negative numbers, for all images alike."""
    dit = PixelTransformerPipeline(tiny_dit(2), FAMILIES[family], id2label={0: "a", 1: "b"})
    for pipeline, arguments in ((dit, {"class_labels": [0, 1], "batch_size": 2}), (text_pipeline(), {"prompt": "a"})):
        for name in fitting_schedulers(FAMILIES[family]):
            quiet(pipeline).scheduler = make_scheduler(name, FAMILIES[family])
            images = drawn(pipeline, **arguments, guidance_scale=2.0)
            assert images.isfinite().all(), name
            assert images.std() > 0, name


def test_time_and_label_matter() -> None:
    predict = Predictor(tiny_dit(2), PredictionType("epsilon"))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def output(time: float, labels: list[int]) -> torch.Tensor:
        level = NoiseLevel(torch.tensor(0.6), torch.tensor(0.8), torch.tensor(time))
        return predict(x, level, {"class_labels": torch.tensor(labels)}).output

    base = output(0.1, [0, 1])
    assert not torch.allclose(base, output(0.4, [0, 1]), atol=1e-4)
    assert torch.equal(base[1], output(0.1, [2, 1])[1])
    assert not torch.allclose(base[0], output(0.1, [2, 1])[0], atol=1e-4)


def test_unconditional() -> None:
    """Its label table has one row, which nobody asks for."""
    pipeline = quiet(PixelTransformerPipeline(tiny_dit(), FAMILIES["flow"]))
    assert pipeline.num_classes == 0
    assert pipeline.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings == 1
    assert drawn(pipeline, batch_size=2).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="class_labels: this model is unconditional"):
        drawn(pipeline, class_labels=0)
    with pytest.raises(ValueError, match="guidance_scale: must be 1"):
        drawn(pipeline, guidance_scale=2.0)


@pytest.mark.parametrize(("classes", "guidable"), [(2, True), (1, False)])
def test_null_label_is_the_last_row_where_there_is_one_more_than_names(classes: int, guidable: bool) -> None:
    """A model of two classes has a table of three rows if labels were dropped in training, else of two."""
    pipeline = quiet(PixelTransformerPipeline(tiny_dit(classes), FAMILIES["flow"], id2label={0: "a", 1: "b"}))
    assert pipeline.num_classes == 2
    assert drawn(pipeline, class_labels="b").isfinite().all()
    if guidable:
        both = drawn(pipeline, guidance_scale=3.0)  # halves of the batch are the null label
        assert torch.allclose(drawn(pipeline), both, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="class_labels: this model needs them: 0 to 1"):
            drawn(pipeline)


def test_guidance_as_written_by_hand() -> None:
    pipeline = quiet(PixelTransformerPipeline(tiny_dit(2), FAMILIES["flow"], id2label={0: "a", 1: "b"}))
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = drawn(pipeline, class_labels=["b", "a"], batch_size=2, guidance_scale=3.0, latents=noise)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    x = noise
    with torch.no_grad():
        for t, low, high in zip(scheduler.timesteps, scheduler.sigmas[1:], scheduler.sigmas, strict=False):
            times, labels = t.expand(2), torch.tensor([1, 0])
            null = pipeline.transformer(x, times, torch.full((2,), 2)).sample
            velocity = null + 3 * (pipeline.transformer(x, times, labels).sample - null)
            x = x + (low - high) * velocity
    assert torch.allclose(images, (x / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_agrees_with_diffusers() -> None:
    """DiTPipeline's null label is 1000, that of the models on ImageNet."""
    vae, dit = tiny_vae("sd"), tiny_dit(1000, channels=4)
    for scheduler in (DDIMScheduler(clip_sample=False), DPMSolverMultistepScheduler()):
        own = quiet(LatentTransformerPipeline(vae, dit, scheduler))
        theirs = quiet(DiTPipeline(dit, vae, scheduler))
        arguments = {"class_labels": [3, 999], "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
        expected = theirs(**arguments, generator=torch.Generator().manual_seed(0)).images
        images = own(**arguments, batch_size=2, generator=torch.Generator().manual_seed(0)).images
        assert images.shape == expected.shape
        assert expected.std() > 0.01
        np.testing.assert_allclose(images, expected, atol=2e-4)


def test_other_sizes() -> None:
    """Positions are those of the size that is asked for; DiT puts its patches together as a square."""
    dit = quiet(PixelTransformerPipeline(tiny_dit(), FAMILIES["flow"]))
    assert drawn(dit, height=12, width=12).shape == (1, 1, 12, 12)
    with pytest.raises(ValueError, match="height, width: a DiTTransformer2DModel makes square images only"):
        drawn(dit, height=12)
    with pytest.raises(ValueError, match="height: 9 is not a multiple of 2"):
        drawn(dit, height=9, width=9)
    assert drawn(text_pipeline(), prompt="a", height=12).shape == (1, 3, 12, 8)


@pytest.mark.slow
def test_published_with_its_code(tmp_path: Path) -> None:
    pipeline = PixelTransformerPipeline(tiny_dit(2), DDIMScheduler(), id2label={0: "cat", 1: "dog"})
    pipeline.save_pretrained(tmp_path / "published")
    by_text = text_pipeline()
    by_text.save_pretrained(tmp_path / "text")
    code = """
np.save(sys.argv[2], sample(load(sys.argv[1], trust_remote_code=True)))
noise = torch.linspace(-2, 2, 3 * 8 * 8).reshape(1, 3, 8, 8)
text = load(sys.argv[3], trust_remote_code=True)
np.save(sys.argv[4], text("a cat", num_inference_steps=2, latents=noise, output_type="np").images)
"""
    files = ("published", "images.npy", "text", "text.npy")
    done = stranger(code, *(tmp_path / name for name in files))
    assert done.returncode == 0, done.stderr
    expected = ours(tmp_path / "published", kind=PixelTransformerPipeline)
    assert np.array_equal(np.load(tmp_path / "images.npy"), expected)
    noise = torch.linspace(-2, 2, 3 * 8 * 8).reshape(1, 3, 8, 8)
    expected = by_text("a cat", num_inference_steps=2, latents=noise, output_type="np").images
    assert np.array_equal(np.load(tmp_path / "text.npy"), expected)


def test_padding_is_not_attended_to() -> None:
    """What stands there, and how much of it, changes nothing."""
    pipeline = text_pipeline()
    embeds, mask = pipeline.encode_prompt(["a cat"])
    kept = int(mask.sum())
    assert kept < embeds.shape[1]
    changed = embeds + 9 * (1 - mask[..., None])
    images = [
        drawn(pipeline, prompt_embeds=e, prompt_attention_mask=m, guidance_scale=1.0)
        for e, m in ((embeds, mask), (changed, mask), (embeds[:, :kept], mask[:, :kept]))
    ]
    for other in images[1:]:
        assert torch.allclose(images[0], other, atol=1e-5)
    text = drawn(pipeline, prompt="a cat", guidance_scale=1.0)
    assert torch.equal(text, images[0])
    assert not torch.allclose(text, drawn(pipeline, prompt="a red circle", guidance_scale=1.0), atol=1e-4)


def test_text_guidance_as_written_by_hand(tmp_path: Path) -> None:
    """And saved and loaded again."""
    pipeline = text_pipeline()
    pipeline.save_pretrained(tmp_path)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = drawn(
        quiet(TextToImageTransformerPipeline.from_pretrained(tmp_path)), prompt="a cat", guidance_scale=3, latents=noise
    )
    (text, null), (text_mask, null_mask) = zip(pipeline.encode_prompt("a cat"), pipeline.encode_prompt(""), strict=True)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    x = noise
    with torch.no_grad():
        for t, low, high in zip(scheduler.timesteps, scheduler.sigmas[1:], scheduler.sigmas, strict=False):

            def output(embeds: torch.Tensor, mask: torch.Tensor, x=x, t=t) -> torch.Tensor:
                network = pipeline.transformer
                return network(x, embeds, t.expand(1), encoder_attention_mask=mask).sample

            without = output(null, null_mask)
            x = x + (low - high) * (without + 3 * (output(text, text_mask) - without))
    assert torch.allclose(images, (x / 2 + 0.5).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: PixelDiffusionPipeline(tiny_dit(), FAMILIES["flow"]),
            TypeError,
            "unet: a DiTTransformer2DModel goes into pipelines that call it `transformer`",
        ),
        (
            lambda: PixelTransformerPipeline(tiny_unet(), FAMILIES["flow"]),
            TypeError,
            "transformer: a UNet2DModel goes into pipelines that call it `unet`",
        ),
        (lambda: PixelTransformerPipeline(None, FAMILIES["flow"]), TypeError, "transformer: must be a network"),
        (
            lambda: PixelTransformerPipeline(tiny_dit(3), FAMILIES["flow"], id2label={0: "a"}),
            ValueError,
            "id2label: names 1 classes, and the network has 4 rows",
        ),
        (
            lambda: text_pipeline(attention_head_dim=12, cross_attention_dim=24, use_additional_conditions=True),
            ValueError,
            "transformer: takes sizes as conditions",
        ),
        (
            lambda: TextToImageTransformerPipeline(
                tiny_pixart(16), FAMILIES["flow"], tiny_encoder("clip", len(tiny_tokenizer())), tiny_tokenizer()
            ),
            ValueError,
            "text_encoder: its embeddings have .* the network attends to 16",
        ),
        (
            lambda: text_pipeline()(prompt_embeds=torch.zeros(1, 4, 7)),
            ValueError,
            "prompt_embeds: has 7 channels",
        ),
    ],
)
def test_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
