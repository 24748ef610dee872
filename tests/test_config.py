"""Options: flags over YAML over defaults, refused when unknown or of the wrong kind, and saved as they were used."""

import subprocess
import sys

import pytest
import yaml

from snowmelt.config import parse
from snowmelt.errors import UserError
from snowmelt.options import UnconditionalConfig
from tests.conftest import ROOT, run_in_process, trained

OF_DIFFUSERS = """
    --dataset_name huggan/flowers --dataset_config_name all --model_config_name_or_path unet --train_data_dir pictures
    --output_dir out --overwrite_output_dir --cache_dir cache --resolution 128 --center_crop --random_flip
    --train_batch_size 4 --eval_batch_size 8 --dataloader_num_workers 2 --num_epochs 3 --save_images_epochs 1
    --save_model_epochs 2 --gradient_accumulation_steps 2 --learning_rate 2e-4 --lr_scheduler cosine
    --lr_warmup_steps 7 --adam_beta1 0.9 --adam_beta2 0.99 --adam_weight_decay 1e-5 --adam_epsilon 1e-7 --use_ema
    --ema_inv_gamma 2.0 --ema_power 0.6 --ema_max_decay 0.99 --push_to_hub --hub_token t --hub_model_id me/it
    --hub_private_repo --logger tensorboard --logging_dir logs --mixed_precision bf16 --prediction_type sample
    --ddpm_num_steps 500 --ddpm_num_inference_steps 20 --ddpm_beta_schedule squaredcos_cap_v2
    --checkpointing_steps 50 --checkpoints_total_limit 2 --resume_from_checkpoint latest --preserve_input_precision
"""
OURS = """
    --max_train_steps 10 --seed 3 --objective flow --image_column image --label_column label --class_conditional
    --channels 1 --max_grad_norm 0.5 --compile --ema_widths 0.05 0.1 --no-use_ema
"""


def options(*words: str) -> UnconditionalConfig:
    return parse(UnconditionalConfig, list(words))


def test_flags_of_diffusers_script():
    config = options(*OF_DIFFUSERS.split())
    words = OF_DIFFUSERS.split()
    for flag, following in zip(words, [*words[1:], "--"], strict=True):
        if flag.startswith("--"):
            value = getattr(config, flag.removeprefix("--"))
            expected = True if following.startswith("--") else type(value)(following)
            assert value == expected, flag


def test_our_flags():
    config = options(*OURS.split())
    assert (config.max_train_steps, config.seed, config.objective, config.channels) == (10, 3, "flow", 1)
    assert (config.ema_widths, config.use_ema, config.compile) == ([0.05, 0.1], False, True)


def test_flag_over_yaml_over_default(tmp_path):
    file = tmp_path / "it.yaml"
    file.write_text("seed: 4\nlearning_rate: 1e-3\nadam_epsilon: 1.0e-6\nema_widths: [0.1, 2e-1]\nuse_ema: false\n")
    config = options("--config", str(file), "--seed", "5")
    assert (config.seed, config.learning_rate, config.adam_epsilon, config.resolution) == (5, 1e-3, 1e-6, 64)
    assert (config.ema_widths, config.use_ema) == ([0.1, 0.2], False)


def test_default_recipe():
    def with_recipe(*words: str) -> UnconditionalConfig:
        return parse(UnconditionalConfig, list(words), default_recipe="digits", needs=("dataset_name",))

    assert with_recipe("--seed", "1").dataset_name == "digits"
    assert with_recipe("--seed", "1").class_conditional
    assert not with_recipe("--dataset_name", "digits").class_conditional


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--learning_rat 1e-4", "unknown flag --learning_rat; did you mean --learning_rate?"),
        ("--resolutoin=32", "unknown flag --resolutoin; did you mean --resolution?"),
        ("--zzz", "unknown flag --zzz; --help lists all"),
        ("--resol 32", "unknown flag --resol; "),
        ("--resolution 1.5", "argument --resolution: invalid int value: '1.5'"),
        ("--resolution 0", "resolution: 0 is less than 1, the least allowed"),
        ("--label_dropout 1", "label_dropout: 1.0 must be less than 1"),
        ("--adam_beta1 1.5", "adam_beta1: 1.5 must be less than 1"),
        ("--seed", "argument --seed: expected one argument"),
        ("--lr_scheduler cosin", "invalid choice: 'cosin' (choose from "),
        (
            "--config nothing.yaml",
            "--config nothing.yaml: no such file or recipe; recipes: cifar10-autoencoder, ",
        ),
    ],
)
def test_bad_flags(words, message):
    with pytest.raises(UserError) as caught:
        options(*words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown key 'learning_rat'; did you mean learning_rate?"),
        ("resolution: '32'", "resolution: must be int, got '32'"),
        ("resolution: 1.5", "resolution: must be a whole number, got 1.5"),
        ("resolution: true", "resolution: must be int, got True"),
        ("resolution: null", "resolution: must be int, got None"),
        ("resolution: [8]", "resolution: must be int, got [8]"),
        ("use_ema: 1", "use_ema: must be bool, got 1"),
        ("use_ema: 'no'", "use_ema: must be bool, got 'no'"),
        ("learning_rate: fast", "learning_rate: must be float, got 'fast'"),
        ("dataset_name: 3", "dataset_name: must be text, got 3; put it in quotes"),
        ("ema_widths: 0.1", "ema_widths: must be a list of float, got 0.1"),
        ("ema_widths: [a]", "ema_widths: must be float, got 'a'"),
        ("model_size: huge", "model_size: 'huge' is not one of tiny, small, base, large"),
        ("train_batch_size: 0", "train_batch_size: 0 is less than 1, the least allowed"),
        ("- seed", "must map option names to values, got list"),
        ("seed: [", "not valid YAML ("),
    ],
)
def test_bad_yaml(text, message, tmp_path):
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        options("--config", str(tmp_path / "it.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_saved_configuration_resumes_and_does_not_overwrite(train, tmp_path):
    run = train(tmp_path / "run", overwrite_output_dir=True)
    own = ["--config", str(run / "config.yaml")]
    with pytest.raises(UserError, match="is not empty; add --overwrite_output_dir, or --resume_from_checkpoint"):
        run_in_process(own)
    run_in_process([*own, "--resume_from_checkpoint", "latest", "--max_train_steps", "3"])
    assert (run / "checkpoint-3").is_dir()
    with pytest.raises(UserError, match="is not empty"):  # the call before resumed; this one doesn't say so
        run_in_process(own)


def test_saved_configuration_reproduces_the_run(train, tmp_path):
    usual = {"max_train_steps": 3, "label_dropout": 0.3, "ema_widths": [0.1], "learning_rate": 3e-4}
    run = train(tmp_path / "run", **usual, mixed_precision=None, objective=None, hub_token="hf_Secret")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["mixed_precision"] in ("no", "bf16")
    assert saved["learning_rate"] == 3e-4
    assert "hub_token" not in saved
    again = tmp_path / "again"
    run_in_process(["--config", str(run / "config.yaml"), "--output_dir", str(again)])
    assert trained(again) == trained(run)


def test_help_is_immediate():
    """It explains every option by group, and imports nothing heavy."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train_unconditional.py', '--help']\n"
        "try: runpy.run_path('train_unconditional.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'diffusers', 'accelerate', 'datasets', 'transformers', 'numpy', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for name, field in UnconditionalConfig.fields().items():
        assert f"--{name}" in shown.stdout
        assert " ".join(field.metadata["help"].split()) in " ".join(shown.stdout.split())
    for group in ("Data:", "Model:", "Objective:", "Optimization:", "Run:", "Hub:"):
        assert f"\n{group}" in shown.stdout
