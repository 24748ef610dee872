"""A training that is given minutes: its learning rate ends where they end, on a machine of any speed."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from snowmelt.checkpoint import complete
from snowmelt.progress import Progress
from snowmelt.tracking import read_metrics
from snowmelt.trainer import Trainer
from tests.conftest import trained

PEAK, WARMUP, STEPS, SECONDS = 2e-3, 2, 1000, 6.0  # of a step, by a clock that the steps alone move
OPTIONS = {"learning_rate": PEAK, "lr_warmup_steps": WARMUP, "lr_scheduler": "cosine", "train_batch_size": 8}
BUDGET = OPTIONS | {"max_train_steps": STEPS, "max_train_minutes": 1, "checkpointing_steps": 4}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes in training steps alone: `seconds` of each."""
    clock = SimpleNamespace(now=0.0, seconds=SECONDS)
    step = Trainer.train_step

    def timed(*args):
        step(*args)
        clock.now += clock.seconds

    monkeypatch.setattr(Trainer, "train_step", timed)
    monkeypatch.setattr("snowmelt.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def cosine(position: float) -> float:
    return PEAK * (1 + math.cos(math.pi * (position - WARMUP) / (STEPS - WARMUP))) / 2


def rates(folder: Path) -> list[float]:
    return [line["lr"] for line in read_metrics(folder)]


@pytest.mark.parametrize("seconds", [6.0, 3.0])
def test_the_curve_ends_with_the_minutes(seconds, clock, train, tmp_path, capsys):
    clock.seconds = seconds
    run = train(tmp_path / "run", **BUDGET)
    steps = int(60 / seconds)
    decaying = [cosine(min(1, step / steps) * STEPS) for step in range(WARMUP, steps + 1)]
    assert rates(run) == pytest.approx([0, PEAK / 2, *decaying], abs=1e-12)
    assert rates(run)[-1] == pytest.approx(0, abs=1e-12)
    said = capsys.readouterr().out
    assert f"stopped at step {steps + 1} (time limit)" in said
    assert "resume with --resume_from_checkpoint latest and a larger --max_train_minutes" in said


def test_enough_time_changes_nothing(clock, train, tmp_path):
    timed = train(tmp_path / "timed", **BUDGET | {"max_train_steps": 6, "max_train_minutes": 10})
    plain = train(tmp_path / "plain", **BUDGET | {"max_train_steps": 6, "max_train_minutes": None})
    assert rates(timed) == rates(plain)
    assert trained(timed) == trained(plain)


def test_a_resume_continues_the_curve(clock, train, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", **BUDGET)
    step = Trainer.train_step
    left = iter(range(7))

    def failing(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        step(*args)

    run = tmp_path / "run"
    monkeypatch.setattr(Trainer, "train_step", failing)
    with pytest.raises(KeyboardInterrupt):
        train(run, **BUDGET)
    monkeypatch.setattr(Trainer, "train_step", step)
    clock.now += 1e6  # what passes between the end and a resume doesn't count
    train(run, **BUDGET, resume_from_checkpoint="latest")
    assert rates(run) == rates(whole)
    assert trained(run) == trained(whole)


def test_more_minutes(clock, train, tmp_path, capsys):
    run = train(tmp_path / "run", **BUDGET)
    train(run, **BUDGET, resume_from_checkpoint="latest")
    assert "nothing left to train: checkpoint-11 is at step 11; give a larger" in capsys.readouterr().out
    train(run, **BUDGET | {"max_train_minutes": 2}, resume_from_checkpoint="latest")
    said = capsys.readouterr().out
    assert "ends at step 1000 or after 2 minutes now, not at step 1000 or after 1 minutes as when checkpoint-11" in said
    assert rates(run)[11:] == pytest.approx([cosine(min(1, step / 20) * STEPS) for step in range(11, 21)], abs=1e-12)


def test_two_processes_share_a_clock(launch, tmp_path):
    options = BUDGET | {"max_train_minutes": 0.05, "logging_steps": 2}
    codes, said = launch(tmp_path / "run", 2, **options)
    assert codes == [0, 0], said
    lrs = rates(tmp_path / "run")
    assert lrs[-1] < PEAK  # the time, not the 1,000 steps, made it less
    assert complete(tmp_path / "run")


def test_fractions():
    by_steps = Progress(10, None)
    assert [by_steps.fraction(step) for step in (0, 5, 10, 12)] == [0, 0.5, 1, 1]
    assert by_steps.expected_steps() == 10
    by_time = Progress(1000, 2)
    assert by_time.fraction(500) == 0.5  # nothing known of time yet
    by_time.start(10, 30.0)
    assert by_time.fraction(10) == 0.25
    assert by_time.fraction(20) == 0.5
    assert by_time.position(20, warmup_steps=5) == 500
    assert by_time.position(4, warmup_steps=5) == 4
    assert by_time.expected_steps() == 40
    assert Progress(20, 2).position(15, 0) == 15
