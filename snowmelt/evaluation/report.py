"""What `evaluate.py` leaves: `report.json`, `report.md`, and pictures."""

import json
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

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
        return float(self.value) if self.parameter in AXES else self.nfe

    @property
    def line(self) -> str:
        """Points of one line: those of one sampler."""
        return str(self.value).rpartition(":")[0] if self.parameter in ("sampler", "scheduler") else ""


@dataclass
class Report:
    """Everything that was measured, and what of; the fields are those of `report.json`."""

    model: str
    dataset: dict[str, Any]
    num_images: int
    features: dict[str, Any]
    sampler: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    floor: list[Result] = field(default_factory=list)
    sweep: list[SweepPoint] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the report and its plots, replacing those of an earlier one."""
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("sweep-*.png"):
            stale.unlink()
        (folder / "report.json").write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        for parameter, points in self._sweeps().items():
            plot(points, self.floor, folder / f"sweep-{parameter}.png")
        (folder / "report.md").write_text(self.markdown(folder))

    def _sweeps(self) -> dict[str, list[SweepPoint]]:
        key = lambda point: point.parameter  # noqa: E731
        return {name: list(points) for name, points in groupby(sorted(self.sweep, key=key), key)}

    def markdown(self, folder: Path) -> str:
        """The report for people; `folder` is where its pictures are."""
        data, sampler = self.dataset, self.sampler
        accuracy = self.features.get("accuracy")
        config = f" ({data['config']})" if data["config"] else ""
        facts = {
            "samples": f"{self.num_images:,}",
            "compared with": f"{data['num_images']:,} images of {data['name']}{config}, split {data['split']}",
            "features": self.features["name"] + (f"; recognises {accuracy:.2%} of held-out images" if accuracy else ""),
            "sampler": f"{sampler['scheduler']}, {sampler['num_inference_steps']} steps, {sampler['nfe']} network "
            f"evaluations, guidance {sampler['guidance_scale']:g}, eta {sampler['eta']:g}, seed {sampler['seed']}",
        }
        lines = [f"# Evaluation of {self.model}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in facts.items()]
        lines += [f"\n**{warning}**" for warning in self.warnings]
        lines += ["", "## Results", "", *_rows(self.results)]
        if self.floor:
            lines += ["", "## What real images get", "", *_rows(self.floor)]
        for parameter, points in self._sweeps().items():
            lines += ["", f"## {parameter}", "", f"![{parameter}](sweep-{parameter}.png)", "", *_sweep_rows(points)]
        pictures = [p.name for p in sorted(folder.glob("*.png")) if not p.name.startswith("sweep-")]
        lines += [f"\n![{Path(name).stem}]({name})" for name in pictures]
        return "\n".join(lines) + "\n"


def plot(points: list[SweepPoint], floor: list[Result], path: Path) -> None:
    """Draw a sweep: a panel per metric, a line per sampler, what real images get as dashes."""
    metrics = list(dict.fromkeys(result.metric for point in points for result in point.results))
    figure = Figure(figsize=(4 * len(metrics), 3.2), layout="constrained")
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), number + 1)
        for line in dict.fromkeys(point.line for point in points):
            drawn = sorted(
                (point.x, result.value, result.error or 0.0)
                for point in points
                if point.line == line
                for result in point.results
                if result.metric == metric
            )
            x, y, error = zip(*drawn, strict=True)
            axes.errorbar(x, y, error, marker="o", label=line)
        for result in floor:
            if result.metric == metric:
                axes.axhline(result.value, linestyle="--", color="gray", linewidth=1)
        parameter = points[0].parameter
        axes.set(xlabel=AXES.get(parameter, "network evaluations"), ylabel=metric)
        if parameter not in AXES:
            axes.set_xscale("log")
        if number == 0 and any(point.line for point in points):
            axes.legend()
    figure.savefig(path)


def _number(result: Result) -> str:
    error = "" if result.error is None else f" ± {result.error:.2g}"
    return f"{result.value:.4g}{error}"


def _rows(results: list[Result]) -> list[str]:
    better = {True: "lower", False: "higher"}
    lines = [f"| {r.name} | {_number(r)} | {better[r.lower_is_better]} |" for r in results]
    return ["| | | better |", "|---|---|---|", *lines]


def _sweep_rows(points: list[SweepPoint]) -> list[str]:
    metrics = [result.metric for result in points[0].results]
    head = [points[0].parameter, "evaluations", "seconds", *metrics]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for point in points:
        cells = [str(point.value), str(point.nfe), f"{point.seconds:.0f}", *map(_number, point.results)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
