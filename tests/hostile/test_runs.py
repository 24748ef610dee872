"""Folders of runs, configurations and checkpoints that aren't what they are to be."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import TINY_UNET, run_in_process
from tests.hostile.conftest import Refuse

TINY = "--dataset_name digits --resolution 8 --cache_dir {cache} --model_config_name_or_path unet.json "
U = "train_unconditional.py --max_train_steps 1 " + TINY
RESUME = "train_unconditional.py --config {0}/config.yaml --resume_from_checkpoint checkpoint-2 --output_dir {0}"

YAML = {
    "twice": ("seed: 1\nseed: 2\n", "not valid YAML .*key 'seed' is given twice"),
    "tag": ("!!python/object/apply:os.system [ls]\n", "not valid YAML .*could not determine a constructor for the tag"),
    "open": ("seed: [1\n", "not valid YAML"),
    "list": ("- seed\n", "must map names to values, holds a list"),
    "text": ("seed\n", "must map names to values, holds text"),
    "unknown": ("sead: 1\n", "unknown key 'sead'; did you mean seed"),
    "unknown-number": ("3: 1\n", "unknown key 3"),
    "sexagesimal": ("seed: 1:30\n", "--seed: must be a whole number, got '1:30'"),
    "octal": ("seed: 010\n", "--seed: must be a whole number, got '010'"),
    "underscore": ("seed: 1_000\n", "--seed: must be a whole number, got '1_000'"),
    "infinite": ("train_batch_size: .inf\n", "--train_batch_size: must be a whole number, got inf"),
    "nan": ("learning_rate: .nan\n", "--learning_rate: must be at least 0, got nan"),
    "huge": (f"learning_rate: 1{'0' * 400}\n", "--learning_rate: must be at least 0, got inf"),
    "digits": (f"seed: {'9' * 5000}\n", "not valid YAML .*4300 digits"),
    "yes": ("class_conditional: yes\n", "--class_conditional: must be true or false, got 'yes'"),
    "null": ("train_batch_size: null\n", "--train_batch_size: must be a whole number, got None"),
    "mapping": ("output_dir: {a: 1}\n", "--output_dir: must be text, got {'a': 1}"),
    "number": ("output_dir: 3\n", "--output_dir: must be text, got 3; put it in quotes"),
    "date": ("seed: 2026-01-01\n", "--seed: must be a whole number, got '2026-01-01'"),
    "zero": ('output_dir: "a\\0b"\n', "--output_dir: must be text in UTF-8 without zeros"),
    "choice": ("lr_scheduler: fast\n", "--lr_scheduler: 'fast' is not one of linear, cosine"),
    "climbing": ("logging_dir: ../x\n", "--logging_dir ../x: must be a folder inside --output_dir"),
    "scalar": ("ema_widths: 0.1\n", "--ema_widths: must be a list, each a number, got 0.1"),
    "key-list": ("[1, 2]: 3\n", "not valid YAML .*can't be a key"),
    "tabs": ("seed:\t1\n\tresolution: 3\n", "not valid YAML"),
    "control": ("seed: \x07\n", "not valid YAML"),
}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, arguments) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_in_process(arguments(folder / "run", checkpointing_steps=1, ema_widths=[0.1]))
    shutil.copyfile(arguments(folder)[arguments(folder).index("--model_config_name_or_path") + 1], folder / "unet.json")
    for name, (text, _) in YAML.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "latin.yaml").write_bytes("output_dir: caf\xe9\n".encode("latin-1"))
    (folder / "deep.yaml").write_text("[" * 5000)
    (folder / "folder.yaml").mkdir()
    (folder / "dangling.yaml").symlink_to("nowhere")
    (folder / "file").write_text("mine")
    (folder / "full").mkdir()
    (folder / "full" / "photo.png").write_text("mine")
    (folder / "theirs" / "checkpoint-4" / "unet").mkdir(parents=True)
    (folder / "theirs" / "checkpoint-4" / "unet" / "config.json").write_text("{}")
    (folder / "loop").symlink_to("loop")
    for name, damage in DAMAGE.items():
        shutil.copytree(folder / "run", folder / name)
        damage(folder / name / "checkpoint-2")
    (folder / "line\nbreak").mkdir()
    (folder / "line\nbreak" / "error: forged").write_text("mine")
    for name, text in UNETS.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def state_without(key: str):
    def damage(checkpoint: Path) -> None:
        path = checkpoint / "trainer_state.json"
        state = json.loads(path.read_text())
        del state[key]
        path.write_text(json.dumps(state))

    return damage


def truncate(name: str):
    return lambda checkpoint: os.truncate(checkpoint / name, 10)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
DAMAGE = {
    "truncated": truncate(WEIGHTS),
    "no-weights": lambda checkpoint: (checkpoint / WEIGHTS).unlink(),
    "no-optimizer": lambda checkpoint: (checkpoint / "optimizer/optimizer.safetensors").unlink(),
    "changed": lambda checkpoint: (checkpoint / "unet/config.json").write_text("{}"),
    "state-empty": lambda checkpoint: (checkpoint / "trainer_state.json").write_text(""),
    "state-list": lambda checkpoint: (checkpoint / "trainer_state.json").write_text("[]"),
    "state-text": lambda checkpoint: (checkpoint / "trainer_state.json").write_text("once upon a time"),
    "state-binary": lambda checkpoint: (checkpoint / "trainer_state.json").write_bytes(b"\xff\xfe\x00"),
    "state-nan": lambda checkpoint: (checkpoint / "trainer_state.json").write_text('{"step": NaN}'),
    "state-deep": lambda checkpoint: (checkpoint / "trainer_state.json").write_text("[" * 100000),
    "state-forged": lambda checkpoint: (checkpoint / "trainer_state.json").write_text(
        '{"step": 2, "config": {}, "files": {"../../../../etc/passwd": "x"}, "sha256": "x"}'
    ),
    "state-no-files": state_without("files"),
    "state-no-step": state_without("step"),
    "state-no-sha": state_without("sha256"),
}
LONG = "x" * 300

UNETS = {
    "unet-empty": "",
    "unet-list": "[]",
    "unet-other": '{"_class_name": "AutoencoderKL"}',
    "unet-none": "{}",
    "unet-blocks": '{"_class_name": "UNet2DModel", "block_out_channels": [8], "down_block_types": ["No"]}',
    "unet-text": '{"_class_name": "UNet2DModel", "block_out_channels": "many"}',
    "unet-zero": '{"_class_name": "UNet2DModel", "block_out_channels": []}',
    "unet-number": '{"_class_name": "UNet2DModel", "block_out_channels": 8}',
    "unet-levels": json.dumps(TINY_UNET | {"block_out_channels": [8] * 20000}),
    "unet-layers": json.dumps(TINY_UNET | {"layers_per_block": 10**9}),
    "unet-layers-nested": json.dumps(TINY_UNET | {"transformer_layers_per_block": [1, [10**9]]}),
    "unet-wide": json.dumps(TINY_UNET | {"block_out_channels": [8, 2**19]}),
}
# What is said of those that would take all memory, where for others the line is what diffusers says.
TOO_LARGE = {
    "unet-number": "block_out_channels must be a list of 1 to 16 numbers$",
    "unet-levels": "block_out_channels must be a list of 1 to 16 numbers$",
    "unet-layers": "layers_per_block must be at most 100, is 1000000000$",
    "unet-layers-nested": r"transformer_layers_per_block must be at most 100, is \[1, \[1000000000\]\]$",
    "unet-wide": "no such network can be built .* its weights take .* GB, and this machine has",
}

CASES = [
    *((f"{U}--config {name}.yaml", line) for name, (_, line) in YAML.items()),
    (U + "--config latin.yaml", r"latin\.yaml: is not text in UTF-8"),
    (U + "--config deep.yaml", r"deep\.yaml: not valid YAML"),
    (U + "--config folder.yaml", r"folder\.yaml: no file"),
    (U + "--config dangling.yaml", r"--config dangling\.yaml: no such file or recipe; recipes: "),
    (U + "--config /dev/null/x", "--config /dev/null/x: no such file or recipe"),
    (U + "--output_dir file", "^error: --output_dir file is a file; name a folder$"),
    (U + "--output_dir full", "^error: --output_dir full is not empty; add --overwrite_output_dir"),
    (U + "--output_dir file/run", "file/run.*: Not a directory; a part of that path is a file; name another$"),
    (U + "--output_dir /dev/null", "^error: --output_dir /dev/null is a file; name a folder$"),
    (U + "--output_dir /dev/null/run", "Not a directory; a part of that path is a file"),
    (U + "--output_dir /proc/run", "^error: /proc/run.*; "),
    (U + f"--output_dir {LONG}", "x: File name too long; give a shorter name$"),
    (U + "--output_dir loop", "loop.*"),
    (U + '--output_dir "line\nbreak"', r"^error: --output_dir line\\nbreak is not empty"),
    (U + "--output_dir run --resume_from_checkpoint latest --overwrite_output_dir", "would delete what"),
    (U + "--output_dir run --resume_from_checkpoint checkpoint-9", "checkpoint-9: no complete checkpoint"),
    (U + "--output_dir run --resume_from_checkpoint ../../etc", "no complete checkpoint of that name"),
    (U + "--output_dir run --resume_from_checkpoint latest --learning_rate 1", "was made with .*--learning_rate 0"),
    (U + "--output_dir theirs --resume_from_checkpoint latest", "theirs holds checkpoint-4, but no checkpoint"),
    (U + "--output_dir full --resume_from_checkpoint latest", "full holds photo.png, but no checkpoint of Snowmelt"),
    (U + "--output_dir file --resume_from_checkpoint latest", "--output_dir file is a file"),
    *(
        (
            RESUME.format(name),
            f"{name}/checkpoint-2 is damaged: .* is missing or has changed; resume from checkpoint-1$",
        )
        for name in DAMAGE
    ),
    *(
        (
            f"{U}--output_dir new --model_config_name_or_path {name}.json",
            f"--model_config_name_or_path {name}.json: {TOO_LARGE.get(name, '')}",
        )
        for name in UNETS
    ),
    (U + "--output_dir new --model_config_name_or_path no/such/place", "--model_config_name_or_path no/such/place: "),
    (U + "--output_dir new --train_batch_size 10000000000", "--train_batch_size 10000000000: the images alone take"),
    (U + "--output_dir new --eval_batch_size 10000000000", "--eval_batch_size 10000000000: the images alone take"),
    (U + "--output_dir new --objective elbo", "--objective elbo: unknown; known: epsilon"),
    (U + "--output_dir new --loss_weight heavy", "--loss_weight heavy: unknown; known: unit, snr"),
    (U + "--output_dir new --objective edm --timestep_sampling beta", "--timestep_sampling beta doesn't fit edm"),
    (U + "--output_dir new --objective flow --prediction_type epsilon", "--prediction_type is for discrete-time"),
    (U + "--output_dir new --rescale_betas_zero_snr", "--rescale_betas_zero_snr leaves no signal at the last step"),
    (
        U + "--output_dir new --prediction_type epsilon --ddpm_num_steps 20 --ddpm_num_inference_steps 21",
        "--ddpm_num_inference_steps 21: the model's scheduler has 20 timesteps; take 20 or fewer",
    ),
    (U + "--output_dir new --lr_scheduler piecewise_constant", "piecewise_constant and --lr_step_rules: give both"),
    (U + "--output_dir new --lr_step_rules 1:5,0.1", "piecewise_constant and --lr_step_rules: give both"),
    (
        U + "--output_dir new --lr_scheduler piecewise_constant --lr_step_rules a:b",
        "--lr_step_rules a:b: must be as 1:500,0.1:900,0.01",
    ),
    (U + "--output_dir new --mixed_precision fp16", "--mixed_precision fp16 needs a GPU; take bf16 or no"),
    (U + "--output_dir new --logger wandb", "--logger wandb isn't installed"),
    (U + "--output_dir new --ema_widths 0.1 0.1001", "--ema_widths .*: must differ in their first three decimals"),
    (U + "--output_dir new --autoencoder nowhere/at/all", "--autoencoder nowhere/at/all: no such folder"),
    (U + "--output_dir new --autoencoder run/checkpoint-1", "a checkpoint, whose latents"),
    (U + "--output_dir new --autoencoder run", "--autoencoder run: no AutoencoderKL, VQModel"),
    (
        U + "--output_dir full --overwrite_output_dir --train_data_dir full",
        "--train_data_dir full is inside",
    ),
]


@pytest.mark.parametrize(("command", "line"), CASES)
def test_refused(refuse: Refuse, command: str, line: str) -> None:
    refuse(command, line)
