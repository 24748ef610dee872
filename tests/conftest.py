"""Runs of the real script at tiny size, most of them in this process; nothing is read from or written to the user's."""

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

# One for all processes of a session, which inherit it.
_HOME = os.environ.setdefault("SNOWMELT_TESTS_HOME", f"{tempfile.gettempdir()}/snowmelt-tests-{os.getpid()}")
os.environ |= {
    "HF_HOME": _HOME,
    "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens there: a test that wants the Hub fails at once
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",  # sums are then the same in every process, and tests don't fight for cores
    "NO_COLOR": "1",
}
for _name in ("HF_TOKEN", "ACCELERATE_MIXED_PRECISION"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402

torch.set_num_threads(1)

LONGEST = ("tests/test_readme", "tests/test_finetune", "tests/test_train", "tests/test_evaluate", "tests/hostile")
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "train_unconditional.py"
TINY_UNET = {
    "_class_name": "UNet2DModel",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "dropout": 0.1,  # so that runs agree only if the network's own randomness does
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are shared out whole between processes, for their fixtures' sake, but for groups that are marked.

    The longest come first, so that no process waits for another in the end.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # pytest-xdist's workers end before their parent does
        shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the digits, decoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network's configuration as a JSON file."""
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(TINY_UNET))
    return path


@pytest.fixture(scope="session")
def arguments(cache_dir: Path, tiny_unet: Path) -> Callable[..., list[str]]:
    """The command line of a run on the digits; options replace the usual ones, and those that are None are left out."""

    def arguments(output_dir: Path, **options: object) -> list[str]:
        usual = {
            "dataset_name": "digits",
            "class_conditional": True,
            "resolution": 8,
            "cache_dir": cache_dir,
            "model_config_name_or_path": tiny_unet,
            "mixed_precision": "no",
            "train_batch_size": 8,
            "eval_batch_size": 1,
            "ddpm_num_inference_steps": 1,
            "logging_steps": 1,
            "save_images_epochs": 0,
            "save_model_epochs": 0,
            "max_train_steps": 2,
        }
        words: list[str] = []
        for name, value in (usual | options | {"output_dir": output_dir}).items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            elif value is not None:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words

    return arguments


def run_in_process(words: list[str], script: str = SCRIPT.stem) -> None:
    """A script's `main`, as its own process would run it."""
    main = importlib.import_module(script).main
    _reset_accelerate()
    try:
        with patch.object(sys, "argv", [f"{script}.py", *words]):
            main()
    finally:
        _reset_accelerate()


def _reset_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def train(arguments: Callable[..., list[str]]) -> Callable[..., Path]:
    """Train in this process: `train(folder, **options)` returns the folder, or raises what `main` raises."""

    def train(output_dir: Path, script: str = SCRIPT.stem, **options: object) -> Path:
        run_in_process(arguments(output_dir, **options), script)
        return output_dir

    return train


@pytest.fixture(scope="session")
def start(arguments: Callable[..., list[str]]) -> Callable[..., subprocess.Popen]:
    """Start the script as a user would, in a process group of its own; with several processes, by torchrun."""

    def start(output_dir: Path, processes: int = 1, **options: object) -> subprocess.Popen:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        words = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), *arguments(output_dir, **options)]
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        )

    return start


@pytest.fixture(scope="session")
def fork(arguments: Callable[..., list[str]]) -> Callable[..., list[BaseProcess]]:
    """Start the script's processes from a server that has imported everything: a tenth of a second, not six.

    Their exit statuses are the script's; what they print goes to `{output_dir}.{rank}.log`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["snowmelt.trainer", "snowmelt.data.sources", "snowmelt.run_folder", "pipelines"])

    def fork(
        output_dir: Path,
        processes: int = 1,
        script: str = SCRIPT.stem,
        variables: Mapping[str, str] = MappingProxyType({}),
        **options: object,
    ) -> list[BaseProcess]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        words = arguments(output_dir, **options)
        started = []
        for rank in range(processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            environment = {k: str(v) for k, v in place.items()} | {"MASTER_ADDR": "127.0.0.1"} if processes > 1 else {}
            environment |= variables
            log = f"{output_dir}.{rank}.log"
            started.append(context.Process(target=_script, args=(script, words, environment, log)))
            started[-1].start()
        return started

    return fork


def _script(script: str, words: list[str], environment: dict[str, str], log: str) -> None:
    from snowmelt.errors import run

    os.environ.update(environment)
    sys.argv = [f"{script}.py", *words]
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        run(importlib.import_module(script).main)


@pytest.fixture(scope="session")
def launch(fork: Callable[..., list[BaseProcess]]) -> Callable[..., tuple[list[int | None], str]]:
    """Run several processes to their end: their exit statuses, and what they printed."""

    def launch(output_dir: Path, processes: int, **options: object) -> tuple[list[int | None], str]:
        started = fork(output_dir, processes, **options)
        for process in started:
            process.join(120)
        printed = [Path(f"{output_dir}.{rank}.log").read_text() for rank in range(processes)]
        return [process.exitcode for process in started], "".join(printed)

    return launch


def trained(folder: Path, since: int = 0) -> dict[str, str]:
    """Digests of all that training decides: pipeline, samples, and checkpoints from step `since` on."""
    kept = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".png", ".json")):
        name = path.relative_to(folder)
        step = int(name.parts[0].removeprefix("checkpoint-")) if name.parts[0].startswith("checkpoint-") else since
        # The loss plot depends on when lines were logged; a state names the run's folder.
        if step >= since and name.name not in ("loss.png", "trainer_state.json", "run.json", "heartbeat.json"):
            kept[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return kept
