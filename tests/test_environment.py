"""What a run is launched with: by the real launcher, which starts a process that says what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snowmelt.environment import Launch, describe, make_accelerator
from snowmelt.errors import UserError
from snowmelt.options import UnconditionalConfig
from tests.conftest import ROOT, _reset_accelerate

FOUND = """
import dataclasses, json, sys
sys.path.insert(0, {root!r})
from snowmelt.environment import find_launch, use_all_cores
import torch
launch = find_launch()
use_all_cores(launch)
print(json.dumps(dataclasses.asdict(launch) | {{"threads": torch.get_num_threads()}}))
"""


@pytest.fixture
def found(tmp_path: Path):
    """`found(*flags, saved=..., **variables)`: what a script that was launched so finds."""
    script = tmp_path / "script.py"
    script.write_text(FOUND.format(root=str(ROOT)))

    def found(*flags: str, saved: str = "", **variables: str) -> dict:
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"HF_HOME": str(tmp_path)}
        environment |= variables
        if saved:
            (tmp_path / "accelerate").mkdir(exist_ok=True)
            (tmp_path / "accelerate/default_config.yaml").write_text(saved)
        launcher = ["-m", "accelerate.commands.launch"] if flags or saved else []
        words = [sys.executable, *launcher, *flags, str(script)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    return found


def test_what_the_launcher_was_asked_for(found) -> None:
    asked = found("--cpu", "--num_processes", "2", "--mixed_precision", "no", "--num_cpu_threads_per_process", "1")
    assert asked == {"num_processes": 2, "mixed_precision": "no", "num_cpu_threads_per_process": 1, "threads": 1}


def test_what_nobody_asked_for(found) -> None:
    """The launcher sets one thread and no reduced precision by default, which is nobody's wish."""
    asked = found("--cpu")
    threads = len(os.sched_getaffinity(0))
    assert asked == {
        "num_processes": None,
        "mixed_precision": None,
        "num_cpu_threads_per_process": None,
        "threads": threads,
    }
    assert found() | {"threads": 0} == asked | {"threads": 0}


def test_exported_threads_are_asked_for(found) -> None:
    """One thread of the user's is not the launcher's default of one."""
    asked = found("--cpu", OMP_NUM_THREADS="1")
    assert (asked["num_cpu_threads_per_process"], asked["threads"]) == (1, 1)


@pytest.mark.slow
def test_the_saved_configuration_is_obeyed(found) -> None:
    saved = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nmixed_precision: 'no'\nnum_processes: 2\n"
    saved += "use_cpu: true\nmachine_rank: 0\nnum_machines: 1\nmain_training_function: main\ndebug: false\n"
    asked = found("--cpu", saved=saved)
    assert (asked["num_processes"], asked["mixed_precision"]) == (2, "no")


def test_other_kinds_of_sharding_are_refused_in_a_line(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="launched for DeepSpeed; .* or, where the model doesn't fit .*, FSDP with"):
        make_accelerator(UnconditionalConfig())


def test_what_was_asked_for_in_vain_is_said() -> None:
    _reset_accelerate()
    config = UnconditionalConfig(train_batch_size=4, gradient_accumulation_steps=3, mixed_precision="no", local_rank=0)
    accelerator = make_accelerator(config)
    first, warning, ignored = describe(accelerator, config, Launch(num_processes=2))
    _reset_accelerate()
    assert first.startswith("1 process, ")
    assert first.endswith("mixed precision no; 12 images per optimizer step")
    assert "2 processes were asked for, but `accelerate launch` starts one on CPUs" in warning
    assert "`torchrun --nproc_per_node 2 SCRIPT ...` starts them" in warning
    assert ignored == "--local_rank is ignored: the launcher says it in LOCAL_RANK"
