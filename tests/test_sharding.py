"""Training whose networks are spread over processes (FSDP2) is training that isn't, whatever their number."""

import json
import re
from pathlib import Path

import datasets
import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from snowmelt.environment import make_accelerator
from snowmelt.errors import UserError
from snowmelt.options import UnconditionalConfig
from snowmelt.tracking import read_metrics
from tests.conftest import trained

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
OPTIONS = {
    "max_train_steps": 4,
    "train_batch_size": 16,
    "checkpointing_steps": 2,
    "label_dropout": 0.3,
    "lr_scheduler": "cosine",
    "learning_rate": 1e-3,
    "logging_steps": 1,
}
JUDGED = {"validation_share": 0.1, "eval_steps": 4}


def same_weights(one: Path, other: Path, names: list[str], atol: float = 1e-5) -> None:
    for name in names:
        file = f"{name}/diffusion_pytorch_model.safetensors"
        assert_close(load_file(one / file), load_file(other / file), rtol=0, atol=atol)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"model_config_name_or_path": None, "model_size": "tiny", "backbone": "dit", "objective": "flow"},
        {"objective": "soflow", "gradient_checkpointing": True, "max_grad_norm_ratio": 1.1},
    ],
    ids=["UNet", "DiT", "SoFlow"],
)
def test_two_processes_are_one(variant: dict, train, launch, tmp_path: Path) -> None:
    options = OPTIONS | JUDGED | variant
    status, printed = launch(tmp_path / "two", 2, variables=FSDP, **options)
    assert status == [0, 0], printed
    held, of = (int(n.replace(",", "")) for n in re.findall(r"holds ([\d,]+) of ([\d,]+) parameters", printed)[0])
    assert 0.49 < held / of < 0.53
    one = train(tmp_path / "one", **options, gradient_accumulation_steps=2)
    network = "transformer" if variant.get("backbone") else "unet"
    names = [network, f"best/{network}", f"checkpoint-2/{network}", f"checkpoint-4/{network}_ema"]
    same_weights(tmp_path / "two", one, names)
    for two, single in zip(read_metrics(tmp_path / "two"), read_metrics(one), strict=True):
        assert two.keys() == single.keys()
        for name in {"loss", "grad_norm", "eval_loss"} & two.keys():
            assert two[name] == pytest.approx(single[name], rel=1e-4)
    for name in ("model_index.json", f"{network}/config.json"):
        assert json.loads((one / name).read_text()) == json.loads((tmp_path / "two" / name).read_text())
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "two", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(class_labels=3, num_inference_steps=2)


def test_resuming_on_other_numbers_of_processes(train, launch, tmp_path: Path) -> None:
    """Two processes and sharded, then one, then four and sharded, then two that aren't."""
    options = OPTIONS | {"train_batch_size": 4, "lr_scheduler": "constant", "checkpointing_steps": 1}
    whole = train(tmp_path / "whole", **options | {"max_train_steps": 4}, gradient_accumulation_steps=4)
    run = tmp_path / "run"
    for steps, processes, variables in ((1, 2, FSDP), (2, 1, FSDP), (3, 4, FSDP), (4, 2, {})):
        given = options | {"max_train_steps": steps, "gradient_accumulation_steps": 4 // processes}
        given |= {"resume_from_checkpoint": "latest"} if steps > 1 else {}
        status, printed = launch(run, processes, variables=variables, **given)
        assert status == [0] * processes, printed
    same_weights(run, whole, ["unet", "checkpoint-4/unet_ema"], atol=3e-5)


def test_resuming_is_exact(train, launch, tmp_path: Path) -> None:
    """In bf16, too, in which the losses are those of one process but for the norms' weights."""
    options = OPTIONS | {"mixed_precision": "bf16"}
    assert launch(tmp_path / "whole", 2, variables=FSDP, **options)[0] == [0, 0]
    one = train(tmp_path / "one", **options, gradient_accumulation_steps=2)
    losses = [[line["loss"] for line in read_metrics(run)] for run in (tmp_path / "whole", one)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    (tmp_path / "run").mkdir()
    (tmp_path / "whole/checkpoint-2").rename(tmp_path / "run/checkpoint-2")
    status, printed = launch(tmp_path / "run", 2, variables=FSDP, **options, resume_from_checkpoint="latest")
    assert status == [0, 0], printed
    assert trained(tmp_path / "run", since=3) == trained(tmp_path / "whole", since=3)


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "launched for FSDP of version 1; set fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params isn't for training here; set it to false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "set it to false, and give --gradient_checkpointing"),
        (
            {"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"},
            {},
            "invalid truth value full_shard; .*, fsdp_reshard_after_forward is true",
        ),
        ({}, {"optimizer": "muon"}, "--optimizer muon: works on whole matrices, .*; take --optimizer adamw"),
        ({}, {"use_8bit_adam": True}, "--use_8bit_adam: works on whole matrices"),
    ],
)
def test_what_it_is_not_for(variables: dict, options: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (FSDP | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        make_accelerator(UnconditionalConfig(**options))


def test_classes_that_are_not_in_the_network(launch, tmp_path: Path) -> None:
    named = FSDP | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"}
    status, printed = launch(tmp_path / "run", 2, variables=named, **OPTIONS)
    assert 0 not in status
    assert "FSDP configuration: UNet2DModel has no modules of LlamaDecoderLayer" in printed


@pytest.mark.parametrize("backbone", ["unet", "pixart"])
def test_text_to_image(backbone: str, train, launch, tmp_path: Path) -> None:
    """The text encoder is spread too, where it is in training."""
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue", "white")]
    captions = ["a red picture", "a green picture", "a blue picture", "a white picture"]
    datasets.Dataset.from_dict({"image": images, "text": captions}).save_to_disk(tmp_path / "photos")
    options = {
        "script": "train_text2img",
        "dataset_name": tmp_path / "photos",
        "class_conditional": None,
        "label_dropout": None,
        "model_config_name_or_path": None,
        "model_size": "tiny",
        "backbone": backbone,
        "text_layers": 1,
        "max_train_steps": 2,
        "train_batch_size": 2,
        "ddpm_num_inference_steps": 2,
    }
    status, printed = launch(tmp_path / "two", 2, variables=FSDP, **options)
    assert status == [0, 0], printed
    one = train(tmp_path / "one", **options, gradient_accumulation_steps=2)
    same_weights(tmp_path / "two", one, ["unet" if backbone == "unet" else "transformer"])
    two, single = (load_file(run / "text_encoder/model.safetensors") for run in (tmp_path / "two", one))
    assert_close(two, single, rtol=0, atol=1e-5)
