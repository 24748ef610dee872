"""Checkpoints: whole or absent, checked before they are loaded, and never lost to a full disk."""

import errno
import json
import os
import shutil
import signal
import subprocess
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from snowmelt.checkpoint import Checkpoints, complete, find, read_state, save_atomically
from snowmelt.errors import UserError
from snowmelt.run_files import settle
from snowmelt.stateful import NetworkState, OptimizerState
from tests.conftest import trained


class Number:
    """A stateful that holds one number, and can meet with a full disk or the end of the process while it saves."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.full = False
        self.killed = False

    def collect(self) -> Callable[[Path], None]:
        return self.write

    def write(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "number").write_text(str(self.value))
        if self.full:
            Path("/dev/full").write_text("one byte too many")
        if self.killed:
            os.kill(os.getpid(), signal.SIGKILL)

    def load(self, folder: Path) -> None:
        self.value = int((folder / "number").read_text())


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    """A run of four steps with a checkpoint of each."""
    return train(tmp_path_factory.mktemp("run") / "run", max_train_steps=4, checkpointing_steps=1)


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def save(checkpoints: Checkpoints, step: int, **meta: Any) -> Path:
    checkpoints.save(step, meta)
    checkpoints.wait()
    return checkpoints.root / f"checkpoint-{step}"


def load(path: Path, number: Number) -> None:
    Checkpoints(path.parent, {"a": number}).load(path, read_state(path))


def test_every_process_collects_and_one_writes(tmp_path):
    number, asked = Number(3), []
    number.collect = lambda: asked.append(1) or number.write
    checkpoints = Checkpoints(tmp_path, {"a": number})
    checkpoints.save(7, {}, writes=False)
    checkpoints.wait()
    assert asked == [1]
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_of_the_step_that_was_saved(tmp_path):
    """Training goes on while it is written."""
    net = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                      down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    states = [NetworkState(net), OptimizerState(optimizer)]

    def step() -> None:
        net(torch.ones(1, 3, 8, 8), 3).sample.square().mean().backward()
        optimizer.step()

    step()
    before = deepcopy(net.state_dict()), deepcopy(optimizer.state_dict()["state"])
    writes = [state.collect() for state in states]
    step()
    for number, write in enumerate(writes):
        write(tmp_path / str(number))
    assert not torch.equal(net.state_dict()["conv_in.weight"], before[0]["conv_in.weight"])
    for number, state in enumerate(states):
        state.load(tmp_path / str(number))
    after = net.state_dict(), optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_round_trip(tmp_path):
    path = save(Checkpoints(tmp_path, {"a": Number(3)}), 7, config={"seed": 1})
    state = read_state(path)
    assert (path.name, state["step"], state["config"]) == ("checkpoint-7", 7, {"seed": 1})
    number = Number()
    load(path, number)
    assert number.value == 3


def test_limit_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"a": Number()}, limit=2)
    for step in (9, 10, 11):
        save(checkpoints, step)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-10", "checkpoint-11"]
    assert find(tmp_path, "latest").name == "checkpoint-11"


def test_resuming_an_earlier_one_replaces_the_later(tmp_path):
    number = Number()
    checkpoints = Checkpoints(tmp_path, {"a": number}, limit=2)
    for number.value, step in ((1, 2), (2, 4), (3, 2), (4, 3)):
        save(checkpoints, step)
    assert [p.name for p in complete(tmp_path)] == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    load(tmp_path / "checkpoint-2", number)
    assert number.value == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_failing_part_leaves_nothing(tmp_path):
    first, second = Number(1), Number(2)
    checkpoints = Checkpoints(tmp_path, {"a": first, "b": second}, limit=1)
    save(checkpoints, 1)
    second.full = True
    with pytest.raises(UserError, match="disk full while saving checkpoint-2 .*; checkpoint-1 is intact") as caught:
        save(checkpoints, 2)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["checkpoint-1"]
    load(tmp_path / "checkpoint-1", first)


def test_killed_while_saving(tmp_path):
    number = Number(1)
    checkpoints = Checkpoints(tmp_path, {"a": number, "b": Number()}, limit=1)
    save(checkpoints, 1)
    child = os.fork()
    if not child:
        number.killed = True
        save(checkpoints, 2)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == [".partial-checkpoint-2", "checkpoint-1"]
    save(checkpoints, 2)
    assert os.listdir(tmp_path) == ["checkpoint-2"]


def test_partial_ones_are_ignored_and_cleared(tmp_path):
    for name in (".partial-checkpoint-3", "checkpoint-4", "checkpoint-best"):  # none has a state file
        (tmp_path / name).mkdir()
    (tmp_path / ".partial-checkpoint-3" / "trainer_state.json").write_text("{}")
    assert find(tmp_path, "latest") is None
    checkpoints = Checkpoints(tmp_path, {"a": Number()})
    save(checkpoints, 2)
    assert find(tmp_path, "latest").name == "checkpoint-2"
    assert not (tmp_path / ".partial-checkpoint-3").exists()


def test_find(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for root in (here, there):
        root.mkdir()
        for step in (2, 4):
            save(Checkpoints(root, {"a": Number()}), step)
    assert find(here, "checkpoint-2") == here / "checkpoint-2"
    assert find(here, str(there / "checkpoint-2")) == there / "checkpoint-2"
    assert find(here, "moved/checkpoint-2") == here / "checkpoint-2"
    with pytest.raises(UserError, match="checkpoint-3: no complete .*; there are: checkpoint-2, checkpoint-4"):
        find(here, "checkpoint-3")


def test_networks_load_in_diffusers_and_others_may_read_them(run):
    for name in ("unet", "unet_ema"):
        path = run / "checkpoint-4" / name
        assert UNet2DModel.from_pretrained(path).config.sample_size == 8
    modes = {p.stat().st_mode & 0o777 for p in run.rglob("*") if p.suffix in (".safetensors", ".json")}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_nothing_is_pickled(run):
    for path in (p for p in run.rglob("*") if p.is_file()):
        start = path.read_bytes()[:2]
        assert path.name == ".lock" or path.suffix in (".py", ".safetensors", ".json", ".jsonl", ".yaml", ".png"), path
        assert not zipfile.is_zipfile(path), path
        assert not (start[:1] == b"\x80" and start[1] in range(1, 6)), path  # a pickle's protocol


@pytest.mark.parametrize("part", ["unet", "unet_ema", "optimizer"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_found(part, damage, copy, train):
    file = next((copy / "checkpoint-4" / part).glob("*.safetensors"))
    content = file.read_bytes()
    if damage == "delete":
        file.unlink()
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + (bytes([content[middle] ^ 1]) + content[middle + 1 :]) * (damage == "flip"))
    with pytest.raises(UserError, match=f"checkpoint-4 is damaged: {part}/{file.name} .*; resume from checkpoint-3$"):
        train(copy, max_train_steps=4, resume_from_checkpoint="latest")


def test_damaged_checkpoint_is_replaced(run, copy, train):
    (copy / "checkpoint-4" / "unet" / "config.json").unlink()
    train(copy, max_train_steps=4, checkpointing_steps=1, resume_from_checkpoint="checkpoint-3")
    assert trained(copy) == trained(run)


def test_any_flipped_byte_of_the_state_is_found(copy):
    file = copy / "checkpoint-4" / "trainer_state.json"
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"trainer_state.json .*; resume from checkpoint-3"):
            read_state(file.parent)


def test_other_training_is_refused(copy, train):
    with pytest.raises(UserError, match=r"checkpoint-4 was made with (?!.*max_train)") as caught:
        train(copy, resume_from_checkpoint="latest", learning_rate=0.5, ema_power=0.7, max_train_steps=9)
    assert "--learning_rate 0.0001 (now 0.5)" in str(caught.value)
    assert "--ema_power 0.75 (now 0.7)" in str(caught.value)


def test_processes_that_cannot_share_the_batches_out(run, copy, fork):
    """Four steps were of one batch each, which two processes can't share."""
    processes = fork(copy, 2, max_train_steps=6, resume_from_checkpoint="latest")
    for process in processes:
        process.join(60)
    assert {process.exitcode for process in processes} == {2}
    printed = Path(f"{copy}.0.log").read_text()
    assert "num_processes=1 (now 2)" in printed
    assert "a step of the run has 1 batches; launch 1" in printed


def test_other_data_is_refused(tmp_path, tiny_unet, train):
    from PIL import Image

    photos = tmp_path / "pictures"
    photos.mkdir()
    options = {"dataset_name": None, "train_data_dir": photos, "class_conditional": False}
    Image.new("L", (8, 8), 9).save(photos / "a.png")
    train(tmp_path / "run", **options)
    Image.new("L", (8, 8), 200).save(photos / "a.png")
    with pytest.raises(UserError, match="checkpoint-2 was made with content="):
        train(tmp_path / "run", **options, resume_from_checkpoint="latest")


def test_what_may_change(run, copy, train):
    """Reporting, saving and the length of the run do not change a step."""
    changed = {"logging_steps": 3, "checkpointing_steps": 2, "eval_batch_size": 2, "max_train_steps": 6}
    train(copy, **changed, resume_from_checkpoint="latest")
    assert [p.name for p in complete(copy)][-2:] == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("lr_scheduler", ["linear", "constant_with_warmup"])
def test_a_new_end_of_the_learning_rate_is_given(lr_scheduler, train, tmp_path, capsys):
    train(tmp_path / "run", lr_scheduler=lr_scheduler)
    train(tmp_path / "run", lr_scheduler=lr_scheduler, max_train_steps=4, resume_from_checkpoint="latest")
    given = (
        "the linear learning rate ends at step 4 now, not at step 2 as when checkpoint-2 was made"
        in capsys.readouterr().out
    )
    assert given == (lr_scheduler == "linear")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, for those who may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_full_disk(small_disk, train, tmp_path):
    """It ends in one line; with more space the run goes on and ends as one that had it from the start."""
    options = {"max_train_steps": 5, "checkpointing_steps": 1}
    with pytest.raises(UserError, match=r"disk full while saving checkpoint-(\d) .*; checkpoint-\d is intact: free"):
        train(small_disk / "run", **options)
    assert complete(small_disk / "run")
    assert not list((small_disk / "run").glob(".partial*"))
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    train(small_disk / "run", **options, resume_from_checkpoint="latest")
    assert trained(small_disk / "run") == trained(train(tmp_path / "whole", **options))


def test_full_disk_while_logging(small_disk, train):
    with (small_disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (2 << 20) - 5 * 4096)  # all but a few pages
    with pytest.raises(UserError, match="disk full while saving metrics or samples .*no checkpoint is intact"):
        train(small_disk / "run", max_train_steps=400)


def test_an_optimizer_that_counts_in_whole_numbers(tmp_path):
    """As those of 8 bits do, whose moments are bytes."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizers = [torch.optim.SGD([parameter]) for _ in range(2)]
    optimizers[0].state[parameter] = {"step": 7, "state1": torch.arange(3, dtype=torch.uint8)}
    OptimizerState(optimizers[0]).collect()(tmp_path / "optimizer")
    OptimizerState(optimizers[1]).load(tmp_path / "optimizer")
    state = optimizers[1].state[parameter]
    assert state["step"] == 7
    assert isinstance(state["step"], int)
    assert state["state1"].tolist() == [0, 1, 2]


@pytest.fixture
def model(tmp_path):
    """`model(number)` saves a model of that number, of three parts, into a folder with a file of the user's."""
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet/notes.txt").write_text("mine")

    def model(number: int) -> Path:
        def save(partial: Path) -> None:
            for name in ("unet", "scheduler"):
                (partial / name).mkdir(parents=True)
                (partial / name / "config.json").write_text(str(number))
            (partial / "model_index.json").write_text(str(number))

        save_atomically(save, folder)
        return folder

    return model


def ages(folder: Path) -> set[str]:
    return {p.read_text() for p in folder.rglob("*.json") if not p.relative_to(folder).parts[0].startswith(".")}


def test_a_model_is_replaced_as_a_whole(model):
    assert ages(model(1)) == {"1"}
    folder = model(2)
    assert ages(folder) == {"2"}
    assert (folder / "unet/notes.txt").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {"unet", "scheduler", "model_index.json"}


@pytest.mark.parametrize("moves", range(1, 12))
def test_a_kill_never_leaves_a_pipeline_of_two_ages(model, moves, monkeypatch):
    """Killed at any move of a file: what has a model_index.json is of one age, and the next who looks completes it."""
    folder = model(1)
    left = moves

    def counted(move):
        def counting(*paths):
            nonlocal left
            left -= 1
            if not left:
                os._exit(9)
            return move(*paths)

        return counting

    child = os.fork()
    if not child:
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, counted(getattr(os, name)))
        model(2)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if (folder / "model_index.json").exists():
        assert len(ages(folder)) == 1
    settle(folder)
    assert len(ages(folder)) == 1
    assert (folder / "model_index.json").exists()
    assert (folder / "unet/notes.txt").read_text() == "mine"
    assert killed or ages(folder) == {"2"}


def test_a_network_with_a_frozen_parameter_is_saved_whole(train, tmp_path, tiny_unet):
    """That of random Fourier features is no LoRA."""
    config = json.loads(tiny_unet.read_text()) | {"time_embedding_type": "fourier"}
    (tmp_path / "fourier.json").write_text(json.dumps(config))
    options = {"model_config_name_or_path": tmp_path / "fourier.json", "max_train_steps": 3, "checkpointing_steps": 1}
    options |= {"lr_scheduler": "constant"}
    straight = train(tmp_path / "straight", **options)
    assert "time_proj.weight" in UNet2DModel.from_pretrained(straight / "checkpoint-3/unet").state_dict()
    train(tmp_path / "run", **options | {"max_train_steps": 2})
    resumed = trained(train(tmp_path / "run", **options, resume_from_checkpoint="latest"))
    assert {name: resumed[name] for name in trained(straight)} == trained(straight)
