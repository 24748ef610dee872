"""--on_nonfinite: steps whose gradient isn't a number are left out, or the run goes back to its last checkpoint."""

import pytest
import torch
from torch import Tensor

from snowmelt.errors import UserError
from snowmelt.nonfinite import MOST_IN_A_ROW
from snowmelt.tasks.diffusion import DiffusionTask
from snowmelt.tracking import read_metrics
from tests.conftest import trained

OPTIONS = {"max_train_steps": 12, "checkpointing_steps": 3, "lr_warmup_steps": 0, "learning_rate": 1e-3}
OPTIONS |= {"lr_scheduler": "constant", "logging_steps": 1}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch):
    """Makes losses infinite at steps, or by a function of the step and of the first image that is seen."""

    def poisoned(bad) -> list[tuple[int, Tensor]]:
        own, seen = DiffusionTask.loss, []

        def loss(task, batch, context):
            losses = own(task, batch, context)
            seen.append((context.step, batch["indices"].clone()))
            return losses._replace(loss=losses.loss * torch.inf) if bad(context.step, len(seen)) else losses

        monkeypatch.setattr(DiffusionTask, "loss", loss)
        return seen

    return poisoned


def test_a_skipped_step_changes_nothing(poison, train, tmp_path):
    """Neither weights nor averages nor moments; the losses that are logged are of the others."""
    poison(lambda step, calls: step == 11)
    run = train(tmp_path / "run", **OPTIONS, on_nonfinite="skip")
    lines = read_metrics(run)
    assert [line["skipped_steps"] for line in lines] == [0] * 11 + [1]
    assert lines[-1]["loss"] is None
    assert lines[-1]["grad_norm"] is None
    short = trained(train(tmp_path / "short", **OPTIONS | {"max_train_steps": 11}))
    own = {name: digest for name, digest in trained(run).items() if name.startswith("checkpoint-12/")}
    assert own == {name.replace("-11/", "-12/"): v for name, v in short.items() if name.startswith("checkpoint-11/")}


def test_logged_over_several_steps(poison, train, tmp_path):
    poison(lambda step, calls: step in (1, 2))
    options = OPTIONS | {"logging_steps": 12, "checkpointing_steps": 12}
    (line,) = read_metrics(train(tmp_path / "run", **options, on_nonfinite="skip"))
    assert line["skipped_steps"] == 2
    assert 0 < line["loss"] < 10


def test_a_run_that_has_diverged_ends(poison, train, tmp_path):
    poison(lambda step, calls: step >= 4)
    with pytest.raises(UserError, match=r"not finite in 10 steps in a row up to step 14: the run has diverged; start"):
        train(tmp_path / "run", **OPTIONS | {"max_train_steps": 30}, on_nonfinite="skip")


def test_rewind(poison, train, tmp_path, capsys):
    """From the last checkpoint, and with other images: then it goes on."""
    seen = poison(lambda step, calls: step >= 4 and calls <= 4 + MOST_IN_A_ROW)
    run = train(tmp_path / "run", **OPTIONS | {"max_train_steps": 20, "checkpointing_steps": 4}, on_nonfinite="rewind")
    assert "the gradient is not finite: from step 14 back to checkpoint-12" in capsys.readouterr().out
    steps = [step for step, _ in seen]
    assert steps == [*range(14), *range(12, 20)]
    first, again = (rows for step, rows in seen if step == 12)
    assert not torch.equal(first, again)
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["skipped_steps"] == 0


def test_rewinds_are_limited_and_need_a_checkpoint(poison, train, tmp_path):
    seen = poison(lambda step, calls: step >= 4)
    with pytest.raises(UserError, match="after going back 3 times: the run has diverged"):
        train(tmp_path / "run", **OPTIONS | {"max_train_steps": 90}, on_nonfinite="rewind")
    assert len(seen) < 60
    with pytest.raises(UserError, match="there is no checkpoint yet to go back to"):
        train(
            tmp_path / "other", **OPTIONS | {"checkpointing_steps": 100, "max_train_steps": 90}, on_nonfinite="rewind"
        )


def test_two_processes_agree(poison, launch, train, tmp_path):
    """As one process with twice the accumulation: nothing is skipped, and no process waits for another."""
    statuses, printed = launch(tmp_path / "run", 2, **OPTIONS, on_nonfinite="skip")
    assert statuses == [0, 0], printed
    assert all(line["skipped_steps"] == 0 for line in read_metrics(tmp_path / "run"))
