"""The files of docs/scaling.md: Accelerate reads them, what can run here runs, and a job that is signalled goes on."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from snowmelt.checkpoint import complete
from snowmelt.config import make_parser
from snowmelt.options import UnconditionalConfig
from snowmelt.tracking import read_metrics
from tests.conftest import ROOT, SCRIPT
from tests.test_interrupts import logged, wait_for

FILES = {path.stem: path for path in sorted((ROOT / "recipes/accelerate").glob("*.yaml"))}
CLUSTER = ROOT / "recipes/cluster"


def asked(name: str):
    """What `accelerate launch` makes of a file."""
    words = ["--config_file", str(FILES[name]), "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


def test_there_is_one_for_each_size() -> None:
    assert {name: load_config_from_file(str(path)).num_processes for name, path in FILES.items()} == {
        "one-cpu": 1,
        "two-cpu-processes": 2,
        "one-gpu": 1,
        "eight-gpus": 8,
        "fsdp2": 8,
        "two-nodes": 16,
    }


@pytest.mark.parametrize("name", FILES)
def test_the_launcher_reads_it(name: str) -> None:
    args = asked(name)
    several = name not in ("one-cpu", "one-gpu")
    assert (args.multi_gpu or args.use_fsdp) == several  # these kinds start processes by torchrun, on CPUs too
    assert args.use_cpu == name.endswith(("cpu", "cpu-processes"))
    assert args.num_machines == (2 if name == "two-nodes" else 1)
    assert (args.fsdp_version == 2) == (name == "fsdp2")


def test_the_document_names_all_of_them() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    for path in (*FILES.values(), *CLUSTER.iterdir()):
        assert f"recipes/{path.parent.name}/{path.name}" in text


def test_skypilot_task() -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    words = task["run"].replace("\\\n", " ").split()
    assert (ROOT / words[words.index("--config_file") + 1]).is_file()
    given = make_parser(UnconditionalConfig).parse_args(words[words.index("train_unconditional.py") + 1 :])
    assert given.resume_from_checkpoint == "latest"
    assert Path(given.output_dir).is_relative_to(*task["file_mounts"])
    assert task["resources"]["use_spot"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def launch(name: str, words: list[str], *flags: str) -> subprocess.Popen:
    """The training script by Accelerate's launcher, with a file of ours."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", FILES[name], *flags]
    command = [sys.executable, *map(str, launcher), str(SCRIPT), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.slow
def test_one_process(arguments, tmp_path) -> None:
    out, err = (process := launch("one-cpu", arguments(tmp_path / "run"))).communicate(timeout=300)
    assert process.returncode == 0, err
    assert "1 process, " in out


@pytest.mark.slow
def test_two_processes_and_two_machines(arguments, tmp_path) -> None:
    """A launcher for two processes, or one for each of two "machines" on loopback: the very same losses."""
    out, err = (
        process := launch("two-cpu-processes", arguments(tmp_path / "one"), "--main_process_port", "0")
    ).communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2 processes, " in out
    port = str(free_port())
    nodes = [
        launch(
            *("two-nodes", arguments(tmp_path / "two"), "--num_processes", "2", "--machine_rank", str(rank)),
            *("--main_process_ip", "127.0.0.1", "--main_process_port", port, "--mixed_precision", "no"),
        )
        for rank in (0, 1)
    ]
    printed = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert "2 processes, " in printed[0][0]
    losses = [[line["loss"] for line in read_metrics(tmp_path / run) if "loss" in line] for run in ("one", "two")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(arguments, tmp_path) -> None:
    """Within a minute, and which one it was is said once."""
    words = arguments(tmp_path / "run", max_train_steps=100000)
    launcher = launch("two-cpu-processes", words, "--main_process_port", "0")
    assert wait_for(lambda: logged(tmp_path / "run") >= 2, launcher)
    second = psutil.Process(launcher.pid).children()[1]
    second.kill()
    start = time.monotonic()
    _, err = launcher.communicate(timeout=120)
    assert time.monotonic() - start < 60
    assert launcher.returncode != 0
    assert len(re.findall(r"Signal 9 \(SIGKILL\) received by PID", err)) == 1


SRUN = """#!/bin/bash
# What srun does here: the command on each node, signals passed on to it, the worst exit status.
shift
trap 'kill -USR1 "${tasks[@]}"' USR1
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & tasks+=($!); done
worst=0
for task in "${tasks[@]}"; do
    while wait "$task"; status=$?; kill -0 "$task" 2> /dev/null; do :; done
    worst=$((status > worst ? status : worst))
done
exit $worst
"""
SCONTROL = """#!/bin/bash
case "$1" in show) echo 127.0.0.1 ;; *) echo "$@" >> "$REQUESTS" ;; esac
"""
STAND_IN = """#!{python} -S
# A launcher that ends at SIGUSR1 unless it ignores it, and a training that says what it got.
import os, subprocess, sys
training = '''
import os, signal, sys, time
def stop(*_):
    print("checkpoint", flush=True)
    sys.exit(0)
signal.signal(signal.SIGUSR1, stop)
print(" ".join(sys.argv[1:]), flush=True)
time.sleep(60)
'''
with open(os.environ["SAID"] + os.environ["SLURM_NODEID"], "w") as said:
    sys.exit(subprocess.call([sys.executable, "-S", "-c", training, *sys.argv[1:]], stdout=said))
"""


@pytest.fixture
def slurm(tmp_path):
    """`slurm(nodes, *words)` starts the job's script with what stands for Slurm; with `accelerate=` also for that."""
    commands = tmp_path / "bin"
    commands.mkdir()

    def slurm(nodes: int, *words: object, accelerate: str | None = None, config: str = "two-nodes") -> subprocess.Popen:
        accelerate = accelerate or f'#!/bin/bash\nexec {sys.executable} -m accelerate.commands."$@"\n'
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "accelerate": accelerate}.items():
            (commands / name).write_text(text.replace("{python}", sys.executable))
            (commands / name).chmod(stat.S_IRWXU)
        # The port follows from the job's number, below 20,000 so that the number follows from the port.
        job = {"JOB_ID": free_port() % 20000, "JOB_NODELIST": "node", "JOB_NUM_NODES": nodes, "GPUS_ON_NODE": 1}
        environment = os.environ | {f"SLURM_{name}": str(value) for name, value in job.items()}
        environment |= {"PATH": f"{commands}:{os.environ['PATH']}", "REQUESTS": str(tmp_path / "requests")}
        environment |= {"SAID": str(tmp_path / "said"), "ACCELERATE_CONFIG": str(FILES[config])}
        command = ["bash", str(CLUSTER / "slurm.sh"), *map(str, words)]
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return slurm


def test_slurm_passes_the_signal_on_and_queues_the_job_again(slurm, tmp_path) -> None:
    job = slurm(2, "train.py", "--output_dir", "a b", accelerate=STAND_IN)
    said = [tmp_path / f"said{node}" for node in (0, 1)]
    assert wait_for(lambda: all(path.exists() and path.read_text() for path in said), job)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=30)
    assert job.returncode == 0, out
    assert (tmp_path / "requests").read_text() == f"requeue {job_id(said[0])}\n"
    for node, path in enumerate(said):
        command, answer = path.read_text().splitlines()
        assert f"--num_machines 2 --num_processes 2 --machine_rank {node} --main_process_ip 127.0.0.1" in command
        assert command.endswith("train.py --output_dir a b --resume_from_checkpoint latest")
        assert answer == "checkpoint"


def job_id(said: Path) -> int:
    return int(re.search(r"--main_process_port (\d+)", said.read_text())[1]) - 20000


def test_slurm_hands_on_how_it_ended(slurm, tmp_path) -> None:
    job = slurm(2, "train.py", accelerate="#!/bin/bash\nexit $((3 * SLURM_NODEID))\n")
    assert job.wait(30) == 3
    assert not (tmp_path / "requests").exists()


@pytest.mark.slow
def test_slurm_with_a_training(slurm, arguments, train, tmp_path) -> None:
    """Signalled, it checkpoints; started again, it resumes and ends."""
    words = arguments(tmp_path / "run", max_train_steps=60)
    job = slurm(2, SCRIPT, *words)
    assert wait_for(lambda: logged(tmp_path / "run") >= 2, job)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == 1, out  # torchrun's, for processes that ended with 75
    assert "(SIGUSR1); resume with" in out
    (checkpoint,) = complete(tmp_path / "run")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert step < 60
    assert (tmp_path / "requests").read_text().startswith("requeue ")
    job = slurm(2, SCRIPT, *words)
    out, _ = job.communicate(timeout=300)
    assert job.returncode == 0, out
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == list(range(1, 61))
