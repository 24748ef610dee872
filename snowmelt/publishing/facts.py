"""What a model card and metrics.json tell of a model, read from the files that training and evaluation left."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from snowmelt.config import on_hub
from snowmelt.errors import UserError
from snowmelt.evaluation.alignment import ALIGNMENT_FILE
from snowmelt.run_folder import LORA_FILE, RUN_FILE
from snowmelt.tracking import read_metrics

REPORT_FILE = "report.json"
LAST = 10
"""Log lines whose mean is the last loss."""


@dataclass(frozen=True)
class Facts:
    """Of one model.

    Attributes:
        index: model_index.json, its class by its bare name; empty for LoRA matrices.
        network: the configuration of the network; empty for LoRA matrices.
        parameters: how many numbers the network or the matrices have learned.
        run: run.json: configuration, data, hardware; None for a pipeline that didn't come from a run's folder.
        training: how it went, from metrics.jsonl; None without it.
        report: evaluate.py's; None without one.
        alignment: how often it draws what a prompt says, in markdown; None where that wasn't measured.
    """

    index: dict[str, Any]
    network: dict[str, Any]
    parameters: int
    run: dict[str, Any] | None
    training: dict[str, Any] | None
    report: dict[str, Any] | None
    alignment: str | None

    @property
    def lora(self) -> bool:
        """Whether the model is LoRA matrices, to be loaded into another pipeline."""
        return not self.index

    @property
    def by_text(self) -> bool:
        """Whether it is told a text."""
        return self.lora or "tokenizer" in components(self.index)

    @property
    def latent(self) -> bool:
        """Whether it works on what an autoencoder makes of pictures."""
        return "vae" in components(self.index)


def read_facts(source: Path, report: Path | None, dataset_name: str | None = None) -> Facts:
    """The facts of a folder of a pipeline, with what training left beside it, and a data set named as it is here.

    Raises:
        UserError: if it holds no pipeline, or there is no report where one was named.
    """
    lora = source / LORA_FILE
    if not (source / "model_index.json").is_file() and not lora.is_file():
        raise UserError(f"{source} holds no model_index.json, so it is not the folder of a pipeline")
    index, network, weights = {}, {}, [lora]
    if not lora.is_file():
        index = json.loads((source / "model_index.json").read_text())
        if isinstance(index["_class_name"], list):
            index["_class_name"] = index["_class_name"][-1]
        index.pop("_name_or_path", None)
        network = json.loads((source / "unet/config.json").read_text())
        weights = [path for path in (source / "unet").glob("*.safetensors") if path.name.count(".") == 1]
    run, aligned = source / RUN_FILE, source / ALIGNMENT_FILE
    facts = json.loads(run.read_text()) if run.is_file() else None
    if facts and dataset_name:
        facts["config"]["dataset_name"] = dataset_name
    return Facts(
        index=index,
        network=network,
        parameters=sum(map(_size, weights)),
        run=facts,
        training=_training(source, facts["images_per_step"]) if facts else None,
        report=_report(report or source / "report", dataset_name, required=report is not None),
        alignment=aligned.read_text() if aligned.is_file() else None,
    )


def components(index: dict[str, Any]) -> list[str]:
    """Names of the sub-folders that a model_index.json speaks of."""
    return [name for name, value in index.items() if isinstance(value, list) and name[0] != "_" and value[0]]


def _size(path: Path) -> int:
    """Numbers in a file of weights, by its header."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (not a dict)


def _training(source: Path, images_per_step: int) -> dict[str, Any] | None:
    lines = read_metrics(source)
    if not lines:
        return None
    steps = [0, *(line["step"] for line in lines)]
    seconds = sum(
        (after - before) * images_per_step / line["images_per_second"]
        for before, after, line in zip(steps, steps[1:], lines, strict=False)
    )
    last = [line["loss"] for line in lines[-LAST:]]
    return {
        "steps": steps[-1],
        "images_seen": steps[-1] * images_per_step,
        "seconds": round(seconds),
        "loss": sum(last) / len(last),
        "images_per_second": round(steps[-1] * images_per_step / seconds, 1),
        "peak_memory_mb": round(max(line["peak_memory_mb"] for line in lines)),
    }


def _report(folder: Path, dataset_name: str | None, *, required: bool) -> dict[str, Any] | None:
    path = folder / REPORT_FILE
    if not path.is_file():
        if required:
            raise UserError(f"--report {folder} holds no {REPORT_FILE}; name the folder that evaluate.py wrote")
        return None
    report = json.loads(path.read_text())
    del report["model"]
    if not on_hub(report["dataset"]["name"]):
        report["dataset"]["name"] = dataset_name
    return report
