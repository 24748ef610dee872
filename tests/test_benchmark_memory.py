"""Memory that is worked out, against closed forms and against what PyTorch's allocator gives out in a training."""

import gc
import sys
from unittest.mock import patch

import pytest
import torch

from benchmarks import memory
from benchmarks.simulated_step import LiveBytes, Step, simulate
from snowmelt.config import make_parser
from snowmelt.options import UnconditionalConfig
from tests.conftest import _reset_accelerate

FEW = ["--model_size", "tiny", "--resolution", "16", "--train_batch_size", "16"]
NETWORKS = {
    "UNet": ["--mixed_precision", "no"],
    # Its noise levels are a table; what is computed again must not stay.
    "DiT in bf16, recomputing": [
        *("--backbone", "dit", "--mixed_precision", "bf16", "--gradient_checkpointing", "--objective", "epsilon"),
    ],
    # Here weights weigh more than activations, and gradients are there from the first pass on.
    "muon, two averages": [
        *("--mixed_precision", "no", "--train_batch_size", "1", "--gradient_accumulation_steps", "2"),
        *("--optimizer", "muon", "--ema_widths", "0.05", "0.1"),
    ],
}


def options(words: list[str]) -> UnconditionalConfig:
    return UnconditionalConfig(**vars(make_parser(UnconditionalConfig).parse_args(words)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_takes_what_was_worked_out(name, tmp_path) -> None:
    words = [*FEW, *NETWORKS[name]]
    step = simulate(options(words), 3, [1], gpu=False)
    expected = sum(memory.per_device(step, 1, False, 4).values())
    gc.collect()
    _reset_accelerate()
    with patch.object(sys, "argv", []):
        measured = memory.profiled([*memory.check_words(tmp_path, 16), *words])
    _reset_accelerate()
    assert expected == pytest.approx(measured, rel=0.1)


def test_what_is_alive() -> None:
    weight = torch.nn.Parameter(torch.zeros(1000))  # 4,000 bytes, like all but the loss
    with LiveBytes([weight], [], [1, 4]) as live:
        loss = (weight * 2).exp().sum()
        assert live.live == {"gradients": 0, "copies": 0, "activations": 4004}  # exp's output, and the loss
        loss.backward()
        assert live.live == {"gradients": 4000, "copies": 0, "activations": 4004 - 4000}
        weight.grad = None
        assert live.live["gradients"] == 0
    for peak in live.peaks.values():  # two of them at a time
        assert sum(peak.values()) == pytest.approx(8000, abs=16)


def test_what_autocast_copies_is_not_there_with_shards() -> None:
    weight = torch.nn.Parameter(torch.zeros(10, 100))
    with LiveBytes([weight], [], [1, 2]) as live, torch.autocast("cpu", torch.bfloat16):
        torch.nn.functional.linear(torch.zeros(1, 100), weight)
    assert [peak["copies"] for peak in live.peaks.values()] == [2000, 0]


def test_shares_of_devices() -> None:
    peaks = {
        1: {"gradients": 400, "copies": 40, "activations": 7},
        4: {"gradients": 100, "copies": 0, "activations": 7},
    }
    step = Step(parameters=100, flops=1, weights=400, moments=800, ema=400, block=80, rest=20, peaks=peaks)
    parts = {"weights": 440, "gradients": 400, "moments": 800, "EMA": 400, "activations": 7}
    assert memory.per_device(step, 1, False, 2) == parts
    assert memory.per_device(step, 4, False, 2) == parts | {"gradients": 800}  # and the buckets
    gathered = {"weights": 100 + (20 * (4 + 2) + 160 * 2) // 4, "gradients": 100 + 40}
    assert memory.per_device(step, 4, True, 2) == parts | gathered | {"moments": 200, "EMA": 100}


def test_table(capsys) -> None:
    words = ["memory", *FEW[:4], "--devices", "1", "8", "--fsdp", "--tflops", "0.5"]
    with patch.object(sys, "argv", words):
        memory.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[3] for row in rows] == ["1", "8", "8, FSDP2"]
    for row in rows:
        assert float(row[10]) / 0.5 == pytest.approx(float(row[11]), rel=0.01)
        assert sum(map(float, row[4:9])) == pytest.approx(float(row[9].strip("*")), abs=0.03)
