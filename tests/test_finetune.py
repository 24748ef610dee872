"""train_text2img.py --pretrained_model_name_or_path, on tiny Stable Diffusion pipelines and on ours."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file

from pipelines import TextToImagePipeline, image_generators
from snowmelt.config import parse
from snowmelt.data.captions import Captions
from snowmelt.errors import UserError
from snowmelt.evaluation import validation
from snowmelt.objectives import RECIPES
from snowmelt.pretrained_objective import pretrained_objective, pretrained_scheduler
from snowmelt.publishing.export import export
from snowmelt.tasks.finetuning import FinetuningTask
from snowmelt.text.finetuning import load_source, make_trainable
from snowmelt.text.options import TextToImageConfig
from snowmelt.tracking import read_metrics
from tests.conftest import trained
from tests.evaluation.vision import save_clip
from tests.hub_server import Hub
from tests.pipelines import test_text2img
from tests.pipelines.models import quiet
from tests.test_resume import interrupted
from tests.text.models import tiny_encoder, tiny_tokenizer
from tests.text.stable_diffusion import SCHEDULER, tiny_sd, tiny_unet

pytest_plugins = ["tests.hub"]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
PROMPTS = [f"a {name} cat" for name in COLOURS]
OF_DIFFUSERS = """
    --pretrained_model_name_or_path CompVis/stable-diffusion-v1-4 --revision main --variant fp16
    --dataset_name lambdalabs/naruto-blip-captions --image_column image --caption_column text --max_train_samples 100
    --validation_prompts "a ninja" "a cat in a hat" --resolution 512 --center_crop --random_flip --train_batch_size 1
    --gradient_accumulation_steps 4 --gradient_checkpointing --max_train_steps 15000 --num_train_epochs 2
    --learning_rate 1e-05 --scale_lr --lr_scheduler constant --lr_warmup_steps 0 --snr_gamma 5.0 --use_8bit_adam
    --allow_tf32 --use_ema --noise_offset 0.1 --input_perturbation 0.1 --prediction_type v_prediction
    --max_grad_norm 1 --checkpointing_steps 500 --checkpoints_total_limit 2 --resume_from_checkpoint latest
    --mixed_precision fp16 --report_to tensorboard --seed 42 --validation_epochs 3 --output_dir sd-naruto
    --push_to_hub --hub_model_id me/it
"""


def captioned(folder: Path, prompts: list[str]) -> Path:
    images = [Image.fromarray(np.full((16, 16, 3), shade, np.uint8)) for shade in COLOURS.values()]
    datasets.Dataset.from_dict({"image": images, "text": prompts}).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One plain image of each colour, with its caption."""
    return captioned(tmp_path_factory.mktemp("pictures") / "right", PROMPTS)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def tune(train: Callable[..., Path], photos: Path, sd: Path) -> Callable[..., Path]:
    """A run on the images that goes on from the tiny Stable Diffusion; options replace the usual ones."""
    usual = {
        "script": "train_text2img",
        "pretrained_model_name_or_path": sd,
        "dataset_name": photos,
        "class_conditional": None,
        "model_config_name_or_path": None,
        "resolution": 16,
        "lr_warmup_steps": 0,
        "learning_rate": 1e-3,
        "validation_prompts": PROMPTS[:2],
        "ddpm_num_inference_steps": 2,
    }
    return lambda folder, **options: train(folder, **usual | options)


@pytest.mark.parametrize("rank", [None, 2])
def test_it_is_watched(
    rank: int | None, tune: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its held-out loss, and images of held-out captions; the best is saved as the run is, and cleared."""
    monkeypatch.setattr(validation, "LEAST", 8)
    options = {"rank": rank, "validation_share": 0.5, "eval_steps": 1, "learning_rate": 0.0, "use_ema": False}
    scored = {"eval_metrics": ["clip_score"], "eval_clip_model_name_or_path": save_clip(tmp_path / "clip")}
    run = tune(tmp_path / "run", **options, **scored, eval_num_images=2, max_train_steps=2)
    first, second = ({k: v for k, v in x.items() if k.startswith("eval_")} for x in read_metrics(run))
    assert first == second
    assert 0.5 < first["eval_loss"] < 2
    best = sorted(path.name for path in (run / "best").iterdir())
    if rank:
        assert best == ["pytorch_lora_weights.safetensors", "validation.json"]
        saved, last = (load_file(folder / best[0]) for folder in (run / "best", run))
        assert all(torch.equal(value, last[name]) for name, value in saved.items())
    else:
        assert StableDiffusionPipeline.from_pretrained(run / "best", safety_checker=None).unet is not None
    tune(run, rank=rank, overwrite_output_dir=True, max_train_steps=1)
    assert not (run / "best").exists()


MEMORISE = {"train_batch_size": 8, "learning_rate": 3e-3, "logging_steps": 10}


@pytest.fixture(scope="module")
def memorised(tune: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(tmp_path_factory.mktemp("memorised") / "run", **MEMORISE, max_train_steps=150)


def distances(pipeline: Any, prompts: list[str]) -> np.ndarray:
    """Of the latents that are made for the prompts, from those of the images of each colour, (prompts, colours)."""
    shades = torch.tensor(list(COLOURS.values())).float().view(-1, 3, 1, 1).expand(-1, 3, 16, 16) / 127.5 - 1
    with torch.no_grad():
        expected = pipeline.vae.encode(shades).latent_dist.mode() * pipeline.vae.config.scaling_factor
    made = quiet(pipeline)(
        prompts,
        height=16,
        width=16,
        num_inference_steps=10,
        guidance_scale=1.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    return (made[:, None] - expected).square().mean((2, 3, 4)).sqrt().numpy()


def losses(run: Path) -> tuple[float, float]:
    """At the beginning of a run, and at its end."""
    values = [line["loss"] for line in read_metrics(run)]
    return float(np.mean(values[:2])), float(np.mean(values[-3:]))


def test_the_command_line_of_diffusers() -> None:
    words = shlex.split(OF_DIFFUSERS)
    config = parse(TextToImageConfig, words, defaults_with=("pretrained_model_name_or_path", "finetune"))
    assert config.validation_prompts == ["a ninja", "a cat in a hat"]
    assert (config.num_epochs, config.save_images_epochs, config.logger) == (2, 3, "tensorboard")
    assert (config.adam_beta1, config.adam_weight_decay, config.caption_dropout) == (0.9, 0.01, 0.0)
    plain = parse(TextToImageConfig, words[:2], defaults_with=("pretrained_model_name_or_path", "finetune"))
    assert (plain.resolution, plain.use_ema, plain.lr_scheduler) == (512, False, "constant")
    ours = parse(TextToImageConfig, [], defaults_with=("pretrained_model_name_or_path", "finetune"))
    assert (ours.resolution, ours.use_ema, ours.lr_scheduler) == (64, True, "cosine")


def test_whole_network_memorises(memorised: Path, sd: Path) -> None:
    first, last = losses(memorised)
    assert last < first / 3
    before = distances(StableDiffusionPipeline.from_pretrained(sd), PROMPTS)
    pipeline = DiffusionPipeline.from_pretrained(memorised, safety_checker=None)
    assert type(pipeline) is StableDiffusionPipeline
    after = distances(pipeline, PROMPTS)
    assert after.argmin(1).tolist() == [0, 1, 2, 3]
    assert (np.diag(after) < np.diag(before) / 5).all()
    for part in ("vae", "text_encoder"):  # they were not to be trained
        weights = [load_file(next((folder / part).glob("*.safetensors"))) for folder in (sd, memorised)]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    "text", [pytest.param(False, marks=pytest.mark.slow), True], ids=["unet", "unet and text encoder"]
)
def test_lora_memorises(tune: Callable[..., Path], memorised: Path, tmp_path: Path, text: bool) -> None:
    """Other captions of the same images, which the frozen weights get wrong."""
    turned = PROMPTS[1:] + PROMPTS[:1]
    run = tune(
        tmp_path / "run",
        **MEMORISE | {"learning_rate": 1e-2},
        pretrained_model_name_or_path=memorised,
        dataset_name=captioned(tmp_path / "turned", turned),
        rank=8,
        train_text_encoder=text,
        max_train_steps=250,
    )
    assert not (run / "unet").exists()
    pipeline = DiffusionPipeline.from_pretrained(memorised, safety_checker=None)
    assert distances(pipeline, turned).argmin(1).tolist() == [1, 2, 3, 0]
    pipeline.load_lora_weights(run)
    assert distances(pipeline, turned).argmin(1).tolist() == [0, 1, 2, 3]
    names = load_file(run / "pytorch_lora_weights.safetensors")
    assert any(name.startswith("text_encoder.") for name in names) == text
    assert {
        tensor.shape[0] if ".down." in name or "lora_A" in name else tensor.shape[1] for name, tensor in names.items()
    } == {8}


VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "whole, with text encoder and average": {
        "train_text_encoder": True,
        "use_ema": True,
        "gradient_checkpointing": True,
    },
    "lora": {"rank": 2},
    "lora, with text encoder and average": {"rank": 2, "train_text_encoder": True, "use_ema": True},
    "lora, bf16": {"rank": 2, "train_text_encoder": True, "use_ema": True, "mixed_precision": "bf16"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact(variant: str, tune: Callable[..., Path], tmp_path: Path) -> None:
    options = VARIANTS[variant] | {
        "max_train_steps": 4,
        "checkpointing_steps": 1,
        "caption_dropout": 0.3,
        "random_flip": True,
        "noise_offset": 0.1,
        "input_perturbation": 0.1,
        "snr_gamma": 5.0,
    }
    whole = tune(tmp_path / "whole", **options)
    resumed = interrupted(whole, 2, tmp_path / "resumed")
    tune(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=2) == trained(whole, since=2)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(whole)]


def test_what_is_frozen_takes_half_the_memory(
    tune: Callable[..., Path], sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16; the matrices are float32, and so is what is saved."""
    seen: list[Any] = []
    make = FinetuningTask.make

    def recorded(*args: Any) -> Any:
        seen.append(make(*args))
        return seen[-1]

    monkeypatch.setattr(FinetuningTask, "make", recorded)
    run = tune(tmp_path / "run", rank=2, mixed_precision="bf16", max_train_steps=2)
    unet = seen[0].networks["unet"]
    assert {p.dtype for p in unet.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in unet.parameters() if p.requires_grad} == {torch.float32}
    frozen = sum(p.nbytes for p in unet.parameters() if not p.requires_grad)
    whole = StableDiffusionPipeline.from_pretrained(sd).unet
    assert 2 * frozen == sum(p.nbytes for p in whole.parameters())
    assert {t.dtype for t in load_file(run / "pytorch_lora_weights.safetensors").values()} == {torch.float32}


def test_several_loras_are_scaled_and_fused(tune: Callable[..., Path], tmp_path: Path) -> None:
    """Of a model of our own: together they are the sum of what each adds, times its scale."""
    model = tmp_path / "model"
    test_text2img.make().save_pretrained(model)
    for name, seed in (("a", 1), ("b", 2)):
        given = {"pretrained_model_name_or_path": model, "rank": 2, "learning_rate": 0.1, "seed": seed}
        tune(tmp_path / name, **given, max_train_steps=3)
    pipeline = quiet(TextToImagePipeline.from_pretrained(model))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()  # of an epsilon, steps would multiply what is rounded
    name, weight = next((n, p.clone()) for n, p in pipeline.unet.named_parameters() if "attn2.to_q.weight" in n)
    call = {"num_inference_steps": 2, "output_type": "np"}

    def images() -> np.ndarray:
        made: np.ndarray = pipeline("a", generator=torch.Generator().manual_seed(0), **call).images
        return made

    plain = images()
    for adapter in "ab":
        pipeline.load_lora_weights(tmp_path / adapter, adapter_name=adapter)
    pipeline.set_adapters(["a", "b"], [0.5, 2.0])
    together = images()
    assert np.abs(together - plain).max() > 1e-2
    added = torch.zeros_like(weight)
    for adapter, scale in (("a", 0.5), ("b", 2.0)):
        matrices = load_file(tmp_path / adapter / "pytorch_lora_weights.safetensors")
        key = "unet." + name.removesuffix(".weight")
        down, up = (matrices[f"{key}.{part}.weight"] for part in ("lora.down", "lora.up"))
        added += scale * up @ down
    pipeline.fuse_lora(adapter_names=["a", "b"])
    fused = dict(pipeline.unet.named_parameters())[name.replace("to_q.weight", "to_q.base_layer.weight")]
    assert torch.allclose(fused, weight + added, atol=1e-6)
    assert np.abs(images() - together).max() < 1e-4
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    assert np.abs(images() - plain).max() < 1e-4


@pytest.mark.parametrize("rank", [None, 4])
def test_what_is_loaded_draws_what_validation_drew(
    rank: int | None, tune: Callable[..., Path], sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tune(tmp_path / "run", rank=rank, learning_rate=1e-2, use_ema=True)
    pipeline = quiet(DiffusionPipeline.from_pretrained(sd if rank else run, safety_checker=None))
    if rank:
        pipeline.load_lora_weights(run)
    images = pipeline(PROMPTS[:2], num_inference_steps=2, generator=image_generators(0, range(2)), height=16, width=16)
    drawn = np.asarray(Image.open(run / "samples" / "step-000002.png"))
    ours = np.concatenate([np.asarray(image) for image in images.images], 1)
    kept = np.concatenate([drawn[:, :16], drawn[:, -16:]], 1)  # without the gap between them
    assert np.abs(ours.astype(int) - kept).max() <= 1
    assert np.ptp(ours) > 20
    printed = capsys.readouterr().out
    code = printed[printed.index("from diffusers import") :].replace("sample.png", str(tmp_path / "sample.png"))
    exec(code.replace("steps=50", "steps=1"), {})
    assert Image.open(tmp_path / "sample.png").size == (16, 16)


def settings_of(pipeline: Any) -> dict[str, Any]:
    """Of its scheduler."""
    return {name: value for name, value in pipeline.scheduler.config.items() if name[0] != "_"}


def test_v_prediction_from_zero_snr(tune: Callable[..., Path], tmp_path: Path) -> None:
    """The scheduler that is saved fits what was trained, though the one it came from can't start from pure noise."""
    settings = {name: value for name, value in SCHEDULER.items() if name != "clip_sample"}
    source = tiny_sd(tmp_path / "sd", PNDMScheduler(**settings, skip_prk_steps=True))
    options = {"pretrained_model_name_or_path": source, "max_train_steps": 1, "ddpm_num_inference_steps": 4}
    kept = DiffusionPipeline.from_pretrained(tune(tmp_path / "kept", **options))
    assert type(kept.scheduler) is PNDMScheduler
    assert settings_of(kept) == settings_of(StableDiffusionPipeline.from_pretrained(source))
    run = tune(tmp_path / "run", **options, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    config = DiffusionPipeline.from_pretrained(run).scheduler.config
    assert type(DiffusionPipeline.from_pretrained(run).scheduler) is DDIMScheduler
    assert (config.prediction_type, config.rescale_betas_zero_snr, config.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )
    assert (config.beta_start, config.beta_schedule) == (0.00085, "scaled_linear")
    saved = json.loads((run / "scheduler/scheduler_config.json").read_text())  # which the pipeline corrects as it loads
    assert saved["clip_sample"] is False
    again = tune(tmp_path / "again", pretrained_model_name_or_path=run, max_train_steps=1)
    assert settings_of(DiffusionPipeline.from_pretrained(again)) == settings_of(DiffusionPipeline.from_pretrained(run))
    with pytest.raises(UserError, match="add --prediction_type v_prediction or sample"):
        tune(tmp_path / "refused", rescale_betas_zero_snr=True)


@pytest.mark.parametrize("objective", ["flow", "mixture", "edm", "v", "soflow"])
def test_our_pipelines(objective: str, tune: Callable[..., Path], tmp_path: Path) -> None:
    """Of pixels, for any objective: a step at the rate of zero leaves all as it is, and one at another doesn't."""
    tokenizer, recipe = tiny_tokenizer(), RECIPES[objective]
    encoder = tiny_encoder("clip", len(tokenizer))
    unet, settings = tiny_unet(3), {"prediction_type": recipe.pipeline_prediction_type}
    if recipe.target_channels:
        unet = type(unet).from_config(unet.config, in_channels=3 + recipe.target_channels)
        settings["flow_map"] = True
    source = TextToImagePipeline(unet, recipe.scheduler(), encoder, tokenizer, **settings)
    source.save_pretrained(tmp_path / "source")
    options = {"pretrained_model_name_or_path": tmp_path / "source", "max_train_steps": 1}
    still = tune(tmp_path / "still", **options, learning_rate=0.0, train_text_encoder=True)
    pipeline = TextToImagePipeline.from_pretrained(still)
    assert pipeline.config.get("prediction_type") == recipe.pipeline_prediction_type
    assert pipeline.config.get("flow_map") == settings.get("flow_map")
    assert settings_of(pipeline) == settings_of(source)
    assert all(torch.equal(a, b) for a, b in zip(pipeline.unet.parameters(), source.unet.parameters(), strict=True))
    lora = tune(tmp_path / "lora", **options, learning_rate=1e-2, rank=4)

    def drawn() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return quiet(pipeline)(PROMPTS[0], num_inference_steps=2, generator=generator, output_type="np").images

    plain = drawn()
    pipeline.load_lora_weights(lora)
    assert not np.allclose(drawn(), plain, atol=1e-3)


SCHEDULER_BETAS = {name: SCHEDULER[name] for name in ("beta_schedule", "beta_start", "beta_end")}


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_zero_snr_of_samplers_that_divide_by_alpha(scheduler: Any) -> None:
    """They keep 2^-24 of the signal where nothing should be left, and are the same process all the same."""
    trained = scheduler(**SCHEDULER_BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    objective = pretrained_objective(trained, None, TextToImageConfig(), latent=True)
    assert objective.path.zero_snr
    assert objective.sigma_data == 1.0
    kept = pretrained_scheduler(trained, objective)
    assert pretrained_objective(kept, None, TextToImageConfig(), latent=True) == objective


@pytest.mark.parametrize("ours", [False, True])
def test_the_network_is_given_what_the_pipeline_will_tell_it(ours: bool, sd: Path, tmp_path: Path) -> None:
    """Padding is text to Stable Diffusion, and nothing to our pipelines."""
    source = sd
    if ours:
        source, tokenizer = tmp_path / "source", tiny_tokenizer()
        encoder, scheduler = tiny_encoder("clip", len(tokenizer)), RECIPES["flow"].scheduler()
        TextToImagePipeline(tiny_unet(3), scheduler, encoder, tokenizer).save_pretrained(source)
    config = TextToImageConfig(
        pretrained_model_name_or_path=str(source), caption_dropout=0.0, cache_dir=str(tmp_path / "cache")
    )
    pipeline = load_source(config)
    captions = Captions(PROMPTS, np.arange(len(PROMPTS) + 1))
    _, conditioning, _ = make_trainable(config, pipeline, captions, torch.device("cpu"))
    batch = {"indices": torch.arange(len(PROMPTS))}
    states = conditioning.embed(batch, torch.Generator().manual_seed(0))["encoder_hidden_states"]
    with torch.no_grad():
        given = (pipeline.encode_prompt(PROMPTS) if ours else pipeline.encode_prompt(PROMPTS, "cpu", 1, False))[0]
    torch.testing.assert_close(states, given, atol=2e-3, rtol=0)
    assert bool(states[:, -1].any()) != ours  # the last token of such short prompts is padding


def test_losses_agree_with_the_objective(tune: Callable[..., Path], tmp_path: Path) -> None:
    """A rate of zero: the loss is that of the stock network, with the stock text and noise."""
    run = tune(tmp_path / "run", learning_rate=0.0, train_batch_size=4, max_train_steps=40, logging_steps=40)
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(run))
    shades = torch.tensor(list(COLOURS.values())).float().view(-1, 3, 1, 1).expand(-1, 3, 16, 16) / 127.5 - 1
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        x0 = pipeline.vae.encode(shades).latent_dist.mode() * pipeline.vae.config.scaling_factor
        given = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
        found = []
        for _ in range(40):
            noise = torch.randn(x0.shape, generator=generator)
            t = torch.randint(1000, (4,), generator=generator)
            x_t = pipeline.scheduler.add_noise(x0, noise, t)
            found.append((pipeline.unet(x_t, t, encoder_hidden_states=given).sample - noise).square().mean())
    assert read_metrics(run)[-1]["loss"] == pytest.approx(torch.stack(found).mean().item(), rel=0.03)


def without(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        index[part] = [None, None]
        (folder / "model_index.json").write_text(json.dumps(index))

    return change


def with_length(length: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer/tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))

    return change


def with_class(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))

    return change


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (without("tokenizer"), {}, "has no tokenizer, which training needs"),
        (lambda f: shutil.rmtree(f / "unet"), {}, "can't be loaded \\("),
        (with_length("many"), {}, "tokenizer: model_max_length: must be a number, got 'many'"),
        (lambda f: (f / "text_encoder/model.safetensors").unlink(), {}, "can't be loaded \\("),
        (lambda f: tiny_encoder("clip", 100).save_pretrained(f / "text_encoder"), {}, "and the text encoder knows 100"),
        (lambda f: tiny_unet(9).save_pretrained(f / "unet"), {}, "its unet takes 9 channels and its vae makes 4"),
        (with_class("StableDiffusionXLPipeline"), {}, "a StableDiffusionXLPipeline; known are StableDiffusionPipeline"),
        (lambda f: shutil.rmtree(f), {}, "no such folder; give one, or a name of the Hub"),
        (None, {"channels": 1}, "--channels 1: .* makes images of 3; leave it out"),
        (None, {"objective": "flow"}, "--objective: that of --pretrained_model_name_or_path .* is taken; leave it out"),
        (None, {"autoencoder": "x/y"}, "--autoencoder: that of"),
        (None, {"resolution": 17}, "--resolution 17: not a multiple of 2"),
        (None, {"pretrained_model_name_or_path": None, "rank": 4}, "--rank: needs --pretrained_model_name_or_path"),
        (None, {"use_8bit_adam": True}, r"--use_8bit_adam: .*; pip install 'snowmelt\[8bit\]'"),
        (None, {"caption_column": "image"}, "--caption_column image: holds no strings"),
    ],
)
def test_what_is_refused(
    change: Callable[[Path], Any] | None,
    options: dict,
    message: str,
    tune: Callable[..., Path],
    tmp_path: Path,
    sd: Path,
) -> None:
    source = Path(shutil.copytree(sd, tmp_path / "source"))
    if change is not None:
        change(source)
    with pytest.raises(UserError, match=message):
        tune(tmp_path / "run", **{"pretrained_model_name_or_path": source} | options)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_revision(connected: Hub, tune: Callable[..., Path], sd: Path, tmp_path: Path) -> None:
    """The network is that of the revision, the rest that of main; a rate of zero leaves both as they came."""
    api = HfApi()
    api.create_repo("alice/two")
    api.upload_folder(repo_id="alice/two", folder_path=sd)
    api.create_branch("alice/two", branch="non-ema")
    main, other = StableDiffusionPipeline.from_pretrained(sd), tmp_path / "other"
    for part in (main.unet, main.text_encoder):
        next(part.parameters()).data += 1
    main.save_pretrained(other)
    api.upload_folder(repo_id="alice/two", folder_path=other, revision="non-ema")
    options = {"pretrained_model_name_or_path": "alice/two", "learning_rate": 0.0, "max_train_steps": 1}
    run = tune(tmp_path / "run", **options, non_ema_revision="non-ema")
    for part, source in (("unet", other), ("text_encoder", sd)):
        kept, expected = (load_file(next((folder / part).glob("*.safetensors"))) for folder in (run, source))
        assert kept.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in kept.items())
    with pytest.raises(UserError, match="--non_ema_revision no-such of .* alice/two: can't be loaded") as raised:
        tune(tmp_path / "refused", **options, non_ema_revision="no-such")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("column", [["a cat", None, ""], [None, "", " "]])
def test_empty_captions(column: list, tune: Callable[..., Path], tmp_path: Path) -> None:
    images = [Image.new("RGB", (16, 16))] * 3
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": images, "text": column}, features=features).save_to_disk(tmp_path / "data")
    empty = sum(not (text or "").strip() for text in column)
    with pytest.raises(UserError, match=f"--caption_column text: {empty} of 3 rows have no caption"):
        tune(tmp_path / "run", dataset_name=tmp_path / "data")


def test_a_checkpoint_of_lora_loads_as_diffusers_own(tune: Callable[..., Path], sd: Path, tmp_path: Path) -> None:
    run = tune(tmp_path / "run", rank=2, learning_rate=1e-2, max_train_steps=2, checkpointing_steps=2)
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(sd, safety_checker=None))

    def drawn() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipeline(PROMPTS[0], num_inference_steps=2, generator=generator, output_type="np").images

    plain = drawn()
    pipeline.load_lora_weights(run / "checkpoint-2")
    changed = drawn()
    assert not np.allclose(changed, plain, atol=1e-3)
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(run)
    assert np.allclose(drawn(), changed)


def test_images_of_each_validation_prompt(tune: Callable[..., Path], tmp_path: Path) -> None:
    options = {"validation_prompts": ["a red cat", "a blue cat"], "num_validation_images": 2, "max_train_steps": 1}
    run = tune(tmp_path / "run", **options)
    prompts = (run / "samples/prompts.txt").read_text().splitlines()
    assert prompts == ["a red cat", "a red cat", "a blue cat", "a blue cat"]


@pytest.mark.parametrize("rank", [None, 2])
def test_published(rank: int | None, tune: Callable[..., Path], sd: Path, tmp_path: Path) -> None:
    """Without the place that it came from, and with the name of that on the Hub."""
    run = tune(tmp_path / "run", rank=rank)
    facts = json.loads((run / "run.json").read_text())
    assert "pretrained_model_name_or_path" not in facts["config"]
    facts["config"]["pretrained_model_name_or_path"] = "alice/base"  # as if it had come from there
    (run / "run.json").write_text(json.dumps(facts))
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out", "alice/cats", license="mit")
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not [p for p in files if str(tmp_path).encode() in p.read_bytes() or str(sd).encode() in p.read_bytes()]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.base_model, card.data.pipeline_tag) == ("alice/base", "text-to-image")
    assert ("lora" in card.data.tags) == bool(rank)
    assert "begun from | `alice/base`" in card.text
    pipeline = DiffusionPipeline.from_pretrained(sd if rank else tmp_path / "out", safety_checker=None)
    if rank:
        assert {p.name for p in files if p.suffix == ".safetensors"} == {"pytorch_lora_weights.safetensors"}
        assert 'DiffusionPipeline.from_pretrained("alice/base")' in card.text
        assert 'pipeline.load_lora_weights("alice/cats")' in card.text
        pipeline.load_lora_weights(tmp_path / "out")
    else:
        assert "It is a `StableDiffusionPipeline` of diffusers itself" in card.text
    assert quiet(pipeline)("a cat", num_inference_steps=1, height=16, width=16).images[0].size == (16, 16)
    if rank:
        with pytest.raises(UserError, match="--stock_pipeline: these are LoRA matrices, which any pipeline loads"):
            export(run, tmp_path / "out", "alice/cats", stock_pipeline=True)
