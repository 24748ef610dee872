"""What a training takes of each device: memory by what it is for, and the time of a step by its operations.

    python -m benchmarks.memory --model_size large --resolution 256 --devices 1 8 [--fsdp] [--tflops 400]
    python -m benchmarks.memory --check --model_size tiny --resolution 32 --mixed_precision no [--devices 2]

Further flags are those of train_unconditional.py. A step is gone through with tensors that hold nothing
(simulated_step.py), in the precisions of a GPU. What is shown is the moment when most is alive. --check trains three
steps here, in the precisions of a CPU, and compares with the most bytes that PyTorch's allocator gave out: that is what
runs out on a device. A process's RSS also has libraries, and what the allocator and kernels keep.

Step times are operations over --tflops, without communication. Give what a training is known to reach: --check says so.
Otherwise the rate of a large matrix product is taken, and the time is the least that can be hoped for.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch.distributed.tensor import DTensor

from benchmarks.simulated_step import DTYPES, Step, simulate
from snowmelt.config import make_parser
from snowmelt.environment import native_precision
from snowmelt.meter import Meter
from snowmelt.options import UnconditionalConfig
from snowmelt.tracking import read_metrics

CHECK_STEPS, CHECK_IMAGES = 3, 64
PARTS = ("weights", "gradients", "moments", "EMA", "activations")


def per_device(step: Step, devices: int, sharded: bool, width: int) -> dict[str, int]:
    """Bytes of each of `PARTS` on a device, when most are alive.

    One device: weights with the copies that autocast makes. Data parallelism adds buckets, as large as all gradients,
    which are summed in them. FSDP2 keeps a part of everything, and gathers what is in no block, of which autocast makes
    copies, and in the precision of the passes the block that computes and the next one; gradients of a block are whole
    until they have been scattered.

    Args:
        step: simulated for one shard, and for as many as there are devices.
        devices: number of devices.
        sharded: whether by FSDP2.
        width: bytes of a number in the network's passes.
    """
    shards = devices if sharded else 1
    peak = step.peaks[shards]
    copies = width if width < 4 else 0
    gathered = (step.rest * (4 + copies) + 2 * step.block * width) // 4 if shards > 1 else peak["copies"]
    whole = step.block * width // 4 if shards > 1 else step.weights if devices > 1 else 0
    return {
        "weights": step.weights // shards + gathered,
        "gradients": peak["gradients"] + whole,
        "moments": step.moments // shards,
        "EMA": step.ema // shards,
        "activations": peak["activations"],
    }


def matrix_product_tflops(dtype: torch.dtype) -> float:
    """10^12 operations a second of a matrix product on this machine's device; the median of five."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    side = 1024 if device.type == "cpu" else 8192
    matrix, seconds = torch.randn(side, side, device=device, dtype=dtype), []
    for _ in range(6):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[1:]) / 1e12


def profiled(words: list[str]) -> int:
    """Run train_unconditional.py in this process; the most bytes that its tensors had in a step.

    What gloo's threads free the profiler doesn't see. So each step counts from its own beginning, when what is alive is
    weights, averages and moments.
    """
    from torch.profiler import ProfilerActivity, profile

    import train_unconditional
    from snowmelt.checkpoint import Checkpoints
    from snowmelt.trainer import Trainer

    starts: list[int] = []
    held: list[int] = []
    train_step, save_model = Trainer.train_step, Trainer.save_model

    def step(trainer: Trainer, batch: dict[str, torch.Tensor], micro: int, meter: Meter) -> None:
        starts.extend([time.time_ns()] * (micro == 0))
        train_step(trainer, batch, micro, meter)

    def save(trainer: Trainer) -> None:
        starts.append(time.time_ns())
        averages = [ema.network for emas in trainer.emas.values() for ema in emas.values()]
        weights = [p for net in (*trainer.task.networks.values(), *averages) for p in net.parameters()]
        moments = [
            m for state in trainer.optimizer.state.values() for m in state.values() if isinstance(m, torch.Tensor)
        ]
        held.extend((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in (*weights, *moments))
        save_model(trainer)

    sys.argv = ["train_unconditional.py", *words]
    with contextlib.ExitStack() as stack:
        for owner, name, own in ((Trainer, "train_step", step), (Trainer, "save_model", save)):
            stack.enter_context(patch.object(owner, name, own))
        stack.enter_context(
            patch.object(Checkpoints, "save")
        )  # its copies are in the host's memory, apart from a device's
        profiler = stack.enter_context(profile(activities=[ProfilerActivity.CPU], profile_memory=True))
        train_unconditional.main()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    alive = np.cumsum([e.nbytes() for e in events])
    places = np.searchsorted([e.start_ns() for e in events], starts)
    rises = [alive[first:end].max() - alive[first - 1] for first, end in itertools.pairwise(places)]
    return int(max(rises[1:]) + sum(held))  # the first step makes the moments


def check_words(folder: Path, side: int) -> list[str]:
    """Flags of a short training on images of noise, which are made in that folder."""
    rng, images = np.random.default_rng(0), folder / "images"
    images.mkdir()
    for i in range(CHECK_IMAGES):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(images / f"{i}.png")
    usual = {"train_data_dir": images, "cache_dir": folder, "output_dir": folder / "run"}
    usual |= {"max_train_steps": CHECK_STEPS, "logging_steps": 1, "save_images_epochs": 0, "save_model_epochs": 0}
    usual |= {"eval_batch_size": 1, "ddpm_num_inference_steps": 1}
    return [f"--{name}={value}" for name, value in usual.items()]


def check(config: UnconditionalConfig, words: list[str], devices: int, sharded: bool) -> None:
    """Print memory as it is worked out and as it is measured, on CPUs, in MB, and what speed was reached."""
    shards, width = devices if sharded else 1, DTYPES[config.mixed_precision or "no"].itemsize
    step = simulate(config, 3, [shards], gpu=False)
    expected = sum(per_device(step, devices, sharded, width).values())
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={devices}"] if devices > 1 else []
    with tempfile.TemporaryDirectory() as scratch:
        words = [*check_words(Path(scratch), config.size[0]), *words]
        command = [sys.executable, *launcher, "-m", "benchmarks.memory", "--profiled", *words]
        variables = {"ACCELERATE_USE_FSDP": str(sharded).lower(), "FSDP_VERSION": "2"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
        rate = max(line["images_per_second"] for line in read_metrics(Path(scratch) / "run") if "loss" in line)
    measured = int(next(line for line in done.stdout.splitlines() if line.startswith("peak ")).split()[1])
    achieved = step.flops * rate / (config.images_per_step(1) * devices) / 1e12
    print("| worked out, MB | measured, MB | ratio | TFLOP/s reached by a process |\n|---|---|---|---|")
    print(f"| {expected / 1e6:.1f} | {measured / 1e6:.1f} | {expected / measured:.3f} | {achieved:.3f} |")


def main() -> None:
    if "--profiled" in sys.argv:
        print("peak", profiled(sys.argv[sys.argv.index("--profiled") + 1 :]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_size", nargs="+", default=["base"])
    parser.add_argument("--resolution", nargs="+", default=["64"], help="of images, or of latents with --channels 4")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--devices", nargs="+", type=int, default=[1])
    parser.add_argument("--fsdp", action="store_true", help="several devices also with FSDP2, not only with copies")
    parser.add_argument("--tflops", type=float, help="10^12 operations a second of a device")
    parser.add_argument("--check", action="store_true", help="compare with a training here")
    args, others = parser.parse_known_args()
    configs = []
    for size, resolution in itertools.product(args.model_size, args.resolution):
        words = ["--model_size", size, "--resolution", resolution, *others]
        config = UnconditionalConfig(**vars(make_parser(UnconditionalConfig).parse_args(words)))
        config.mixed_precision = config.mixed_precision or (native_precision() if args.check else "bf16")
        configs.append(config)
        if args.check:
            check(config, words, args.devices[0], args.fsdp)
    if not args.check:
        table(configs, args)


def table(configs: list[UnconditionalConfig], args: argparse.Namespace) -> None:
    """Print a row for each network, size of images, number of devices and way of sharing."""
    dtype = DTYPES[configs[0].mixed_precision or "no"]
    tflops = args.tflops or matrix_product_tflops(dtype)
    print("| `--model_size` | resolution | parameters, M | devices | " + ", GB | ".join(PARTS), end="")
    print(f", GB | **all, GB** | TFLOP a step | s a step at {tflops:.3g} TFLOP/s |\n" + "|---" * 12 + "|")
    for config in configs:
        step = simulate(config, args.channels, sorted({1, *args.devices}), gpu=True)
        for devices in args.devices:
            for sharded in (False, True) if args.fsdp and devices > 1 else (False,):
                parts = per_device(step, devices, sharded, dtype.itemsize)
                way = f"{devices}, FSDP2" if sharded else str(devices)
                cells = [f"{parts[name] / 1e9:.2f}" for name in PARTS]
                print(f"| `{config.model_size}` | {config.resolution} | {step.parameters / 1e6:.1f} | {way}", end=" | ")
                print(" | ".join(cells), end=" | ")
                print(f"**{sum(parts.values()) / 1e9:.2f}** | {step.flops / 1e12:.3g} | ", end="")
                print(f"{step.flops / 1e12 / tflops:.3g} |", flush=True)


if __name__ == "__main__":
    main()
