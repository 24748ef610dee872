"""How long training stands still for a checkpoint, and how long that takes to write meanwhile.

    python -m benchmarks.checkpoint_stall [--model_size base] [--rounds 5] [--folder /tmp/checkpoints]

A UNet, its average and the moments of AdamW are taken note of, which training waits for, and then written, hashed and
flushed to the disk of --folder, which it doesn't wait for.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from snowmelt.architectures import make_network
from snowmelt.checkpoint import Checkpoints
from snowmelt.ema import Ema
from snowmelt.stateful import training_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_size", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    print("| network | parameters | checkpoint | training stands still | written in |\n|---|---|---|---|---|")
    for size in args.model_size:
        network = make_network("UNet2DModel", size, None, resolution=64, channels=3, seed=0, num_class_embeds=None)
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, fused=True)
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        states = training_state({"unet": network}, {"ema": {"unet": Ema(network, lambda step: 0.99)}}, optimizer, None)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            checkpoints = Checkpoints(Path(folder), states, limit=1)
            stalls, writing = [], []
            for step in range(args.rounds):
                start = time.perf_counter()
                checkpoints.save(step, {})
                stalls.append(time.perf_counter() - start)
                checkpoints.wait()
                writing.append(time.perf_counter() - start)
            saved = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        print(
            f"| {size} | {sum(p.numel() for p in parameters) / 1e6:.1f} M | {saved / 1e6:.0f} MB | "
            f"{statistics.median(stalls):.3f} s | {statistics.median(writing):.3f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
