"""train_text2img.py on captions that encode.py has encoded: as on those that are encoded when training begins."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session
from safetensors.torch import load_file
from torch.testing import assert_close

from pipelines import TextToImagePipeline
from snowmelt.data import latent_cache
from snowmelt.data.captions import load_captioned
from snowmelt.data.encoded import find_encoded
from snowmelt.data.held_out import load_captioned_splits
from snowmelt.data.loader import batch_of
from snowmelt.errors import UserError
from snowmelt.evaluation import validation
from snowmelt.options import DataOptions, HeldOutOptions
from snowmelt.text.encoded_conditioning import conditioning_of
from snowmelt.text.pretrained_encoder import fingerprint_of, load_text_encoder
from snowmelt.tracking import read_metrics
from tests.autoencoders import tiny_vae
from tests.conftest import ROOT, trained
from tests.data.shards import png
from tests.data.test_encoded import encode
from tests.pipelines.test_transformer import tiny_pixart
from tests.test_resume import interrupted
from tests.test_train_text2img import TINY_UNET
from tests.text.models import CAPTIONS, save_pretrained, tiny_encoder
from tests.text.stable_diffusion import tiny_sd, tiny_unet

pytest_plugins = ["tests.hub"]
SIDE, COUNT = 16, 330  # two row groups


def texts(row: int) -> list[str]:
    return [f"{CAPTIONS[(row + n) % 4]} {n}" for n in range(1 + row % 3)]


def write_set(folder: Path) -> Path:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    images = [{"bytes": png(n, SIDE), "path": None} for n in range(COUNT)]
    columns = {"image": images, "text": [*map(texts, range(COUNT))]}
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Where parts and data are, and the configuration of a network."""
    folder = tmp_path_factory.mktemp("given")
    tiny_vae("sd").save_pretrained(folder / "vae")
    (folder / "config.json").write_text(json.dumps(TINY_UNET))
    return {
        "data": write_set(folder / "set"),
        "autoencoder": folder / "vae",
        "clip": save_pretrained(folder / "clip"),
        "t5": save_pretrained(folder / "t5", "t5"),
        "sd": tiny_sd(folder / "sd"),
        "config": folder / "config.json",
        "cache_dir": folder / "cache",
    }


def encode_with(folder: Path, given: dict[str, Any], **parts: object) -> Path:
    options = {
        "train_data_dir": given["data"],
        "resolution": SIDE,
        "center_crop": True,
        "cache_dir": given["cache_dir"],
    }
    return encode(folder, options | parts)


@pytest.fixture(scope="module")
def encoded(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoded for models from scratch, by CLIP and by T5, and for fine-tuning."""
    root = tmp_path_factory.mktemp("encoded")
    return {name: encode_with(root / name, given, **parts_of(name, given)) for name in ("clip", "t5", "sd")}


def parts_of(name: str, given: dict[str, Any]) -> dict[str, object]:
    """What encodes for such models."""
    if name == "sd":
        return {"pretrained_model_name_or_path": given["sd"]}
    return {"autoencoder": given["autoencoder"], "text_encoder": given[name]}


@pytest.mark.parametrize("kind", ["clip", "t5", "sd"])
def test_networks_see_the_same_bits(given, encoded, kind):
    """As captions that are encoded when training begins, drawn and dropped alike."""
    options = {"resolution": SIDE, "cache_dir": str(given["cache_dir"])}
    _, cached = load_captioned(
        DataOptions(train_data_dir=str(given["data"]), center_crop=True, **options), "text", skip_empty=False
    )
    config = HeldOutOptions(train_data_dir=str(encoded[kind]), **options)
    (latents, streamed), _ = load_captioned_splits(
        config, None, skip_empty=False, encoded=find_encoded(config, str(given["autoencoder"]))
    )
    rows = np.random.default_rng(0).permutation(COUNT)[:64]
    batch = batch_of({"image": latents}, rows, labels=False, random_flip=False, device=torch.device("cpu"))
    network: Any = tiny_unet(4) if kind == "sd" else tiny_pixart()
    found = []
    for captions in (cached, streamed):
        text_encoder, tokenizer = load_text_encoder(str(given[kind]))
        conditioning = conditioning_of(captions, 0.3)
        if kind != "sd":
            conditioning.fit(tokenizer, text_encoder)
        conditioning.tabulate(tokenizer, network, text_encoder, given["cache_dir"], masked=kind != "sd")
        found.append(conditioning.embed(batch, torch.Generator().manual_seed(5)))
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    assert len(ours) == (1 if kind == "sd" else 2)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["encoder_hidden_states"].dtype == torch.float32


@pytest.fixture
def usual(given: dict[str, Any], encoded: dict[str, Path]) -> dict[str, Any]:
    """Options of a run on what CLIP has encoded."""
    return {
        "dataset_name": None,
        "train_data_dir": encoded["clip"],
        "autoencoder": given["autoencoder"],
        "text_encoder": given["clip"],
        "class_conditional": None,
        "model_config_name_or_path": given["config"],
        "resolution": SIDE,
        "caption_dropout": 0.3,
        "eval_batch_size": 3,
        "learning_rate": 1e-3,
        "shuffle_buffer_size": 64,
        "cache_dir": given["cache_dir"],
    }


@pytest.fixture
def fit(train: Callable[..., Path], usual: dict[str, Any]) -> Callable[..., Path]:
    """A run on what CLIP has encoded; options replace the usual ones."""
    return lambda folder, **options: train(folder, script="train_text2img", **usual | options)


TUNED = dict.fromkeys(("autoencoder", "text_encoder", "model_config_name_or_path")) | {"lr_warmup_steps": 0}


def of_kind(kind: str, given: dict[str, Any], encoded: dict[str, Path]) -> dict[str, Any]:
    """Options of a kind of training."""
    if kind.startswith("sd"):
        source = {"pretrained_model_name_or_path": given["sd"], "train_data_dir": encoded["sd"]}
        return TUNED | source | {"rank": 2 if kind == "sd, LoRA" else None}
    if kind == "pixart, T5":
        parts = {"train_data_dir": encoded["t5"], "text_encoder": given["t5"], "model_config_name_or_path": None}
        return parts | {"backbone": "pixart", "model_size": "tiny"}
    return {"objective": kind}


KINDS = ["flow", "epsilon", "pixart, T5", "sd", "sd, LoRA"]


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(fit, given, encoded, tmp_path, kind):
    options = of_kind(kind, given, encoded) | {"max_train_steps": 3, "checkpointing_steps": 1}
    whole = fit(tmp_path / "whole", **options)
    assert (whole / "samples" / "prompts.txt").read_text().splitlines() == [texts(row)[0] for row in range(3)]
    resumed = interrupted(whole, 2, tmp_path / "resumed")
    fit(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=2) == trained(whole, since=2)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(whole)]
    if kind == "sd":
        assert StableDiffusionPipeline.from_pretrained(whole, safety_checker=None).tokenizer.model_max_length == 16
    elif kind == "flow":
        assert TextToImagePipeline.from_pretrained(whole).tokenizer.model_max_length == 9


@pytest.mark.parametrize("kind", ["flow", "pixart, T5", "sd"])
def test_losses_are_those_of_the_images(fit, given, encoded, tmp_path, monkeypatch, kind):
    """Of held-out images, which both roads show in one order, by weights that stay as they are."""
    monkeypatch.setattr(validation, "LEAST", 130)
    # The sums of convolutions depend on how many images are encoded together: 10 on both roads.
    monkeypatch.setattr(latent_cache, "PIXELS_PER_PASS", 10 * SIDE**2)
    options = of_kind(kind, given, encoded) | {"learning_rate": 0.0, "max_train_steps": 1, "use_ema": False}
    options |= {"split": "train[:200]", "validation_split": "train[200:]", "eval_steps": 1}
    options |= {"mixed_precision": "bf16"}  # or latents aren't kept in half precision when training begins
    name = {"flow": "clip", "pixart, T5": "t5", "sd": "sd"}[kind]
    folder = encode_with(tmp_path / "set", given, **parts_of(name, given))
    ours = fit(tmp_path / "encoded", **options | {"train_data_dir": folder})
    theirs = fit(tmp_path / "images", **options | {"train_data_dir": given["data"], "center_crop": True})
    first, second = (
        {k: v for k, v in read_metrics(run)[-1].items() if k.startswith("eval_loss")} for run in (ours, theirs)
    )
    assert first == second
    assert len(first) == 5


def test_validation_share(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "LEAST", 16)
    run = fit(tmp_path / "run", validation_share=0.1, eval_steps=1, max_train_steps=1)
    assert read_metrics(run)[-1]["eval_loss"] > 0


def test_two_processes_take_the_steps_of_one(fit, usual, encoded, launch, tmp_path):
    options = {"train_data_dir": encoded["clip"], "train_batch_size": 10, "max_train_steps": 2}
    one = fit(tmp_path / "one", **options, gradient_accumulation_steps=2)
    statuses, printed = launch(tmp_path / "two", 2, script="train_text2img", **usual | options)
    assert statuses == [0, 0], printed
    name = "unet/diffusion_pytorch_model.safetensors"
    assert_close(load_file(tmp_path / "two" / name), load_file(one / name), rtol=0, atol=1e-6)
    for first, second in zip(read_metrics(one), read_metrics(tmp_path / "two"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)


def test_the_text_encoder_sees_prompts_alone(fit, given, tmp_path, monkeypatch):
    """And none of the captions that are trained on."""
    shown: set[tuple[int, ...]] = set()
    kind = type(tiny_encoder("clip", 600))
    of = kind.forward

    def forward(self: Any, input_ids: torch.Tensor, **named: Any) -> Any:
        shown.update(map(tuple, input_ids.tolist()))
        return of(self, input_ids, **named)

    monkeypatch.setattr(kind, "forward", forward)
    fit(tmp_path / "run", max_train_steps=2)
    _, tokenizer = load_text_encoder(str(given["clip"]))
    tokenizer.model_max_length = 9
    prompts = tokenizer([texts(row)[0] for row in range(3)] + [""], padding="max_length")["input_ids"]
    assert shown <= {tuple(ids) for ids in prompts}


REFUSED = [
    ({"text_encoder": None}, "holds captions as a text encoder has encoded them; give it as --text_encoder, or train"),
    ({"autoencoder": None}, "holds latents; give the --autoencoder that they are of"),
    ({"instance_prompt": "a cat"}, "--instance_prompt: .* holds captions as a text encoder has encoded them; leave it"),
    (
        {"caption_column": "text"},
        "--caption_column: .* holds captions as a text encoder has encoded them; leave it out",
    ),
    ({"skip_empty_captions": True}, "--skip_empty_captions: .* holds captions as a text encoder has encoded them"),
    ({"condition": "edges"}, "--condition: needs images, and .* holds latents; leave it out, or train on the images$"),
    ({"max_train_samples": 9}, r"--max_train_samples: isn't for latents; leave it out, or give --split 'train\[:9\]'$"),
    ({"eval_metrics": ["clip_score"], "eval_steps": 1}, "--eval_metrics: needs images, and .* holds latents"),
    ({"streaming": True}, "--streaming: isn't for captions, which are read before training; run encode.py --streaming"),
    (
        {"text_encoder": "t5"},
        "another text encoder than this one encoded its captions; name that one, or run enc",
    ),
    (
        {"train_data_dir": "sd", "text_encoder": "sd"},
        "encoded for fine-tuning a model that sees padding, and this",
    ),
    (
        {"train_data_dir": "plain"},
        "holds latents without captions; run encode.py with --text_encoder and anoth",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_is_refused_from_scratch(fit, given, encoded, tmp_path, changes, message):
    options = dict(changes)
    if options.get("train_data_dir") == "sd":
        options |= {"train_data_dir": encoded["sd"], "autoencoder": given["sd"]}
    elif options.get("train_data_dir") == "plain":
        options["train_data_dir"] = encode_with(tmp_path / "plain", given, autoencoder=given["autoencoder"])
    if options.get("text_encoder") in given:
        options["text_encoder"] = given[options["text_encoder"]]
    with pytest.raises(UserError, match=message):
        fit(tmp_path / "run", **options)


NOT_TUNED = [
    ({"train_text_encoder": True}, "--train_text_encoder: .* holds captions as a text encoder has encoded them; leave"),
    ({"placeholder_token": "<x>", "initializer_token": "cat"}, "--placeholder_token: .* holds captions as a text enco"),
    ({"controlnet": True, "condition": "edges"}, "--condition: needs images, and .* holds latents; leave it out, or"),
    (
        {"with_prior_preservation": True, "class_prompt": "a cat", "class_data_dir": "class"},
        "--with_prior_preservation: needs images, and .* holds latents",
    ),
    ({"train_data_dir": "clip"}, "its autoencoder isn't the one that the latents in .* are of; name that one, or run"),
    ({"train_data_dir": "masked"}, "weren't encoded for fine-tuning this model, which pads them to 16 tokens; run enc"),
]


@pytest.mark.parametrize(("changes", "message"), NOT_TUNED)
def test_what_is_refused_in_fine_tuning(fit, given, encoded, tmp_path, changes, message):
    options = of_kind("sd", given, encoded) | changes
    if options["train_data_dir"] == "clip":
        options["train_data_dir"] = encoded["clip"]
    elif options["train_data_dir"] == "masked":
        parts = {"autoencoder": given["sd"], "text_encoder": given["sd"]}
        options["train_data_dir"] = encode_with(tmp_path / "masked", given, **parts)
    if "class_data_dir" in options:
        options["class_data_dir"] = tmp_path / "class"
    with pytest.raises(UserError, match=message):
        fit(tmp_path / "run", **options)


def test_a_pipeline_of_ours_is_tuned_on_what_encoded_it(fit, given, tmp_path):
    run = fit(tmp_path / "run", max_train_steps=1)
    folder = encode_with(tmp_path / "encoded", given, pretrained_model_name_or_path=run)
    source = {"pretrained_model_name_or_path": run, "train_data_dir": folder}
    tuned = fit(tmp_path / "tuned", **TUNED | source, max_train_steps=1)
    assert TextToImagePipeline.from_pretrained(tuned).tokenizer.model_max_length == 9


def test_pixels_are_refused(fit, given, encoded, tmp_path):
    pixels = fit(tmp_path / "run", train_data_dir=given["data"], autoencoder=None, center_crop=True, max_train_steps=1)
    options = of_kind("sd", given, encoded) | {"pretrained_model_name_or_path": pixels}
    with pytest.raises(UserError, match="holds latents, and the model at .* is of pixels; train on the images"):
        fit(tmp_path / "tuned", **options)
    with pytest.raises(UserError, match="is a model of pixels; train on the images"):
        encode_with(tmp_path / "encoded", given, pretrained_model_name_or_path=pixels)


def test_a_key_of_encoder_and_tokenizer(given, tmp_path):
    """It stays when they are saved, wherever that is, and whatever length the tokenizer cuts to."""
    encoder, tokenizer = load_text_encoder(str(given["clip"]))
    key = fingerprint_of(encoder, tokenizer)
    tokenizer.model_max_length = 5
    tokenizer(["a cat and a dog and more"], padding="max_length", truncation=True)
    encoder.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert fingerprint_of(*load_text_encoder(str(tmp_path))) == key == fingerprint_of(encoder, tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert fingerprint_of(encoder, tokenizer) != key
    encoder, tokenizer = load_text_encoder(str(tmp_path))
    encoder.get_input_embeddings().weight.data[3] += 1
    assert fingerprint_of(encoder, tokenizer) != key


@pytest.mark.slow  # of a process that imports everything
def test_from_the_hub(fit, encoded, running, tmp_path):
    """`hf://`, in a process of its own, whose Hub drops connections: what is trained is what the folder trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        close_session()
        api = HfApi(running.endpoint, running.token("alice"))
        api.create_repo("alice/encoded", repo_type="dataset")
        api.upload_folder(repo_id="alice/encoded", folder_path=encoded["clip"], repo_type="dataset")
    running.fault("GET", "latents-.*parquet", "drop", times=3)
    local = fit(tmp_path / "local", max_train_steps=2)
    config = yaml.safe_load((local / "config.yaml").read_text())
    config |= {"train_data_dir": "hf://datasets/alice/encoded", "output_dir": str(tmp_path / "remote")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "train_text2img.py", "--config", str(tmp_path / "config.yaml")],
        env=running.environment(running.token("alice", "read"), tmp_path / "home") | {"HTTP_PROXY": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = trained(local), trained(tmp_path / "remote")
    assert {name: ours[name] for name in ours if "safetensors" in name} == {
        name: theirs[name] for name in theirs if "safetensors" in name
    }
