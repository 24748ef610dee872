"""Streaming against the cache: rows per second, memory against the number of rows, and how long training waits.

    python -m benchmarks.streaming [--rows 10000 1000000] [--side 32] [--steps 200]

Parquet files of 10,000 small PNGs in row groups of 100, read without training, by a process for each measurement, as
many rows of each set; then train_unconditional.py on the smallest set, from the cache and streamed in turns.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw
from pyarrow import parquet

ROOT = Path(__file__).resolve().parent.parent
SHARD, GROUP, DISTINCT, BATCH = 10_000, 100, 1000, 64


def encoded(side: int) -> list[dict]:
    """Coloured ellipses on coloured grounds, as PNGs."""
    rng, found = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
        corner, size = rng.integers(0, side // 2, 2), rng.integers(side // 8, side // 2, 2)
        ImageDraw.Draw(image).ellipse(
            [*corner.tolist(), *(corner + size).tolist()], fill=tuple(rng.integers(0, 256, 3))
        )
        file = io.BytesIO()
        image.save(file, "png")
        found.append({"bytes": file.getvalue(), "path": None})
    return found


def make(folder: Path, rows: int, side: int) -> Path:
    """A data set of so many rows."""
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    images = pa.array(encoded(side), schema.field(0).type)
    folder.mkdir()
    for shard, start in enumerate(range(0, rows, SHARD)):
        with parquet.ParquetWriter(folder / f"train-{shard:05}.parquet", schema, use_dictionary=False) as writer:
            for first in range(start, min(start + SHARD, rows), GROUP):
                writer.write_table(pa.table([images.slice(first % DISTINCT, GROUP)], schema=schema))
    return folder


def read(folder: str, side: int, rows: int, streaming: bool, cache: str) -> dict:
    """Rows per second of batches alone, and the most memory that the process has had."""
    import torch

    from snowmelt.data.held_out import load_splits
    from snowmelt.data.loader import batches
    from snowmelt.options import HeldOutOptions

    began = time.perf_counter()
    options = HeldOutOptions(train_data_dir=folder, resolution=side, streaming=streaming, cache_dir=cache)
    images, _ = load_splits(options)
    how = {"batch_size": BATCH, "seed": 0, "start_step": 0, "rank": 0, "world_size": 1, "accumulation": 1}
    how |= {"device": torch.device("cpu"), "num_workers": 0, "random_flip": True, "labels": False}
    stream = batches({"image": images}, **how)
    next(stream)
    ready, worked = time.perf_counter(), time.process_time()
    for _ in islice(stream, rows // BATCH):
        pass
    done, worked = time.perf_counter(), time.process_time() - worked
    stream.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"first": ready - began, "rate": rows / (done - ready), "cpu": 1e6 * worked / rows, "memory": memory}


def measure(*words: object) -> dict:
    """`read` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.streaming", "--measure", json.dumps(words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def train(folder: Path, side: int, steps: int, streaming: bool, output: Path, cache: Path) -> dict:
    """What a training says of its speed, but for its first fifth."""
    flags = {"train_data_dir": folder, "resolution": side, "model_size": "tiny", "max_train_steps": steps}
    flags |= {"train_batch_size": BATCH, "logging_steps": steps // 5, "eval_batch_size": 1, "output_dir": output}
    flags |= {"ddpm_num_inference_steps": 1, "cache_dir": cache}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    script = [sys.executable, "train_unconditional.py", *words, *(["--streaming"] if streaming else [])]
    subprocess.run(script, cwd=ROOT, capture_output=True, check=True)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()][1:5]
    return {
        "rate": len(lines) / sum(1 / line["images_per_second"] for line in lines),
        "waited": float(np.mean([line["data_wait_percent"] for line in lines])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--read", type=int, default=50_000, help="rows that are read of each set")
    parser.add_argument("--steps", type=int, default=200, help="of each training; 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind, in turns; the fastest counts")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(read(*args.measure)))
        return
    print(f"{os.cpu_count()} cores; PNGs of {args.side} x {args.side} pixels, batches of {BATCH}\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder, names = Path(temporary), []
        print("| reading alone | rows | rows/s | CPU time a row | to the first batch | peak memory |")
        print("|---|---|---|---|---|---|")
        for rows in sorted(args.rows):
            names.append(make(folder / str(rows), rows, args.side))
            for streaming in (False, True) if len(names) == 1 else (True,):
                what, cache = "streamed" if streaming else "cached", str(folder / f"cache-{rows}-{streaming}")
                found = measure(str(names[-1]), args.side, args.read, streaming, cache)
                values = (found[name] for name in ("rate", "cpu", "first", "memory"))
                print(
                    "| {} | {:,} | {:.0f} | {:.0f} us | {:.1f} s | {:.0f} MB |".format(what, rows, *values), flush=True
                )
        if not args.steps:
            return
        print("\n| training | images/s | waited for data |\n|---|---|---|")
        found = {}
        for number in range(args.rounds):
            for what, streaming in (("cached", False), ("streamed", True)):
                output = folder / f"{what}-{number}"
                found.setdefault(what, []).append(
                    train(names[0], args.side, args.steps, streaming, output, folder / "cache")
                )
        for what, rounds in found.items():
            best = max(rounds, key=lambda round: round["rate"])
            print(f"| {what} | {best['rate']:.0f} | {best['waited']:.1f}% |", flush=True)


if __name__ == "__main__":
    main()
