"""train_text2img.py --placeholder_token: on a tiny Stable Diffusion, and on models of our own."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines import TextToImagePipeline, image_generators
from snowmelt.config import parse
from snowmelt.errors import UserError
from snowmelt.objectives import RECIPES, StepContext
from snowmelt.publishing.export import export
from snowmelt.tasks.textual_inversion import TextualInversionTask
from snowmelt.text.options import TextToImageConfig
from snowmelt.text.prompt_templates import OBJECT, STYLE
from snowmelt.text.textual_inversion import ExtendedEmbedding
from tests.conftest import run_in_process, trained
from tests.pipelines import test_text2img
from tests.pipelines.models import quiet
from tests.test_resume import interrupted
from tests.text.models import tiny_encoder, tiny_tokenizer
from tests.text.stable_diffusion import tiny_sd, tiny_unet

OF_DIFFUSERS = """
    --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --train_data_dir cat
    --learnable_property object --placeholder_token <cat-toy> --initializer_token toy --resolution 512
    --train_batch_size 1 --gradient_accumulation_steps 4 --max_train_steps 3000 --learning_rate 5.0e-04 --scale_lr
    --lr_scheduler constant --lr_warmup_steps 0 --num_vectors 2 --output_dir textual_inversion_cat
"""
FILE = "learned_embeds.safetensors"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plain red images, without captions."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(2):
        Image.new("RGB", (16, 16), (255 - n, 0, 0)).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its network is untrained, and made to heed what a prompt says all the same."""
    unet = tiny_unet(4)
    for name, parameter in unet.named_parameters():
        if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
            parameter.data *= 5
    return tiny_sd(tmp_path_factory.mktemp("sd"), unet=unet)


@pytest.fixture(scope="module")
def invert(train: Callable[..., Path], photos: Path, sd: Path) -> Callable[..., Path]:
    usual = {
        "script": "train_text2img",
        "pretrained_model_name_or_path": sd,
        "train_data_dir": photos,
        "dataset_name": None,
        "class_conditional": None,
        "model_config_name_or_path": None,
        "resolution": 16,
        "lr_warmup_steps": 0,
        "learning_rate": 0.1,
        "train_batch_size": 4,
        "placeholder_token": "<x>",
        "initializer_token": "cat",
        "eval_batch_size": 2,
        "ddpm_num_inference_steps": 2,
    }
    return lambda folder, **options: train(folder, **usual | options)


def test_the_command_line_of_diffusers() -> None:
    defaults = {"defaults_with": ("pretrained_model_name_or_path", "finetune")}
    config = parse(TextToImageConfig, shlex.split(OF_DIFFUSERS), **defaults)
    assert (config.placeholder_token, config.num_vectors, config.scale_lr) == ("<cat-toy>", 2, True)
    assert config.shared_captions == [text.format("<cat-toy>") for text in OBJECT]
    config = parse(TextToImageConfig, [*shlex.split(OF_DIFFUSERS), "--learnable_property", "style"], **defaults)
    assert config.shared_captions == [text.format("<cat-toy>") for text in STYLE]


def test_an_extended_table_is_a_longer_one() -> None:
    torch.manual_seed(0)
    known, learned = torch.nn.Embedding(7, 4), torch.randn(2, 4)
    table = ExtendedEmbedding(known, learned, 5, "<x>")  # the rows 5 and 6 are of no token
    whole = torch.nn.Embedding.from_pretrained(torch.cat([known.weight[:5], learned]), freeze=False)
    ids, factor = torch.tensor([[0, 5, 4], [6, 6, 1]]), torch.randn(2, 3, 4)
    assert torch.equal(table(ids), whole(ids))
    for module in (table, whole):
        (module(ids) * factor).sum().backward()
    assert torch.equal(table.learned.grad, whole.weight.grad[5:])
    assert known.weight.grad is None


def test_it_learns_a_word_and_nothing_else(
    invert: Callable[..., Path], sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    make = TextualInversionTask.make
    monkeypatch.setattr(TextualInversionTask, "make", lambda *given: seen.append(make(*given)) or seen[-1])
    run = invert(tmp_path / "run", max_train_steps=30)
    before = StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    source = seen[0].source
    for name in ("unet", "vae"):
        after = dict(getattr(source, name).named_parameters())
        assert all(torch.equal(value, after[key]) for key, value in getattr(before, name).named_parameters())
    after = {key.replace(".known.", "."): value for key, value in source.text_encoder.named_parameters()}
    assert all(torch.equal(value, after.pop(key)) for key, value in before.text_encoder.named_parameters())
    ((name, learned),) = after.items()
    assert name.endswith(".learned")
    saved = load_file(run / FILE)
    assert list(saved) == ["<x>"]
    assert torch.equal(saved["<x>"], learned)
    cat = before.text_encoder.get_input_embeddings().weight[before.tokenizer("cat", add_special_tokens=False).input_ids]
    assert learned.shape == cat.shape
    assert not torch.allclose(learned, cat, atol=0.1)
    task, batch = seen[0], {"image": torch.from_numpy(seen[0].data.gather(np.zeros(64, int), None))}
    batch["indices"], net = torch.zeros(64, dtype=torch.long), seen[0].module(seen[0].networks)
    assert not any(module.training for module in net.train().modules())
    with torch.no_grad():  # of one batch, as it was before and as it is now
        now = task.loss(batch, StepContext(net, torch.Generator().manual_seed(1), 0, 0)).loss.mean()
        learned.copy_(cat)
        then = task.loss(batch, StepContext(net, torch.Generator().manual_seed(1), 0, 0)).loss.mean()
    assert now < then - 0.002, (now, then)
    assert {path.name for path in run.iterdir() if path.is_dir()} >= {"samples"}
    assert not {"unet", "text_encoder", "tokenizer"} & {path.name for path in run.iterdir()}


def test_a_rate_of_zero_leaves_the_initial_word(invert: Callable[..., Path], sd: Path, tmp_path: Path) -> None:
    run = invert(tmp_path / "run", learning_rate=0.0, num_vectors=2)
    pipeline = StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    (row,) = pipeline.tokenizer("cat", add_special_tokens=False).input_ids
    expected = pipeline.text_encoder.get_input_embeddings().weight[row].expand(2, -1)
    assert torch.equal(load_file(run / FILE)["<x>"], expected)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_diffusers_draws_what_validation_drew(
    num_vectors: int, invert: Callable[..., Path], sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prompts = ["a <x>", "a photo of two <x>"]
    given = {"num_vectors": num_vectors, "use_ema": num_vectors == 1, "validation_prompts": prompts}
    run = invert(tmp_path / "run", **given, learning_rate=1.0, max_train_steps=4, checkpointing_steps=4)
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(sd, safety_checker=None))

    def images(**texts: Any) -> np.ndarray:
        call = {"num_inference_steps": 2, "generator": image_generators(0, range(2)), "height": 16, "width": 16}
        made = pipeline(**texts, **call).images
        return np.concatenate([np.asarray(image) for image in made], 1)

    unknown = images(prompt=prompts)
    pipeline.load_textual_inversion(run)
    ours = images(prompt=prompts)
    drawn = np.asarray(Image.open(run / "samples" / "step-000004.png"))
    kept = np.concatenate([drawn[:, :16], drawn[:, -16:]], 1)  # without the gap between them
    assert np.abs(ours.astype(int) - kept).max() <= 1
    assert not np.array_equal(ours, unknown)
    pipeline.unload_textual_inversion()
    pipeline.load_textual_inversion(run / "checkpoint-4")
    assert np.array_equal(images(prompt=prompts), ours)
    printed = capsys.readouterr().out
    code = printed[printed.index("from diffusers import") :].replace("sample.png", str(tmp_path / "sample.png"))
    exec(code.replace("steps=50", "steps=1"), {})
    assert Image.open(tmp_path / "sample.png").size == (16, 16)


@pytest.mark.parametrize("use_ema", [False, True])
def test_resume_is_exact(use_ema: bool, invert: Callable[..., Path], tmp_path: Path) -> None:
    options = {"use_ema": use_ema, "num_vectors": 2, "max_train_steps": 4, "checkpointing_steps": 1}
    options |= {"gradient_checkpointing": True, "random_flip": True}
    whole = invert(tmp_path / "whole", **options)
    kept = load_file(whole / "checkpoint-2" / "text_encoder" / "trained.safetensors")
    assert [tuple(value.shape) for value in kept.values()] == [(2, 32)]
    resumed = interrupted(whole, 2, tmp_path / "resumed")
    invert(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=2) == trained(whole, since=2)


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_models_of_our_own(kind: str, invert: Callable[..., Path], tmp_path: Path) -> None:
    """Of pixels, masked padding, and a table that is longer than the tokenizer, as T5's is."""
    tokenizer = tiny_tokenizer()
    encoder = tiny_encoder(kind, len(tokenizer) + (8 if kind == "t5" else 0))
    source = TextToImagePipeline(tiny_unet(3), RECIPES["flow"].scheduler(), encoder, tokenizer)
    source.save_pretrained(tmp_path / "source")
    run = invert(
        tmp_path / "run",
        pretrained_model_name_or_path=tmp_path / "source",
        num_vectors=2,
        learning_rate=1.0,
        resolution=8,
        validation_prompts=["a <x>"],
    )
    pipeline = quiet(TextToImagePipeline.from_pretrained(tmp_path / "source"))

    def drawn() -> np.ndarray:
        return np.asarray(pipeline("a <x>", num_inference_steps=2, generator=image_generators(0, [0])).images[0])

    plain = drawn()
    pipeline.load_textual_inversion(run)
    assert not np.array_equal(drawn(), plain)
    one, two = (pipeline.encode_prompt(prompt)[1].sum() for prompt in ("a cat", "a <x>"))
    assert two == one + 1  # both tokens of the word
    kept = np.asarray(Image.open(run / "samples" / "step-000002.png"))
    assert np.abs(drawn().astype(int) - kept).max() <= 1
    save_file({"<y>": load_file(run / FILE)["<x>"]}, tmp_path / "y.safetensors")
    words = ["--model", str(tmp_path / "source"), "--num_images", "1", "--num_inference_steps", "2"]
    words += ["--textual_inversion", str(tmp_path / "y.safetensors"), str(run), "--output_dir", str(tmp_path / "out")]
    run_in_process([*words, "--prompt", "a <x>"], "generate")
    assert np.abs(drawn().astype(int) - np.asarray(Image.open(tmp_path / "out" / "000000.png"))).max() <= 1
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert len(settings["words_weights"]) == 2
    save_file({"<x>": torch.zeros(2, 32)}, run / FILE)
    with pytest.raises(UserError, match="--output_dir: .* made with other words weights; give another folder"):
        run_in_process([*words, "--prompt", "a <x>"], "generate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initializer_token": None}, "^--placeholder_token: begins as a known word; name it by --initializer_token"),
        ({"placeholder_token": None}, "^--initializer_token: is of --placeholder_token; give that too"),
        ({"placeholder_token": None, "initializer_token": None, "num_vectors": 2}, "^--num_vectors: is of --placehold"),
        ({"placeholder_token": "a b"}, "^--placeholder_token 'a b': must be one word"),
        ({"placeholder_token": "cat</w>"}, "^--placeholder_token cat</w>: cat</w> is in the vocabulary already"),
        ({"initializer_token": "toy"}, "^--initializer_token 'toy': must be one token of the .* and is 3 "),
        ({"initializer_token": "   "}, "^--initializer_token '   ': must be one token of the .* and is 0 .nothing."),
        ({"num_vectors": 16}, "^--placeholder_token <x>: its 16 tokens aren't all in any .* takes 16 tokens; take"),
        ({"num_vectors": 0}, "^--num_vectors: must be at least 1"),
        ({"rank": 4}, "^--rank: not with --placeholder_token, which trains new embeddings alone"),
        ({"train_text_encoder": True}, "^--train_text_encoder: not with --placeholder_token"),
        ({"instance_prompt": "a cat"}, "^--instance_prompt: not with --placeholder_token"),
        ({"caption_column": "text"}, "^--caption_column: not with --placeholder_token"),
        ({"pretrained_model_name_or_path": None}, "^--placeholder_token: needs --pretrained_model_name_or_path"),
    ],
)
def test_what_is_refused(options: dict, message: str, invert: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        invert(tmp_path / "run", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_words_that_cannot_be_loaded(invert: Callable[..., Path], tmp_path: Path) -> None:
    test_text2img.make().save_pretrained(tmp_path / "model")
    save_file({"<x>": torch.zeros(1, 5)}, tmp_path / "narrow.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("narrow.safetensors", "text.safetensors", "missing.safetensors"):
        words = ["--model", str(tmp_path / "model"), "--prompt", "a", "--textual_inversion", str(tmp_path / name)]
        with pytest.raises(UserError, match=f"^--textual_inversion .*{name}: can't be loaded") as raised:
            run_in_process([*words, "--output_dir", str(tmp_path / "out")], "generate")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_published(invert: Callable[..., Path], sd: Path, tmp_path: Path) -> None:
    run = invert(tmp_path / "run", num_vectors=2)
    facts = json.loads((run / "run.json").read_text())
    facts["config"]["pretrained_model_name_or_path"] = "alice/base"
    (run / "run.json").write_text(json.dumps(facts))
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out", "alice/x")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "textual_inversion" in card.data.tags
    assert card.data.base_model == "alice/base"
    assert 'pipeline.load_textual_inversion("alice/x")' in card.text
    assert 'pipeline("a photo of a <x>", num_inference_steps=50)' in card.text
    assert "embeddings of a new word of 64 parameters" in card.text
    assert "| new word | `<x>`, 2 tokens begun as `cat`: the object that" in card.text
    pipeline = quiet(DiffusionPipeline.from_pretrained(sd, safety_checker=None))
    pipeline.load_textual_inversion(tmp_path / "out")
    assert pipeline("a <x>", num_inference_steps=1, height=16, width=16).images[0].size == (16, 16)
