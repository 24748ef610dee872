"""Runs that are asked to stop, or are killed, and resume as if nothing had been."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from pipelines import PixelDiffusionPipeline
from snowmelt import heartbeat
from snowmelt.checkpoint import complete
from snowmelt.heartbeat import Heartbeat
from snowmelt.interrupts import Interrupts
from snowmelt.tracking import read_metrics
from tests.conftest import trained
from tests.data.shards import write_parquet
from tests.test_sharding import FSDP

STEPS = 120
OPTIONS = {"max_train_steps": STEPS, "checkpointing_steps": 7, "label_dropout": 0.3, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "run", **OPTIONS)


def wait_for(condition, process) -> bool:
    """Wait until the condition holds, for as long as the process lives; tell whether it does."""
    poll = getattr(process, "poll", None) or (lambda: process.exitcode)
    while not condition():
        if poll() is not None:
            return False
        time.sleep(0.002)
    return True


def logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signal(number, start, train, whole, tmp_path):
    process = start(tmp_path / "run", **OPTIONS)
    assert wait_for(lambda: logged(tmp_path / "run") >= 3, process)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    # A status by which a scheduler that stopped it starts it again; to a person nothing failed.
    assert process.returncode == (75 if number == signal.SIGTERM else 0), err
    heart = json.loads((tmp_path / "run/heartbeat.json").read_text())
    assert (heart["status"], heart["reason"]) == ("stopped", number.name)
    (last,) = complete(tmp_path / "run")[-1:]
    step = int(last.name.removeprefix("checkpoint-"))
    assert step < STEPS
    assert f"stopped at step {step} ({number.name}); resume with --resume_from_checkpoint latest" in out
    assert PixelDiffusionPipeline.from_pretrained(tmp_path / "run")(output_type="np", num_inference_steps=1)
    train(tmp_path / "run", **OPTIONS, resume_from_checkpoint="latest")
    extra = (f"checkpoint-{step}/", f"samples/step-{step:06d}")  # what only a run that stopped there leaves
    runs = [{k: v for k, v in trained(run).items() if not k.startswith(extra)} for run in (tmp_path / "run", whole)]
    assert runs[0] == runs[1]


def test_all_processes_know_why_they_stop(fork, tmp_path):
    """One is asked to, and a scheduler looks at the exit status of each; both stop at the same step."""
    first, second = fork(tmp_path / "run", 2, **OPTIONS | {"max_train_steps": 2000})
    assert wait_for(lambda: logged(tmp_path / "run") >= 3, first)
    os.kill(second.pid, signal.SIGUSR1)
    for process in (first, second):
        process.join(60)
    assert [first.exitcode, second.exitcode] == [75, 75]
    heart = json.loads((tmp_path / "run/heartbeat.json").read_text())
    assert (heart["status"], heart["reason"]) == ("stopped", "SIGUSR1")


def test_only_a_second_interrupt_interrupts():
    previous = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            assert interrupts.requested == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous


@pytest.fixture(scope="module")
def survivor(fork):
    """`survivor(folder, kills, **options)`: start a run, kill it that many times, then let it end."""

    def survivor(folder: Path, kills: int, **options: object) -> int:
        """Returns how many of the kills fell while a checkpoint was being written."""
        chance, amid = random.Random(kills), 0
        for kill in range(kills + 1):
            process, *others = fork(folder, **options, resume_from_checkpoint="latest")
            if kill < kills:
                before = logged(folder)
                assert wait_for(lambda before=before: logged(folder) != before, process), "it ended before the kill"
                if kill % 2:  # as soon as a checkpoint is begun; else at any time
                    wait_for(lambda: any(folder.glob(".partial-checkpoint-*")), process)
                time.sleep(chance.uniform(0, 0.005 if kill % 2 else 0.5))
                assert process.exitcode is None, "it ended before the kill"
                for one in chance.sample([process, *others], 1 + len(others)):
                    one.kill()
            for one in (process, *others):
                one.join()
            amid += any(folder.glob(".partial-checkpoint-*"))
        assert process.exitcode == 0
        return amid

    return survivor


def check_kills(survivor, folder: Path, kills: int, **options: object) -> int:
    amid = survivor(folder / "killed", kills, **options)
    assert survivor(folder / "whole", 0, **options) == 0
    whole = folder / "whole"
    assert trained(folder / "killed") == trained(whole)
    assert not list((folder / "killed").glob(".partial*"))
    lines = [[(line["step"], line["loss"]) for line in read_metrics(run)] for run in (folder / "killed", whole)]
    assert lines[0] == lines[1]
    return amid


def test_kill(survivor, tmp_path):
    check_kills(survivor, tmp_path, 3, max_train_steps=40, checkpointing_steps=1, checkpoints_total_limit=3)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_many_kills(every, survivor, tmp_path):
    options = {"max_train_steps": 400, "checkpointing_steps": every, "ema_widths": [0.05, 0.1]}
    assert check_kills(survivor, tmp_path, 24, **options), "no kill fell while a checkpoint was being written"


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streamed"])
@pytest.mark.parametrize("launched", [(1, {}), (2, {}), (2, FSDP)], ids=["one", "two", "sharded"])
def test_kills_of_all_kinds_of_runs(launched, streaming, survivor, tmp_path):
    """With those of `test_many_kills`, a hundred."""
    processes, variables = launched
    options = {"max_train_steps": 60, "checkpointing_steps": 1, "checkpoints_total_limit": 3, "processes": processes}
    options |= {"variables": variables, "streaming": True} if streaming else {"variables": variables}
    options |= {"dataset_name": None, "train_data_dir": write_parquet(tmp_path / "set"), "class_conditional": False}
    check_kills(survivor, tmp_path, 9, **options)


@pytest.mark.slow
def test_kill_of_one_process_of_two(fork, launch, tmp_path):
    """The other doesn't go on alone, and the two resume exactly."""
    options = {"max_train_steps": 60, "checkpointing_steps": 5, "gradient_accumulation_steps": 2}
    assert launch(tmp_path / "whole", 2, **options)[0] == [0, 0]
    first, second = fork(tmp_path / "killed", 2, **options)
    assert wait_for(lambda: logged(tmp_path / "killed") >= 13, first)
    second.kill()
    first.join(60)
    assert first.exitcode != 0
    assert launch(tmp_path / "killed", 2, **options, resume_from_checkpoint="latest")[0] == [0, 0]
    assert trained(tmp_path / "killed") == trained(tmp_path / "whole")


def test_the_heartbeat_says_how_a_run_ended(train, tmp_path):
    heart = tmp_path / "run/heartbeat.json"
    train(tmp_path / "run", max_train_steps=2)
    assert json.loads(heart.read_text()) | {"time": ""} == {"status": "finished", "step": 2, "time": "", "reason": None}


def test_a_heart_that_stands_still_is_seen(tmp_path, monkeypatch):
    clock = iter([100.0, 100.0, 105.0, 111.0, 111.0])
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: next(clock))
    with Heartbeat(tmp_path, writes=True) as heart:
        seen = []
        for step in (1, 2, 3):
            heart.beat(step)
            seen.append(json.loads((tmp_path / "heartbeat.json").read_text())["step"])
    assert seen == [1, 1, 3]
    with pytest.raises(RuntimeError), Heartbeat(tmp_path, writes=True):
        raise RuntimeError("out of\nmemory")
    ended = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (ended["status"], ended["reason"]) == ("failed", "out of memory")
