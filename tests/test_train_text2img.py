"""train_text2img.py at tiny size: what it leaves, that it resumes exactly, what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines import TextToImagePipeline
from snowmelt.data.embedded import EMBEDDED
from snowmelt.data.scenes.dataset import scenes
from snowmelt.errors import UserError
from snowmelt.evaluation import validation
from snowmelt.evaluation.generation import draw
from snowmelt.text.caption_conditioning import CaptionConditioning
from snowmelt.text.prompt_grids import captioned_grid
from snowmelt.tracking import read_metrics
from tests.autoencoders import tiny_vae
from tests.conftest import trained
from tests.evaluation.vision import save_clip
from tests.pipelines.models import quiet
from tests.test_resume import interrupted
from tests.text.models import save_pretrained

TINY_UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "dropout": 0.1,  # so that runs agree only if the network's own randomness does
}
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 plain images, each with two captions."""
    rows = [(name, shade) for name, shade in COLOURS.items() for _ in range(6)]
    images = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for _, shade in rows]
    texts = [[f"a {name} picture", f"all is {name}, number {i}"] for i, (name, _) in enumerate(rows)]
    folder = tmp_path_factory.mktemp("pictures")
    datasets.Dataset.from_dict({"image": images, "captions": texts}).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(TINY_UNET))
    return path


@pytest.fixture
def fit(train: Callable[..., Path], photos: Path, config: Path) -> Callable[..., Path]:
    """A run on the images; options replace the usual ones."""
    usual = {
        "dataset_name": photos,
        "class_conditional": None,
        "model_config_name_or_path": config,
        "text_hidden_size": 64,
        "text_layers": 1,
        "vocab_size": 560,
        "caption_dropout": 0.3,
        "eval_batch_size": 3,
    }
    return lambda folder, **options: train(folder, script="train_text2img", **usual | options)


RESUMED = {
    "max_train_steps": 6,
    "checkpointing_steps": 1,
    "gradient_accumulation_steps": 2,
    "random_flip": True,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "learning_rate": 1e-3,
}


@pytest.mark.parametrize(
    "variant", ["trained encoder", "bf16, no average", "frozen encoder", "latents", "soflow", "meanflow"]
)
def test_resume_is_exact(variant: str, fit: Callable[..., Path], tmp_path: Path) -> None:
    options = dict(RESUMED)
    if variant == "bf16, no average":
        options |= {"mixed_precision": "bf16", "use_ema": False}
    if variant == "frozen encoder":
        options |= {"text_encoder": save_pretrained(tmp_path / "clip")}
    if variant == "latents":
        tiny_vae("vq").save_pretrained(tmp_path / "vae")
        options |= {"autoencoder": tmp_path / "vae", "resolution": 16}
    if variant in ("soflow", "meanflow"):
        options |= {"objective": variant}
    whole = fit(tmp_path / "whole", **options)
    resumed = interrupted(whole, 4, tmp_path / "resumed")
    fit(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=4) == trained(whole, since=4)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(whole)]


WATCH = {"validation_share": 0.25, "eval_steps": 1, "lr_scheduler": "constant", "lr_warmup_steps": 0}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations that take less time."""
    monkeypatch.setattr(validation, "LEAST", 16)


def evaluations(run: Path) -> list[dict]:
    """What metrics.jsonl tells of them."""
    lines = [{k: v for k, v in line.items() if k.startswith("eval_") or k == "step"} for line in read_metrics(run)]
    return [line for line in lines if len(line) > 1]


@pytest.fixture
def captions_seen(monkeypatch: pytest.MonkeyPatch) -> dict[float, list[list[str]]]:
    """The captions that are drawn from now on, by the rate at which they are dropped."""
    seen: dict[float, list[list[str]]] = {}
    draw = CaptionConditioning.draw

    def watched(self: CaptionConditioning, indices: torch.Tensor, seed: int) -> np.ndarray:
        rows = draw(self, indices, seed)
        seen.setdefault(self.dropout, []).append([self.texts[row] for row in rows])
        return rows

    monkeypatch.setattr(CaptionConditioning, "draw", watched)
    return seen


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("frozen", [False, True])
def test_held_out_loss(
    frozen: bool, fit: Callable[..., Path], captions_seen: dict[float, list[list[str]]], tmp_path: Path
) -> None:
    """Of images that aren't trained on, by their captions, none dropped; of the same weights always the same."""
    encoder = {"text_encoder": save_pretrained(tmp_path / "clip")} if frozen else {}
    run = fit(tmp_path / "run", **WATCH, **encoder, learning_rate=0.0, use_ema=False, max_train_steps=3)
    lines = evaluations(run)
    assert [line.pop("step") for line in lines] == [1, 2, 3]
    assert lines[0] == lines[1] == lines[2]
    assert lines[0].keys() == {"eval_loss", *(f"eval_loss_q{q}" for q in range(1, 5))}
    assert json.loads((run / "run.json").read_text())["num_images"] == 18
    assert {*captions_seen} == {0.0, 0.3}
    held_out = captions_seen[0.0]
    assert held_out[:2] == held_out[2:4] == held_out[4:6]
    assert "" not in held_out[0] + held_out[1]

    def numbers(parts: list[list[str]]) -> set[str]:
        return {text.split()[-1] for part in parts for text in part if "number" in text}

    assert numbers(held_out)
    assert not numbers(held_out) & numbers(captions_seen[0.3])
    best = json.loads((run / "best/validation.json").read_text())
    assert (best["step"], best["metric"]) == (1, "eval_loss")
    assert (run / "evaluation.png").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_resume_is_exact_while_watched(fit: Callable[..., Path], tmp_path: Path) -> None:
    """The best step, patience and all that is trained; and to watch a split changes no step."""
    options = WATCH | {"checkpointing_steps": 1, "learning_rate": 0.02, "patience": 5}
    whole = fit(tmp_path / "whole", **options, max_train_steps=5)
    parts = fit(tmp_path / "parts", **options, max_train_steps=3)
    fit(parts, **options, max_train_steps=5, resume_from_checkpoint="latest")
    for name in ("step-000003.png", "prompts.png"):
        (parts / "samples" / name).unlink()
    (whole / "samples/prompts.png").unlink()
    assert trained(parts) == trained(whole)
    assert evaluations(parts) == evaluations(whole)
    assert len(evaluations(whole)) == 5


@pytest.mark.usefixtures("short")
def test_metrics_of_samples_by_held_out_captions(
    fit: Callable[..., Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them decides; the best model is a pipeline that loads."""
    asked = []
    monkeypatch.setattr(validation, "draw", lambda *a, **k: asked.append(k["prompts"]) or draw(*a, **k))
    rows = datasets.load_from_disk(photos).map(
        lambda row, i: {"captions": [f"{row['captions'][0]} {i % 2}"]}, with_indices=True
    )
    saved = {"train": rows.select(range(0, 24, 2)), "test": rows.select(range(1, 24, 2))}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "data")
    clip = save_clip(tmp_path / "clip")
    run = fit(
        tmp_path / "run",
        **WATCH | {"validation_share": None, "validation_split": "test", "dataset_name": tmp_path / "data"},
        eval_metrics=["clip_score", "fd"],
        eval_features=clip,
        eval_clip_model_name_or_path=clip,
        eval_num_images=6,
        learning_rate=1e-2,
    )
    lines = evaluations(run)
    assert [*lines[0]][:4] == ["step", "eval_clip_score", "eval_fd", "eval_loss"]
    assert asked == 2 * [[f"a {colour} picture 1" for colour in ("red", "red", "green", "blue", "blue", "white")][:6]]
    best = json.loads((run / "best/validation.json").read_text())
    assert best["value"] == max(line["eval_clip_score"] for line in lines)
    weights = load_file(run / "best/text_encoder/model.safetensors")
    if best["step"] == 2:
        last = load_file(run / "text_encoder/model.safetensors")
        assert all(torch.equal(value, last[name]) for name, value in weights.items())
    assert TextToImagePipeline.from_pretrained(run / "best").text_encoder is not None


@pytest.mark.filterwarnings("ignore:prompt of")
def test_alignment_decides(fit: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDED, "scenes", lambda: scenes(12))
    options = {"dataset_name": "scenes", "resolution": 16, "eval_steps": 2, "eval_metrics": ["alignment"]}
    run = fit(tmp_path / "run", **options, eval_num_images=4)
    assert [*evaluations(run)[0]] == ["step", "eval_alignment_seen", "eval_alignment_held_out"]
    assert json.loads((run / "best/validation.json").read_text())["metric"] == "eval_alignment_seen"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": 0.25}, "--validation_share: needs --eval_steps"),
        ({"eval_steps": 1}, "--eval_steps: needs --validation_share 0.05, --validation_split or --eval_metrics"),
        ({"eval_steps": 1, "validation_split": "train[:3]"}, r"--validation_split train\[:3\]: is trained on"),
        ({"eval_steps": 1, "validation_split": "test"}, "--validation_split test: .* has train"),
        ({"eval_steps": 1, "eval_metrics": ["fdd"]}, "--eval_metrics: invalid choice: 'fdd'"),
        ({"eval_steps": 1, "eval_metrics": ["alignment"]}, "--eval_metrics alignment: is read off images of the embe"),
        ({"eval_steps": 1, "eval_metrics": ["fd"]}, "--eval_features classifier: needs classes to tell apart"),
        (
            {"eval_steps": 1, "eval_metrics": ["clip_score"], "eval_clip_model_name_or_path": "/no/thing"},
            "--eval_clip_model_name_or_path /no/thing: transformers can't load",
        ),
    ],
)
def test_evaluations_that_are_refused(options: dict, message: str, fit: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        fit(tmp_path / "run", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_a_run_leaves(fit: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = fit(tmp_path / "run", validation_prompts=["a red picture", "all is blue"])
    pipeline = quiet(TextToImagePipeline.from_pretrained(run))
    assert pipeline.vae is None
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size == 64
    assert pipeline.tokenizer.model_max_length == pipeline.text_encoder.config.max_position_embeddings
    assert "number" in pipeline.tokenizer.decode(pipeline.tokenizer("number")["input_ids"])
    assert (run / "samples/prompts.txt").read_text() == "a red picture\nall is blue\n"
    grid = np.asarray(Image.open(run / "samples/step-000002.png"))  # two of 8 pixels and what is between them
    assert grid.shape == (8, 18, 3)
    captioned = captioned_grid(np.stack([grid[:, :8], grid[:, 10:]]), ["a red picture", "all is blue"])
    assert np.array_equal(Image.open(run / "samples/prompts.png"), captioned)
    printed = capsys.readouterr().out
    call = printed[printed.index("from pipelines import") :]
    assert "pipeline('a red picture', num_inference_steps=50)" in call
    code = call.replace("sample.png", str(tmp_path / "sample.png")).replace("steps=50", "steps=2")
    exec(code, {})
    assert Image.open(tmp_path / "sample.png").size == (8, 8)


def test_both_networks_learn(fit: Callable[..., Path], tmp_path: Path) -> None:
    run = fit(tmp_path / "run", checkpointing_steps=1, learning_rate=1e-2, lr_warmup_steps=0)
    for part in ("unet", "text_encoder", "unet_ema", "text_encoder_ema"):
        first, last = (load_file(next((run / f"checkpoint-{s}" / part).glob("*.safetensors"))) for s in (1, 2))
        changed = [name for name, value in first.items() if not torch.equal(value, last[name])]
        assert len(changed) > 0.9 * len(first), part


def test_a_frozen_encoder_is_left_as_it_is(fit: Callable[..., Path], tmp_path: Path) -> None:
    encoder = save_pretrained(tmp_path / "t5", "t5")
    run = fit(tmp_path / "run", text_encoder=encoder, learning_rate=1e-2)
    before, after = (load_file(folder / "model.safetensors") for folder in (encoder, run / "text_encoder"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not (run / "checkpoint-2" / "text_encoder").exists()
    images = quiet(TextToImagePipeline.from_pretrained(run))("a red picture", num_inference_steps=2).images
    assert images[0].size == (8, 8)


def test_prompts_are_captions_unless_given(fit: Callable[..., Path], tmp_path: Path) -> None:
    run = fit(tmp_path / "run")
    assert (run / "samples/prompts.txt").read_text() == "a red picture\n" * 3


@pytest.mark.slow
def test_a_few_colours_are_learned(fit: Callable[..., Path], tmp_path: Path) -> None:
    """What the prompt says decides: every part does its work."""
    run = fit(
        tmp_path / "run",
        max_train_steps=100,
        train_batch_size=16,
        learning_rate=1e-2,
        lr_warmup_steps=10,
        caption_dropout=0.1,
        objective="mixture",
        ema_max_decay=0.95,
        logging_steps=100,
    )
    pipeline = quiet(TextToImagePipeline.from_pretrained(run))
    prompts = [f"a {name} picture" for name in COLOURS]
    images = pipeline(
        prompts, num_inference_steps=10, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    expected = np.array(list(COLOURS.values())) / 255
    nearest = [int(np.abs(expected - image.mean((0, 1))).sum(1).argmin()) for image in images]
    assert nearest == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_column": "label"}, "--caption_column label: no such column; columns of text: captions"),
        ({"text_encoder": "/nowhere/at/all"}, "--text_encoder /nowhere/at/all: no text encoder there"),
        ({"text_hidden_size": 100}, "--text_hidden_size 100: must be a multiple of 64"),
        ({"resolution": 9}, "--resolution 9: this network divides it by 2; take 8 or 10"),
        ({"dataset_name": "digits"}, "no column holds captions; columns of text: none; all columns: image, label"),
    ],
)
def test_what_is_refused(options: dict, message: str, fit: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fit(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_configuration_of_another_network(fit: Callable[..., Path], tmp_path: Path, config: Path) -> None:
    other = tmp_path / "config.json"
    other.write_text(config.read_text().replace("UNet2DConditionModel", "UNet2DModel"))
    with pytest.raises(UserError, match="describes no UNet2DConditionModel"):
        fit(tmp_path / "run", model_config_name_or_path=other)


def test_overwriting(fit: Callable[..., Path], tmp_path: Path) -> None:
    run = fit(tmp_path / "run")
    (run / "notes.txt").write_text("mine")
    shutil.rmtree(run / "unet")
    fit(run, overwrite_output_dir=True, max_train_steps=1)
    assert (run / "notes.txt").exists()
    assert {p.name for p in run.glob("checkpoint-*")} == {"checkpoint-1"}
    assert (run / "text_encoder").is_dir()
