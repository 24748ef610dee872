"""The README keeps its word: its commands run, its lines of Python run, its links and images exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snowmelt.data.scenes import dataset
from snowmelt.evaluation import classifier
from tests.conftest import run_in_process
from tests.hub_server import Hub

pytest_plugins = ["tests.hub"]
ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# Appended to every command, so that what takes minutes takes seconds: the last of two flags wins.
TINY = "--max_train_steps 2 --train_batch_size 4 --eval_batch_size 4"
SMALL = {
    "train_unconditional.py": f"{TINY} --resolution 16 --model_size tiny --ddpm_num_inference_steps 2 "
    "--gradient_accumulation_steps 1",
    "generate.py": "--num_images 4 --num_inference_steps 2",
    # Without features, else a classifier of cats and dogs is trained first.
    "train_autoencoder.py": f"{TINY} --resolution 16 --model_size tiny --eval_features none",
    "train_text2img.py": f"{TINY} --ddpm_num_inference_steps 2",
    "publish.py": "",
    "evaluate.py": "--num_images 20 --num_inference_steps 2",
}
FOLDERS = ("--output_dir", "--model", "--autoencoder", "--pretrained_model_name_or_path")
DEFAULTS = {"train_text2img.py": "runs/scenes", "train_unconditional.py": "runs/digits"}
"""Folders that scripts write to when none is named."""


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def commands() -> list[str]:
    return re.findall(r"^\|[^|]*\| `([^`]+)` \|$", section("What it does"), re.M)


def chains() -> list[list[str]]:
    """The commands of the table, those that work on the same folders together, in their order."""
    found: list[tuple[set[str], list[str]]] = []
    for command in commands():
        words = shlex.split(command)
        names = {words[i + 1] for i, word in enumerate(words[:-1]) if word in FOLDERS}
        if "--output_dir" not in words:
            names |= {folder for script, folder in DEFAULTS.items() if script in command}
        alike = [chain for chain in found if chain[0] & names]
        found = [chain for chain in found if chain not in alike]
        joined = names.union(*(folders for folders, _ in alike))
        found.append((joined, [*(earlier for _, chain in alike for earlier in chain), command]))
    return [chain for _, chain in found]


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder in which the README's commands find the scripts, a data set and nothing else."""
    folder = tmp_path
    for name in SMALL:
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (folder / "photos" / kind).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (70, 80, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{i}.jpg")
    return folder


def started() -> set[str]:
    """Commands that are typed in a shell of their own, one of accelerate's and one of Python; the rest run here."""
    found = commands()
    return {found[1], next(c for c in found if c.startswith("python publish.py"))}


def start(words: list[str], folder: Path, hub: Hub) -> None:
    environment = hub.environment(hub.token("user"), folder / "home") | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "2",  # accelerate launch would say 1
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "chain", [pytest.param(c, marks=pytest.mark.xdist_group(f"readme-{i}")) for i, c in enumerate(chains())]
)
def test_commands_run_in_the_order_of_the_table(clone, connected, chain, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.setenv("HF_TOKEN", connected.token("user"))
    monkeypatch.setattr(classifier, "STEPS", 60)  # 2,000 take a minute
    monkeypatch.setattr(dataset.scenes, "__defaults__", (500, 0, 64))
    for command in chain:
        script = next(name for name in SMALL if name in command)
        further = "--max_train_steps 3" if "--resume_from_checkpoint" in command else ""
        words = shlex.split(f"{command} {SMALL[script]} {further}")
        if command in started():
            start([sys.executable if words[0] == "python" else words[0], *words[1:]], clone, connected)
        else:
            assert words[: words.index(script)] in (["python"], ["accelerate", "launch"])
            run_in_process(words[words.index(script) + 1 :], script.removesuffix(".py"))
    if "runs/digits" in "".join(chain):
        exec(re.search(r"```python\n(.*?)```", README, re.S).group(1), {})


def test_no_command_is_left_out():
    assert sorted(command for chain in chains() for command in chain) == sorted(commands())
    assert len(commands()) >= 16
    assert len(chains()) >= 4


def test_links_and_images_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
