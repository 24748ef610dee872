"""Mistakes end as one line on stderr and exit status 2, before anything long."""

import subprocess
import sys

import pytest

from snowmelt.errors import UserError, run
from tests.conftest import ROOT


def test_the_script_says_it_in_one_line(start, tmp_path):
    """The data set has images alone, so there is nothing to condition on."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "pictures" / "a.png")
    process = start(tmp_path / "run", dataset_name=None, train_data_dir=tmp_path / "pictures")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 2
    last = "error: --class_conditional: no column has a class for every row; name one with --label_column"
    assert err.splitlines()[-1] == last
    assert "Traceback" not in err
    assert "images" in out  # what the run would have been
    assert not (tmp_path / "run").exists()


def test_flags_are_refused_before_torch_is_imported():
    words = [sys.executable, "-X", "importtime", "train_unconditional.py", "--learnin_rate", "1"]
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    assert "error: unknown flag --learnin_rate; did you mean --learning_rate?" in process.stderr
    assert "torch" not in process.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "absent"}, "absent"),
        ({"image_column": "absent"}, "absent"),
        ({"split": "test"}, "--split test: digits has train"),
        ({"mixed_precision": "fp16"}, "--mixed_precision fp16 needs a GPU; take bf16 or no"),
        ({"prediction_type": "epsilon", "objective": "flow"}, "--prediction_type is for discrete-time objectives"),
        ({"resume_from_checkpoint": "checkpoint-1"}, "there are: none"),
        (
            {"push_to_hub": True, "hub_token": "hf_no", "hub_model_id": "me/it"},
            "publish to me/it: .*can't be reached",
        ),
        (
            {"push_to_hub": True, "hub_token": "hf_no", "hub_model_id": "it/has spaces"},
            "it/has spaces: not a name",
        ),
        ({"model_config_name_or_path": "/nowhere/config.json"}, "--model_config_name_or_path /nowhere/config.json: "),
    ],
)
def test_refused_before_training(options, message, train, tmp_path):
    if "fp16" in options.values():
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message) as caught:
        train(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert "hf_no" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a\nb \x1b[31m"), 2, r"error: a\nb \x1b[31m"),
        (
            FileNotFoundError(2, "No such file", "x\ny"),
            2,
            r"error: x\ny: No such file; make it, or name another",
        ),
        (
            PermissionError(13, "Permission denied", "/root/x"),
            2,
            "error: /root/x: Permission denied; change its permis",
        ),
        (
            OSError(28, "No space left on device", "/d/x"),
            2,
            "error: /d/x: No space left on device; free some space, or",
        ),
        (OSError("of a library\nin two lines"), 2, "error: of a library in two lines"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_what_ends_a_script_is_one_line(error, status, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run(main)
    printed = capsys.readouterr().err
    assert end.value.code == status
    assert printed.startswith(line)
    assert printed.count("\n") == 1


def test_a_mistake_of_ours_is_no_line():
    """It is reported with its traceback, as what it is."""
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
