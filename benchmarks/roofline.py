"""Where the time of a training step goes: operators, their share, and their rate beside a matrix product's.

    python -m benchmarks.roofline [--model_size tiny] [--resolution 32] [--train_batch_size 64] [--steps 10]

Forward and backward passes of the network under autocast, and the optimizer's step, by PyTorch's profiler. The rate of
an operator is its operations, of the shapes that it was given, over its own time; "of a matrix product" is that rate
over what a large square product reaches on this machine in the same precision: what is far below 1 and takes much of
the time is what could be gained. Operators without multiplications (norms, activations, copies) have no rate. Further
flags are those of train_unconditional.py.
"""

import argparse
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory import matrix_product_tflops
from benchmarks.simulated_step import DTYPES
from snowmelt.architectures import make_network
from snowmelt.config import make_parser
from snowmelt.environment import native_precision
from snowmelt.objectives import StepContext, make_objective
from snowmelt.optimization import make_optimizer
from snowmelt.options import UnconditionalConfig

SHOWN, WARMUP = 14, 3
CONVOLUTION = ("mkldnn_convolution", "convolution_backward")


def convolution_flops(name: str, shapes: list[list[int]]) -> float:
    """Multiplications and additions of a convolution, which the profiler doesn't count; backward has two of them."""
    if name == "aten::mkldnn_convolution":
        x, weight = shapes[0], shapes[1]
        return 2.0 * x[0] * weight[0] * weight[1] * weight[2] * weight[3] * x[2] * x[3]
    grad, _, weight = shapes[:3]
    return 4.0 * grad[0] * grad[2] * grad[3] * weight[0] * weight[1] * weight[2] * weight[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    args, others = parser.parse_known_args()
    usual = ["--model_size", "tiny", "--resolution", "32", "--train_batch_size", "64", *others]
    config = UnconditionalConfig(**vars(make_parser(UnconditionalConfig).parse_args(usual)))
    dtype = DTYPES[config.mixed_precision or native_precision()]
    objective = make_objective(config)
    network: Any = make_network(
        "UNet2DModel",
        config.model_size,
        None,
        resolution=config.size,
        channels=3,
        out_channels=6 if objective.learns_variance else 3,
        condition_channels=objective.target_channels,
        num_class_embeds=None,
        seed=0,
    ).train()
    optimizer, _ = make_optimizer([{"params": list(network.parameters())}], config, 1, module=network)
    forward = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)(network.forward)
    context = StepContext(forward, torch.Generator(), 0, 0.0)
    x0 = torch.randn(config.train_batch_size, 3, *config.size)

    def step() -> None:
        objective.loss(x0, {}, context).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(WARMUP):
        step()
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as profiler:
        for _ in range(args.steps):
            step()
    whole = (time.perf_counter() - start) / args.steps
    peak = matrix_product_tflops(dtype)
    found: dict[str, dict[str, float]] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        row = found.setdefault(event.key, {"seconds": 0.0, "flops": 0.0, "calls": 0.0})
        row["seconds"] += event.self_cpu_time_total / 1e6 / args.steps
        row["calls"] += event.count / args.steps
        flops = float(event.flops)
        if event.key.removeprefix("aten::") in CONVOLUTION:
            flops = event.count * convolution_flops(event.key, event.input_shapes)
        row["flops"] += flops / args.steps
    total = sum(row["flops"] for row in found.values())
    rate = total / whole / 1e12
    images = config.train_batch_size / whole
    print(f"{images:.1f} images/s; {rate:.3f} TFLOP/s, {rate / peak:.2f} of the {peak:.3f} that a")
    print(f"matrix product reaches in {dtype}.\n")
    print("| operator | calls | ms | of the step | TFLOP/s | of a matrix product |\n|---|---|---|---|---|---|")
    rows = sorted(found.items(), key=lambda item: -item[1]["seconds"])
    for name, row in rows[:SHOWN]:
        rate = row["flops"] / row["seconds"] / 1e12
        cells = [f"{row['calls']:.0f}", f"{1e3 * row['seconds']:.1f}", f"{row['seconds'] / whole:.1%}"]
        cells += [f"{rate:.3f}", f"{rate / peak:.2f}"] if row["flops"] else ["", ""]
        print(f"| `{name}` | {' | '.join(cells)} |")
    rest = sum(row["seconds"] for _, row in rows[SHOWN:])
    print(f"| all others | | {1e3 * rest:.1f} | {rest / whole:.1%} | | |")


if __name__ == "__main__":
    main()
