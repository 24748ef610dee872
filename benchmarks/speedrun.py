"""Time to quality: a standing table of how fast a recipe reaches a set quality on two CPU cores.

    python -m benchmarks.speedrun digits --title "the first recipe" [--seeds 0 1 2] [--options "--optimizer muon"]

A track sets data, a measure and a target; a row is a recipe, with options that change it, of which the median of the
seeds reaches the target. One that does is added to docs/speedrun.jsonl with its commit, minutes of training, steps,
images and machine, and the table and plot of docs/speedrun.md are drawn again; one that doesn't is only printed.
Minutes are those of the training steps alone, as metrics.jsonl has them: not of preparing data, sampling or judging.
Trainings gather in --output_dir; a second call goes on with what isn't there yet.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.digits_recognised import Judge
from benchmarks.scenes_aligned import scene_alignment
from benchmarks.scripts import NATIVE_DTYPE, ROOT, evaluate, run, slug, trained, training_time, values
from snowmelt.evaluation.alignment import pipeline_draw
from snowmelt.loading import load_pipeline

ROWS, PAGE, PLOT = ROOT / "docs/speedrun.jsonl", ROOT / "docs/speedrun.md", ROOT / "docs/images/speedrun.png"
BEGIN, END = "<!-- rows -->", "<!-- end of rows -->"
COUNT = 1000


def digits(folder: Path, args: argparse.Namespace) -> float:
    """The fraction of samples recognised, by 50 steps."""
    return Judge()(load_pipeline(str(folder)), COUNT, 0, num_inference_steps=50)


def mnist(folder: Path, args: argparse.Namespace) -> float:
    """Frechet distance of samples by 20 steps of DPM-Solver++ to the training split."""
    args.num_images, args.held_out_split = COUNT, "test"
    sampling = {"scheduler": "dpmsolver++", "num_inference_steps": 20, "torch_dtype": NATIVE_DTYPE}
    return values(evaluate(folder, args, metrics="fd", **sampling)["results"])["fd"]


def scenes(folder: Path, args: argparse.Namespace) -> float:
    """The fraction of seen prompts that are drawn right in all they say, by 25 steps."""
    draw = pipeline_draw(load_pipeline(str(folder)), 0, num_inference_steps=25)
    return float(scene_alignment(draw, count=COUNT // 2, seed=0)["seen"].attributes["all"])


class Track(NamedTuple):
    """What is to be reached.

    Attributes:
        script: that trains.
        measure: of a model's folder.
        target: of the measure.
        sign: 1 where more is better, else -1.
        shown: of a value.
        says: what the target is.
    """

    script: str
    measure: Callable[[Path, argparse.Namespace], float]
    target: float
    sign: int
    shown: str
    says: str

    def reached(self, value: float) -> bool:
        """Whether it is as good as the target, or better."""
        return self.sign * (value - self.target) >= 0


TRACKS = {
    "digits": Track("train_unconditional.py", digits, 0.967, 1, ".1%", "96.7% of 1,000 samples recognised"),
    "mnist": Track("train_unconditional.py", mnist, 0.20, -1, ".3f", "a Frechet distance of 0.20"),
    "scenes": Track("train_text2img.py", scenes, 0.90, 1, ".1%", "90% of 500 seen prompts drawn right"),
}


def measure(track: Track, config: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train by a recipe, and measure; quality, minutes, steps and images."""
    folder = args.output_dir / args.track / f"{slug(args.title)}-{seed}"
    data = {"dataset_name": args.dataset_name} if args.dataset_name else {}
    given: dict[str, Any] = {"config": config, "seed": seed, "output_dir": folder, **data}
    if not trained(folder):
        run(track.script, *shlex.split(args.options), overwrite_output_dir=True, **given)
    return {"quality": track.measure(folder, args)} | training_time(folder)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of all tracks, each track's in their order."""
    lines = []
    for name, track in TRACKS.items():
        own = [row for row in rows if row["track"] == name]
        if not own:
            continue
        lines += [f"\n### {name}: {track.says}\n", "| | minutes | steps | images | reached | commit | machine |"]
        lines.append("|---" * 7 + "|")
        for row in own:
            spread = f"{row['minutes']:.2f} ({', '.join(f'{m:.2f}' for m in row['each_minutes'])})"
            reached = f"{row['quality']:{track.shown}}"
            what = f"{row['title']}" + (f", `{row['options']}`" if row["options"] else "")
            place = f"{row['commit']}, {row['date']} | {row['machine']}"
            lines.append(f"| {what} | {spread} | {row['steps']} | {row['images']:,} | {reached} | {place} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Minutes of each track's rows, in their order."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name in TRACKS:
        if own := [row["minutes"] for row in rows if row["track"] == name]:
            axes.plot(range(1, len(own) + 1), own, marker="o", label=name)
    axes.set(xlabel="row of the track", ylabel="minutes of training to the target", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.savefig(path, dpi=100)


def draw_page(rows: list[dict[str, Any]]) -> None:
    """Put the table and the plot into the page."""
    head, _, rest = PAGE.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}")
    plot(rows, PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("track", choices=TRACKS)
    parser.add_argument("--title", required=True, help="what changed, for the table")
    parser.add_argument("--config", help="recipe; that of the track's name by default")
    parser.add_argument("--options", default="", help="further options of the training, as they are typed")
    parser.add_argument("--dataset_name", help="that of the recipe by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/speedrun"))
    args = parser.parse_args()

    track = TRACKS[args.track]
    found = [measure(track, args.config or args.track, seed, args) for seed in args.seeds]
    medians = {name: statistics.median(result[name] for result in found) for name in found[0]}
    each = ", ".join(f"{result['quality']:{track.shown}} in {result['minutes']:.2f} minutes" for result in found)
    print(f"{args.track}, {args.title}: {each}; median {medians['quality']:{track.shown}}, for {track.says}")
    if not track.reached(medians["quality"]):
        sys.exit("missed: no row")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    folder = args.output_dir / args.track / f"{slug(args.title)}-{args.seeds[0]}"
    row = {
        "track": args.track,
        "title": args.title,
        "config": args.config or args.track,
        "options": args.options,
        "commit": commit.strip() or "unknown",
        "date": date.today().isoformat(),
        "machine": json.loads((folder / "run.json").read_text())["hardware"],
        **medians,
        "each_quality": [result["quality"] for result in found],
        "each_minutes": [result["minutes"] for result in found],
        "seeds": args.seeds,
    }
    row |= {name: int(row[name]) for name in ("steps", "images")}
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    draw_page([json.loads(line) for line in ROWS.read_text().splitlines()])


if __name__ == "__main__":
    main()
