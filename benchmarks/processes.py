"""Two processes that share a training, against two that train by themselves: what sharing costs.

    python -m benchmarks.processes [--rounds 3] [--steps 60] [--train_batch_size 16] [--model_size tiny]

All have one thread. The two that share are launched by `recipes/accelerate/two-cpu-processes.yaml`; the two that don't
run at the same time, so that they have the same cores, caches and memory to themselves. They take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "recipes/accelerate/two-cpu-processes.yaml"]
LAUNCH += ["--main_process_port", "0"]
SIDE, WINDOW = 32, 10


def make_images(folder: Path) -> None:
    """Noise as PNGs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(256):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{i}.png")


def start(images: Path, output: Path, args: argparse.Namespace, launcher: list) -> subprocess.Popen:
    """Start a training."""
    options = {"train_data_dir": images, "cache_dir": images.parent, "output_dir": output, "resolution": SIDE}
    options |= {"model_size": args.model_size, "train_batch_size": args.train_batch_size, "logging_steps": WINDOW}
    options |= {"max_train_steps": args.steps, "checkpointing_steps": args.steps, "eval_batch_size": 1}
    options |= {"ddpm_num_inference_steps": 1, "save_images_epochs": 0, "save_model_epochs": 0}
    words = [sys.executable, *launcher, ROOT / "train_unconditional.py", "--overwrite_output_dir"]
    words += [word for name, value in options.items() for word in (f"--{name}", value)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([str(w) for w in words], stdout=subprocess.DEVNULL, env=one_thread)


def rate(output: Path) -> float:
    """Images per second; the median, without the first log line."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["images_per_second"] for line in lines[1:] if "loss" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--train_batch_size", type=int, default=16, help="of each process")
    parser.add_argument("--model_size", default="tiny")
    args = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| round | two that share, images/s | two by themselves, together | ratio |\n|---|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_images(folder / "images")
        for round_ in range(args.rounds):
            rates = []
            for names, launcher in ((["shared"], LAUNCH), (["first", "second"], [])):
                started = [start(folder / "images", folder / name, args, launcher) for name in names]
                statuses = [process.wait() for process in started]
                if any(statuses):
                    sys.exit("a training failed")
                rates.append(sum(rate(folder / name) for name in names))
            ratios.append(rates[0] / rates[1])
            print(f"| {round_ + 1} | {rates[0]:.1f} | {rates[1]:.1f} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nmedian {statistics.median(ratios):.2f}; load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
