"""Options: flags over YAML over defaults, refused when unknown or of the wrong kind, and saved as they were used."""

import subprocess
import sys

import pytest
import yaml

from snowmelt.autoencoder.options import AutoencoderConfig
from snowmelt.config import differences, parse
from snowmelt.errors import UserError
from snowmelt.evaluation.options import EvaluateConfig
from snowmelt.options import UnconditionalConfig
from snowmelt.text.options import TextToImageConfig
from snowmelt.values import Resolution, check_value, element_type
from tests.conftest import ROOT, run_in_process, trained

OF_DIFFUSERS = """
    --dataset_name huggan/flowers --dataset_config_name all --model_config_name_or_path unet --train_data_dir images
    --output_dir out --overwrite_output_dir --cache_dir cache --resolution 128 --center_crop --random_flip
    --train_batch_size 4 --eval_batch_size 8 --dataloader_num_workers 2 --num_epochs 3 --save_images_epochs 1
    --save_model_epochs 2 --gradient_accumulation_steps 2 --learning_rate 2e-4 --lr_scheduler cosine
    --lr_warmup_steps 7 --adam_beta1 0.9 --adam_beta2 0.99 --adam_weight_decay 1e-5 --adam_epsilon 1e-7 --use_ema
    --ema_inv_gamma 2.0 --ema_power 0.6 --ema_max_decay 0.99 --push_to_hub --hub_token t --hub_model_id me/it
    --hub_private_repo --logger tensorboard --logging_dir logs --mixed_precision bf16 --prediction_type sample
    --ddpm_num_steps 500 --ddpm_num_inference_steps 20 --ddpm_beta_schedule squaredcos_cap_v2
    --checkpointing_steps 50 --checkpoints_total_limit 2 --resume_from_checkpoint latest --preserve_input_precision
"""
SIZES = "a whole number, or HEIGHTxWIDTH such as 64x96"
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
        ("--seed 1.5", "argument --seed: invalid int value: '1.5'"),
        ("--resolution 1.5", f"--resolution: must be {SIZES}, got '1.5'"),
        ("--resolution 64x", f"--resolution: must be {SIZES}, got '64x'"),
        ("--resolution 64x96x3", f"--resolution: must be {SIZES}, got '64x96x3'"),
        ("--resolution 8x-4", f"--resolution: must be {SIZES}, got '8x-4'"),
        ("--resolution 0x8", "--resolution: must be at least 1, got 0"),
        ("--resolution -8", "--resolution: must be at least 1, got -8"),
        ("--resolution 0", "--resolution: must be at least 1, got 0"),
        ("--label_dropout 1", "--label_dropout: must be at least 0 and less than 1, got 1.0"),
        ("--adam_beta1 1.5", "--adam_beta1: must be at least 0 and less than 1, got 1.5"),
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
        ("resolution: '32'", f"--resolution: must be {SIZES}, got '32'"),
        ("resolution: 1.5", f"--resolution: must be {SIZES}, got 1.5"),
        ("resolution: true", f"--resolution: must be {SIZES}, got True"),
        ("resolution: null", f"--resolution: must be {SIZES}, got None"),
        ("resolution: [8]", f"--resolution: must be {SIZES}, got [8]"),
        ("train_batch_size: '32'", "--train_batch_size: must be a whole number, got '32'"),
        ("use_ema: 1", "--use_ema: must be true or false, got 1"),
        ("use_ema: 'no'", "--use_ema: must be true or false, got 'no'"),
        ("learning_rate: fast", "--learning_rate: must be a number, got 'fast'"),
        ("dataset_name: 3", "--dataset_name: must be text, got 3; put it in quotes"),
        ("ema_widths: 0.1", "--ema_widths: must be a list, each a number, got 0.1"),
        ("ema_widths: [a]", "--ema_widths: must be a number, got 'a'"),
        ("model_size: huge", "model_size: 'huge' is not one of tiny, small, base, large"),
        ("train_batch_size: 0", "--train_batch_size: must be at least 1, got 0"),
        ("- seed", "must map names to values, holds a list"),
        ("seed: [", "not valid YAML ("),
        ("seed: 1\nseed: 2", "key 'seed' is given twice"),
        ("seed: 1:30", "--seed: must be a whole number, got '1:30'"),
        ("seed: 010", "--seed: must be a whole number, got '010'"),
        ("seed: 1_000", "--seed: must be a whole number, got '1_000'"),
        ("train_batch_size: .inf", "--train_batch_size: must be a whole number, got inf"),
        ("learning_rate: .nan", "--learning_rate: must be at least 0, got nan"),
        ("ema_widths: [.inf]", "--ema_widths: must be more than 0 and at most 0.288, got inf"),
        ("class_conditional: yes", "--class_conditional: must be true or false, got 'yes'"),
        ("output_dir: ''", "--output_dir: is empty; give text, or leave it out"),
        ('output_dir: "a\\0b"', "--output_dir: must be text in UTF-8 without zeros"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML (could not determine a constructor"),
    ],
)
def test_bad_yaml(text, message, tmp_path):
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        options("--config", str(tmp_path / "it.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_is_a_word(tmp_path):
    """In YAML 1.1 it was a name of `false`."""
    (tmp_path / "it.yaml").write_text("mixed_precision: no\n")
    assert options("--config", str(tmp_path / "it.yaml")).mixed_precision == "no"


@pytest.mark.parametrize("config", [UnconditionalConfig, TextToImageConfig, AutoencoderConfig, EvaluateConfig])
def test_every_number_declares_where_its_range_begins(config):
    numbers = {n: f for n, f in config.fields().items() if element_type(f.type)[0] in (int, float, Resolution)}
    without = [n for n, f in numbers.items() if f.metadata["minimum"] is None and f.metadata["above"] is None]
    assert len(numbers) >= 10
    assert not without


@pytest.mark.parametrize("config", [UnconditionalConfig, TextToImageConfig, AutoencoderConfig, EvaluateConfig])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_no_number_may_be_infinite_or_nan(config, value):
    for name, f in config.fields().items():
        kind, _, is_list = element_type(f.type)
        if kind is float:
            with pytest.raises(UserError, match=f"--{name}: must be .*, got "):
                check_value(f, [float(value)] if is_list else float(value))


def test_an_option_that_came_later_had_its_default(tmp_path):
    config = options("--output_dir", str(tmp_path))
    saved = config.to_dict()
    del saved["train_batch_size"]
    assert differences(saved, config) == []
    assert differences(saved, options("--train_batch_size", "3")) == ["--train_batch_size 16 (now 3)"]


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
