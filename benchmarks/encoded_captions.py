"""Captioned images that encode.py has written against those in the cache: bytes, and images per second.

    python -m benchmarks.encoded_captions --autoencoder DIR --text_encoder DIR [--images 4096] [--steps 50]

The first of the embedded scenes, 32 x 32, one thread for each process. encode.py by one process and by two in
turns, once images are decoded; then train_text2img.py from what was written and from the cache, in turns.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH = 64


def run(script: str, flags: dict, processes: int = 1) -> str:
    """Run a script by so many processes; what it says of its progress."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, *(launcher if processes > 1 else []), script, "--center_crop", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stderr


def rate_of(progress: str) -> float:
    """Images per second of the main process, as its bar said in the end."""
    return float(re.findall(r"encoding images: 100%.*, +([\d.]+)img/s\]", progress)[-1])


def train(flags: dict, steps: int, output: Path) -> tuple[float, float]:
    """Images per second, but for the first fifth, and percent of the time that training waited for data."""
    usual = {"model_size": "tiny", "train_batch_size": BATCH, "max_train_steps": steps, "logging_steps": steps // 5}
    usual |= {"eval_batch_size": 1, "ddpm_num_inference_steps": 1, "mixed_precision": "bf16", "output_dir": output}
    run("train_text2img.py", usual | flags)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()][1:5]
    rate = len(lines) / sum(1 / line["images_per_second"] for line in lines)
    return rate, sum(line["data_wait_percent"] for line in lines) / len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--text_encoder", required=True)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=50, help="of each training; 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind, in turns; the fastest counts")
    args = parser.parse_args()
    parts = {"autoencoder": args.autoencoder, "text_encoder": args.text_encoder, "resolution": 32}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = {"dataset_name": "scenes", "split": f"train[:{args.images}]", "cache_dir": folder / "cache"} | parts
        run("encode.py", images | {"output_dir": folder / "first"})  # decodes the images
        print(f"{os.cpu_count()} cores; {args.images} scenes of 32 x 32 pixels\n")
        print("| processes of encode.py | images/s | bytes an image |\n|---|---|---|")
        rates: dict[int, list[float]] = {1: [], 2: []}
        for number, processes in itertools.product(range(args.rounds), rates):
            output = folder / f"{processes}-{number}"
            options = images | {"output_dir": output, "rows_per_file": args.images // 4}
            rates[processes].append(processes * rate_of(run("encode.py", options, processes)))
        for processes, found_rates in rates.items():
            written = sum(path.stat().st_size for path in (folder / f"{processes}-0").iterdir())
            print(f"| {processes} | {max(found_rates):.0f} | {written / args.images:.0f} |", flush=True)
        if not args.steps:
            return
        print("\n| training | images/s | waited for data |\n|---|---|---|")
        kinds = {"cached": images, "encoded": parts | {"train_data_dir": folder / "1-0", "cache_dir": folder / "cache"}}
        found: dict[str, list] = {kind: [] for kind in kinds}
        for number in range(args.rounds):
            for kind, flags in kinds.items():
                found[kind].append(train(flags, args.steps, folder / f"{kind}-{number}"))
        for kind, results in found.items():
            rate, waited = max(results)
            print(f"| {kind} | {rate:.0f} | {waited:.1f}% |")


if __name__ == "__main__":
    main()
