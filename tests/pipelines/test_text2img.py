"""Prompts in, images out; diffusers' own pipeline for the same parts as the reference."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast, T5Config, T5EncoderModel

from pipelines import SamplingOutput, TextToImagePipeline, fitting_schedulers, image_generators, make_scheduler
from pipelines.denoiser import Predictor, conditioned, guided
from pipelines.prediction import NoiseLevel, PredictionType
from tests.publishing.test_self_contained import stranger

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, to the schedulers

CAPTIONS = ["a red circle", "a blue square at the left", "a cat", "a dog and a cat", ""]
LENGTH = 8
FAST: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}


def tokenizer() -> CLIPTokenizerFast:
    made = CLIPTokenizerFast().train_new_from_iterator(CAPTIONS * 5, 320, show_progress=False)
    made.model_max_length = LENGTH
    return made


def text_encoder(words: CLIPTokenizerFast, hidden_size: int = 32) -> CLIPTextModel:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    encoder = CLIPTextModel(config).eval()
    for parameter in encoder.parameters():  # fresh ones hardly tell one word from another
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return encoder


def unet(channels: int = 3, **config: Any) -> UNet2DConditionModel:
    torch.manual_seed(2)
    usual = {
        "sample_size": 16,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**usual | config).eval()


def vae(channels: int = 3) -> AutoencoderKL:
    torch.manual_seed(3)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.7,
    ).eval()


def make(scheduler: Any = None, latent: bool = False, channels: int = 3, **arguments: Any) -> TextToImagePipeline:
    words = tokenizer()
    pipeline = TextToImagePipeline(
        unet(4 if latent else channels),
        scheduler or DDIMScheduler(timestep_spacing="trailing", clip_sample=False, steps_offset=1),
        text_encoder(words),
        words,
        vae(channels) if latent else None,
        **arguments,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def states(pipeline: TextToImagePipeline) -> list[torch.Tensor]:
    """What the network is conditioned on at each evaluation from now on."""
    seen: list[torch.Tensor] = []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    return seen


def fixed(count: int = 1) -> dict[str, Any]:
    return FAST | {"generator": image_generators(0, range(count))}


@pytest.mark.parametrize("latent", [False, True])
def test_output_types(latent: bool) -> None:
    pipeline, side = make(latent=latent), 32 if latent else 16
    prompts = ["a cat", "a dog"]
    kinds = {k: pipeline(prompts, **fixed(2) | {"output_type": k}) for k in ("pil", "np", "pt", "latent")}
    assert isinstance(kinds["pil"], SamplingOutput)
    assert [image.size for image in kinds["pil"].images] == [(side, side)] * 2
    assert kinds["np"].images.shape == (2, side, side, 3)
    assert kinds["latent"].images.shape == (2, 4 if latent else 3, 16, 16)
    decoded = pipeline.decode(kinds["latent"].images)
    assert torch.equal((decoded / 2 + 0.5).clamp(0, 1), kinds["pt"].images)
    assert np.array_equal(kinds["pt"].images.permute(0, 2, 3, 1).numpy(), kinds["np"].images)
    assert isinstance(pipeline("a cat", return_dict=False, **FAST), tuple)
    with pytest.raises(ValueError, match="output_type: 'jpg' is not one of pil, np, pt, latent"):
        pipeline("a cat", output_type="jpg")


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_stable_diffusion_pipeline_agrees(rescale: float) -> None:
    """The same parts, states and noise give the same images."""
    ours = make(latent=True)
    theirs = StableDiffusionPipeline(
        ours.vae,
        ours.text_encoder,
        ours.tokenizer,
        ours.unet,
        ours.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    options = {
        "prompt_embeds": torch.randn(2, LENGTH, 32),
        "negative_prompt_embeds": torch.randn(2, LENGTH, 32),
        "latents": torch.randn(4, 4, 16, 16),
        "num_images_per_prompt": 2,
        "guidance_scale": 4.0,
        "guidance_rescale": rescale,
        "num_inference_steps": 4,
        "output_type": "pt",
    }
    assert torch.allclose(ours(**options).images, theirs(**options).images, atol=1e-5)


def test_prompts_are_given_apart() -> None:
    pipeline = make()
    noise = torch.randn(1, 3, 16, 16).expand(3, -1, -1, -1)
    images = pipeline(["a cat", "a dog", "a cat"], latents=noise, **FAST).images
    assert torch.equal(images[0], images[2])
    assert not torch.allclose(images[0], images[1], atol=1e-4)


def test_the_batch_and_its_copies() -> None:
    """The images of one prompt follow each other, each with its own noise; a prompt's don't depend on the others."""
    pipeline = make()
    both = pipeline(["a cat", "a dog"], num_images_per_prompt=2, **fixed(4)).images
    alone = pipeline("a dog", num_images_per_prompt=2, **FAST, generator=image_generators(0, [2, 3])).images
    assert torch.allclose(both[2:], alone, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_padding_is_zero_and_says_nothing() -> None:
    pipeline = make()
    encoded, mask = pipeline.encode_prompt(["a cat", ""])
    assert encoded.shape == (2, LENGTH, 32)
    ids = pipeline.tokenizer("a cat")["input_ids"]
    assert mask.tolist()[0] == [1] * len(ids) + [0] * (LENGTH - len(ids))
    assert not encoded[0, len(ids) :].any()
    assert encoded[0, : len(ids)].abs().min(0).values.any()
    with torch.no_grad():
        bare = pipeline.text_encoder(torch.tensor([ids]))[0]
    assert torch.allclose(encoded[:1, : len(ids)], bare, atol=1e-6)


def test_a_t5_encoder() -> None:
    words = tokenizer()
    torch.manual_seed(0)
    encoder = T5EncoderModel(T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    pipeline = TextToImagePipeline(unet(), DDPMScheduler(), encoder.eval(), words)
    ids = torch.tensor([words("a cat")["input_ids"]])
    with torch.no_grad():
        bare = encoder(ids)[0]
    encoded, _ = pipeline.encode_prompt("a cat")
    assert torch.allclose(encoded[:, : ids.shape[1]], bare, atol=1e-5)
    assert not encoded[:, ids.shape[1] :].any()


def test_guidance() -> None:
    """Away from the negative prompt, which is the empty one unless another is given; not at all for a scale of 1."""
    pipeline = make(FlowMatchEulerDiscreteScheduler())
    options = {"latents": torch.randn(1, 3, 16, 16), "num_inference_steps": 1, "return_trajectory": True}
    plain, null, dog, guided, away = (
        pipeline(**options, **arguments).trajectory.denoised
        for arguments in (
            {"prompt": "a cat", "guidance_scale": 1.0},
            {"prompt": "", "guidance_scale": 1.0},
            {"prompt": "a dog", "guidance_scale": 1.0},
            {"prompt": "a cat", "guidance_scale": 4.0},
            {"prompt": "a cat", "guidance_scale": 4.0, "negative_prompt": "a dog"},
        )
    )
    assert torch.allclose(guided, null + 4 * (plain - null), atol=1e-4)
    assert torch.allclose(away, dog + 4 * (plain - dog), atol=1e-4)
    assert not torch.allclose(guided, away, atol=1e-4)
    seen = states(pipeline)
    pipeline(["a cat", "a dog"], negative_prompt=["a dog", ""], num_inference_steps=1)
    pipeline("a cat", guidance_scale=1.0, num_inference_steps=1)
    expected, _ = pipeline.encode_prompt(["a dog", "", "a cat", "a dog"])
    assert torch.equal(seen[0], expected)
    assert torch.equal(seen[1], expected[2:3])


def test_guidance_interval() -> None:
    pipeline = make(FlowMatchEulerDiscreteScheduler())
    seen = states(pipeline)
    pipeline("a cat", num_inference_steps=4, guidance_interval=(0.5, 2.0))  # sigma / alpha: inf, 3, 1, 1/3
    assert [len(s) for s in seen] == [1, 1, 2, 1]


def test_guidance_rescale() -> None:
    """All of the way, the guided output has the standard deviation of the conditional one (Lin et al. 2024, eq. 15)."""
    pipeline = make(FlowMatchEulerDiscreteScheduler())
    outputs: dict[float, torch.Tensor] = {}
    x, half = torch.randn(3, 3, 16, 16), torch.tensor(0.5)
    level = NoiseLevel(half, half, 1000 * half)
    predict = Predictor(pipeline.unet, PredictionType("flow_prediction"))
    condition, null = ({"encoder_hidden_states": pipeline.encode_prompt([p] * 3)[0]} for p in ("a cat", ""))
    with torch.no_grad():
        for rescale in (0.0, 0.5, 1.0):
            outputs[rescale] = guided(predict, [null, condition], [9.0], rescale=rescale)(x, level).output
        conditional = conditioned(predict, condition)(x, level).output
    assert torch.allclose(outputs[1.0].std((1, 2, 3)), conditional.std((1, 2, 3)), atol=1e-5)
    assert torch.allclose(outputs[0.5], (outputs[0.0] + outputs[1.0]) / 2, atol=1e-5)


def test_embeddings_in_place_of_prompts() -> None:
    pipeline = make()
    expected = pipeline("a cat", negative_prompt="a dog", **fixed()).images
    embeds = dict(zip(("prompt_embeds", "prompt_attention_mask"), pipeline.encode_prompt("a cat"), strict=True))
    names = ("negative_prompt_embeds", "negative_prompt_attention_mask")
    embeds |= dict(zip(names, pipeline.encode_prompt("a dog"), strict=True))
    bare = TextToImagePipeline(pipeline.unet, pipeline.scheduler)
    bare.set_progress_bar_config(disable=True)
    assert torch.equal(bare(**embeds, **fixed()).images, expected)
    with pytest.raises(ValueError, match="prompt: this pipeline has no text encoder; give prompt_embeds"):
        bare("a cat")


def test_long_prompts_are_cut_aloud() -> None:
    pipeline = make()
    with pytest.warns(UserWarning, match="prompt of 10 tokens cut to 8: 'a dog .* cat cat' loses 'cat cat'"):
        long, _ = pipeline.encode_prompt("a dog and a cat a cat cat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(long, pipeline.encode_prompt("a dog and a cat a")[0])


def masked_unet() -> UNet2DConditionModel:
    """A network as it is trained from scratch, which masks padding."""
    return unet(class_embed_type="projection", projection_class_embeddings_input_dim=32)


def test_the_padded_length_of_prompts_does_not_matter() -> None:
    pipeline = make(FlowMatchEulerDiscreteScheduler())
    pipeline.register_modules(unet=masked_unet())
    embeds, mask = pipeline.encode_prompt(["a cat", "a dog and a cat"])
    options = {"guidance_scale": 1.0, "latents": torch.randn(2, 3, 16, 16), "num_inference_steps": 2}
    options["output_type"] = "pt"
    expected = pipeline(prompt_embeds=embeds, prompt_attention_mask=mask, **options).images
    longer = torch.cat([embeds, torch.randn(2, 5, 32)], 1)
    padded = torch.cat([mask, torch.zeros(2, 5, dtype=mask.dtype)], 1)
    images = pipeline(prompt_embeds=longer, prompt_attention_mask=padded, **options).images
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(pipeline(prompt_embeds=longer, **options).images, expected, atol=1e-4)


def test_both_networks_of_guidance_are_given_their_own_padding() -> None:
    pipeline = make()
    pipeline.register_modules(unet=masked_unet())
    seen: list[dict[str, torch.Tensor]] = []
    pipeline.unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    pipeline("a dog and a cat", negative_prompt="a cat", num_images_per_prompt=2, num_inference_steps=1)
    embeds, mask = pipeline.encode_prompt(["a cat"] * 2 + ["a dog and a cat"] * 2)
    assert torch.equal(seen[0]["encoder_attention_mask"], mask)
    means = torch.stack([e[m.bool()].mean(0) for e, m in zip(embeds, mask, strict=True)])
    normalized = (means - means.mean(1, keepdim=True)) / (means.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(seen[0]["class_labels"], normalized)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 3}, "prompt: must be a list of texts, got 3"),
        ({"prompt": ["a cat", None]}, "prompt: must be a text, got None"),
        ({"prompt": []}, "prompt: is empty"),
        ({}, "prompt: give it or prompt_embeds, one of the two"),
        (
            {"prompt": "a cat", "prompt_embeds": torch.zeros(1, 8, 32)},
            "prompt: give it or prompt_embeds, one of the two",
        ),
        ({"prompt": "a cat", "negative_prompt": ["", ""]}, "negative_prompt: 2 given for 1 prompts"),
        ({"prompt": "a cat", "negative_prompt": 3}, "negative_prompt: must be a list of texts, got 3"),
        (
            {"prompt": "a cat", "negative_prompt": "", "negative_prompt_embeds": torch.zeros(1, 8, 32)},
            "negative_prompt: give it or negative_prompt_embeds, one of the two",
        ),
        (
            {"prompt": "a cat", "negative_prompt_embeds": torch.zeros(1, 7, 32)},
            r"negative_prompt_embeds: of shape \(1, 7, 32\), but prompt_embeds are \(1, 8, 32\)",
        ),
        (
            {"prompt_embeds": torch.zeros(1, 8, 32), "prompt_attention_mask": torch.ones(1, 7)},
            r"prompt_attention_mask: of shape \(1, 7\); must be \(1, 8\)",
        ),
        ({"prompt": "a cat", "num_images_per_prompt": 0}, "num_images_per_prompt: must be at least 1, got 0"),
        ({"prompt": "a cat", "height": 15}, "height: 15 is not a multiple of 2"),
        ({"prompt": "a cat", "image": torch.zeros(1, 4, 16, 16)}, "image: has 4 channels, and the model takes 3"),
        ({"prompt": "a cat", "image": torch.zeros(2, 3, 16, 16)}, "image: 2 given for 1 prompts"),
        ({"prompt": "a cat", "generator": image_generators(0, range(3))}, "generator: 3 given for 1 images"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()(**arguments, **FAST)


def test_parts_that_do_not_belong_together() -> None:
    words = tokenizer()
    encoder = text_encoder(words)
    encoder.config.vocab_size = 100
    with pytest.raises(ValueError, match=f"tokenizer: has {len(words)} tokens, and the text encoder knows 100"):
        TextToImagePipeline(unet(), DDPMScheduler(), encoder, words)
    with pytest.raises(ValueError, match="text_encoder: its embeddings have 16 channels, the network attends to 32"):
        TextToImagePipeline(unet(), DDPMScheduler(), text_encoder(words, hidden_size=16), words)
    with pytest.raises(ValueError, match="prediction_type: 'x' is not one of"):
        make(prediction_type="x")


@pytest.mark.parametrize("latent", [False, True])
def test_an_image_to_start_from(latent: bool) -> None:
    """As strength falls, so does the distance to the image; its kinds say the same."""
    pipeline, side = make(latent=latent), 32 if latent else 16
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    tensor = torch.from_numpy(pixels / 255).permute(2, 0, 1)[None].float()
    kept = pipeline.decode(pipeline.encode(tensor * 2 - 1)) / 2 + 0.5
    options = fixed() | {"num_inference_steps": 50}
    far, near = (
        float((pipeline("a cat", image=tensor, strength=s, **options).images - kept).abs().mean()) for s in (0.9, 0.02)
    )
    assert near < 0.6 * far
    kinds = [tensor, PIL.Image.fromarray(pixels), pixels[None] / 255]
    images = [pipeline("a cat", image=kind, strength=0.5, **fixed()).images for kind in kinds]
    assert torch.allclose(images[0], images[1], atol=1e-5)
    assert torch.allclose(images[0], images[2], atol=1e-5)


def test_images_to_start_from_follow_their_prompts() -> None:
    pipeline = make()
    two = torch.rand(2, 3, 16, 16)
    options = {"strength": 0.5, "num_inference_steps": 4, "output_type": "pt"}
    both = pipeline(
        ["a cat", "a dog"], image=two, num_images_per_prompt=2, generator=image_generators(0, range(4)), **options
    ).images
    alone = pipeline("a dog", image=two[1:], generator=image_generators(0, [3]), **options).images
    assert torch.allclose(both[3:], alone, atol=1e-5)
    assert pipeline("a cat", image=torch.rand(1, 3, 16, 24), **options).images.shape == (1, 3, 16, 24)
    assert pipeline("a cat", image=two[:1], height=8, width=8, **options).images.shape == (1, 3, 8, 8)


def test_four_channels_are_not_taken_for_latents() -> None:
    pipeline = make(channels=4)
    image = torch.rand(1, 4, 16, 16)
    low = pipeline("a cat", image=image, strength=0.02, num_inference_steps=50, output_type="pt").images
    assert float((low - image).abs().mean()) < 0.1


@pytest.mark.parametrize(
    "trained", [DDPMScheduler(timestep_spacing="trailing"), FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler()]
)
def test_every_scheduler(trained: Any) -> None:
    for name in fitting_schedulers(trained):
        pipeline = make(make_scheduler(name, trained))
        for start in ({}, {"image": torch.rand(1, 3, 16, 16), "strength": 0.5}):
            images = pipeline("a cat", num_inference_steps=5, output_type="pt", **start).images
            assert images.isfinite().all(), name


def test_callback_and_trajectory() -> None:
    pipeline = make(latent=True)
    seen: list[tuple[int, set[str]]] = []

    def record(owner: Any, step: int, time: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((step, set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    output = pipeline(
        "a cat",
        callback_on_step_end=record,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
        return_trajectory=True,
        **fixed(),
    )
    assert seen == [(0, {"latents", "pred_original_sample"}), (1, {"latents", "pred_original_sample"})]
    assert output.trajectory.denoised.shape == (2, 1, 3, 32, 32)
    assert torch.equal(output.images, (pipeline.decode(torch.zeros(1, 4, 16, 16)) / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("latent", [False, True])
def test_round_trip(tmp_path: Path, latent: bool) -> None:
    pipeline = make(FlowMatchEulerDiscreteScheduler(), latent=latent, prediction_type="sample")
    pipeline.save_pretrained(tmp_path / "model")
    again = TextToImagePipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert again.config.prediction_type == "sample"
    assert (again.vae is None) != latent
    assert again.tokenizer.model_max_length == LENGTH
    assert torch.equal(again("a cat", **fixed()).images, pipeline("a cat", **fixed()).images)


@pytest.mark.slow
def test_published_it_needs_no_package_of_ours(tmp_path: Path) -> None:
    pipeline = make(FlowMatchEulerDiscreteScheduler(), latent=True)
    folder = tmp_path / "published"
    pipeline.save_pretrained(folder)
    pipeline.complete(folder)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == ["pipeline", "TextToImagePipeline"]
    assert "from pipelines" not in TextToImagePipeline.source()
    code = """
pipeline = load(sys.argv[1], trust_remote_code=True)
image = np.linspace(0, 1, 32 * 32 * 3).reshape(1, 32, 32, 3)
options = dict(num_inference_steps=4, output_type="np", guidance_rescale=0.5)
drawn = pipeline("a cat", generator=torch.Generator().manual_seed(3), **options).images
varied = pipeline("a cat", image=image, strength=0.5, generator=torch.Generator().manual_seed(3), **options).images
np.savez(sys.argv[2], drawn=drawn, varied=varied)
"""
    done = stranger(code, folder, tmp_path / "images.npz")
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "images.npz")
    options = {"num_inference_steps": 4, "output_type": "np", "guidance_rescale": 0.5}
    image = np.linspace(0, 1, 32 * 32 * 3).reshape(1, 32, 32, 3)
    generator = torch.Generator()
    assert np.array_equal(theirs["drawn"], pipeline("a cat", generator=generator.manual_seed(3), **options).images)
    varied = pipeline("a cat", image=image, strength=0.5, generator=generator.manual_seed(3), **options).images
    assert np.array_equal(theirs["varied"], varied)


def test_stock_loader_needs_trust(tmp_path: Path) -> None:
    pipeline = make()
    pipeline.save_pretrained(tmp_path / "model")
    pipeline.complete(tmp_path / "model")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "model")
