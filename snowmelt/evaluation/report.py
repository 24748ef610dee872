"""What `evaluate.py` leaves: `report.json`, `report.md`, and images."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from snowmelt.errors import UserError
from snowmelt.evaluation.table import Result

AXES = {"guidance_scale": "guidance scale", "checkpoint": "training step"}
"""What a sweep is drawn over, where that isn't the number of network evaluations."""


@dataclass(frozen=True)
class SweepPoint:
    """The results of one value of a sweep."""

    parameter: str
    value: str | float
    nfe: int
    seconds: float
    results: list[Result]

    @property
    def x(self) -> float:
        """Where it is drawn: at its value for the parameters of `AXES`, else at the number of network evaluations."""
        return float(self.value) if self.parameter in AXES else self.nfe

    @property
    def line(self) -> str:
        """Name of the line that it is on: its sampler's, empty in other sweeps."""
        return str(self.value).rpartition(":")[0] if self.parameter in ("sampler", "scheduler", "predictor") else ""


@dataclass
class Report:
    """Everything that was measured, and what of; the fields are those of `report.json`.

    `weights` is a hash of those that were measured, so that the report can't pass for one of others, and `checkpoint`
    the one that they are from. There the baseline, here the results of real images by which these are, is one list with
    that in their names.
    """

    model: str
    weights: str
    checkpoint: str | None
    dataset: dict[str, Any]
    num_images: int
    features: dict[str, Any]
    sampler: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    baseline: dict[str, list[Result]] = field(default_factory=dict)
    sweep: list[SweepPoint] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the report and its plots, replacing those of an earlier one."""
        for stale in folder.glob("sweep-*.png"):
            stale.unlink()
        for parameter, points in self._sweeps().items():
            plot(points, self.baseline, folder / f"sweep-{parameter}.png")
        baseline = [asdict(r) | {"name": f"{r.name}, {which}"} for which, found in self.baseline.items() for r in found]
        text = json.dumps(asdict(self) | {"baseline": baseline}, indent=1, allow_nan=False)
        for name, content in (("report.json", text + "\n"), ("report.md", self.markdown(folder))):
            partial = folder / f".partial-{name}"  # a full disk leaves the earlier one
            partial.write_text(content, encoding="utf-8")
            os.replace(partial, folder / name)

    def _sweeps(self) -> dict[str, list[SweepPoint]]:
        return {
            name: [point for point in self.sweep if point.parameter == name]
            for name in dict.fromkeys(point.parameter for point in self.sweep)
        }

    def markdown(self, folder: Path) -> str:
        """The report in markdown; `folder` is where its images are."""
        data, sampler = self.dataset, self.sampler
        accuracy = self.features.get("accuracy")
        config = f" ({data['config']})" if data["config"] else ""
        facts = {
            "samples": f"{self.num_images:,}"
            + (f", of captions of split {data['captions']}" if "captions" in data else ""),
            "compared with": f"{data['num_images']:,} images of {data['name']}{config}, split {data['split']}",
            "features": self.features["name"] + (f"; recognises {accuracy:.2%} of held-out images" if accuracy else ""),
            "sampler": f"{sampler['scheduler']}, {sampler['num_inference_steps']} steps, {sampler['nfe']} network "
            f"evaluations, guidance {sampler['guidance_scale']:g}, eta {sampler['eta']:g}, seed {sampler['seed']}",
        }
        lines = [f"# Evaluation of {self.model}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in facts.items() if value != "none"]
        lines += [f"\n**{warning}**" for warning in self.warnings]
        lines += ["", "## Results", "", *self._table()]
        for parameter, points in self._sweeps().items():
            lines += ["", f"## {parameter}", "", f"![{parameter}](sweep-{parameter}.png)", "", *_sweep_rows(points)]
        images = [p.name for p in sorted(folder.glob("*.png")) if not p.name.startswith("sweep-")]
        lines += [f"\n![{Path(name).stem}]({name})" for name in images]
        return "\n".join(lines) + "\n"

    def _table(self) -> list[str]:
        """The results, beside what real images get."""
        columns = {"samples": self.results} | self.baseline
        lines = ["| | better | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
        for result in self.results:
            cells = [next((r for r in found if r.metric == result.metric), None) for found in columns.values()]
            name = result.name.replace(f" ({self.features['name']})", "")
            better = "lower" if result.lower_is_better else "higher"
            lines.append(f"| {name} | {better} | " + " | ".join(map(_number, cells)) + " |")
        return lines


def check_output(folder: Path) -> None:
    """Refuse, before anything takes long, a folder that can't be made or written to.

    Raises:
        UserError: if it can't.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--output {folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--output {folder}: {there} can't be written to; change its permissions, or name another")


def plot(points: list[SweepPoint], baseline: dict[str, list[Result]], path: Path) -> None:
    """Draw a sweep: a panel per metric, a line per sampler, what real images get as dashes.

    Args:
        points: of one parameter, at least one.
        baseline: results of real images, by which these are.
        path: of the image file.
    """
    metrics = list(dict.fromkeys(result.metric for point in points for result in point.results))
    columns = min(4, len(metrics))
    figure = Figure(figsize=(3.6 * columns, 3 * -(-len(metrics) // columns)), layout="constrained")
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(-(-len(metrics) // columns), columns, number + 1)
        for line in dict.fromkeys(point.line for point in points):
            drawn = sorted(
                (point.x, result.value, result.error or 0.0)
                for point in points
                for result in point.results
                if point.line == line and result.metric == metric
            )
            x, y, error = zip(*drawn, strict=True)
            axes.errorbar(x, y, error, marker="o", label=line)
        for result in (r for found in baseline.values() for r in found if r.metric == metric):
            axes.axhline(result.value, linestyle="--", color="gray", linewidth=1)
        parameter = points[0].parameter
        axes.set(xlabel=AXES.get(parameter, "network evaluations"), ylabel=metric)
        if metric == "fd":  # from bad samplers to the baseline it changes by orders of magnitude
            axes.set_yscale("log")
        if parameter not in AXES:
            axes.set_xscale("log")
            axes.set_xticks(sorted({point.x for point in points}), minor=False)
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter("{x:g}")
        if number == 0 and any(point.line for point in points):
            axes.legend()
    figure.savefig(path)


def _number(result: Result | None) -> str:
    if result is None:
        return ""
    error = "" if result.error is None else f" ± {result.error:.2g}"
    return f"{result.value:.4g}{error}"


def _sweep_rows(points: list[SweepPoint]) -> list[str]:
    metrics = [result.metric for result in points[0].results]
    head = [points[0].parameter, "evaluations", "seconds", *metrics]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for point in points:
        cells = [str(point.value), str(point.nfe), f"{point.seconds:.0f}", *map(_number, point.results)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
