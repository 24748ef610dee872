"""What a model card and metrics.json tell of a model, read from the files that training and evaluation left."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import make_condition
from pipelines.backbones import COMPONENTS
from pipelines.controlnet import CONTROLNET
from snowmelt.errors import UserError, printable
from snowmelt.evaluation.alignment import ALIGNMENT_FILE, read_alignment
from snowmelt.files import Kind, checked, read_mapping, read_text, shown
from snowmelt.model_folder import (
    INDEX_FILE,
    Index,
    component_files,
    main_weights,
    own_file,
    read_index,
    tensors,
    weights_digest,
)
from snowmelt.run_folder import RUN_FILE
from snowmelt.text.adapters import Adapter, adapter_in
from snowmelt.tracking import METRICS_FILE, read_metrics

REPORT_FILE = "report.json"
BY_TEXT = (
    "TextToImagePipeline",
    "TextToImageTransformerPipeline",
    "StableDiffusionPipeline",
    "TextImageToImagePipeline",
    "TextToImageControlNetPipeline",
)
LAST = 10
"""Log lines whose mean is the last loss."""
PUBLIC_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
"""Of a data set or model on the Hub, or embedded."""
NUMBER = (int, float)
RUN: dict[str, Kind] = {
    "config": dict,
    "num_images": int,
    "images_per_step": int,
    "software": dict,
    "hardware": str,
    "mixed_precision": str,
}
METRICS: dict[str, Kind] = dict.fromkeys(("step", "loss", "images_per_second", "peak_memory_mb"), NUMBER)
REPORT: dict[str, Kind] = {
    "dataset": dict,
    "num_images": int,
    "features": dict,
    "sampler": dict,
    "results": list,
    "baseline": list,
    "warnings": list,
}
FEATURES: dict[str, Kind] = {"name": str}
RESULT: dict[str, Kind] = {
    "metric": str,
    "name": str,
    "value": NUMBER,
    "error": (*NUMBER, type(None)),
    "lower_is_better": bool,
}
SAMPLER: dict[str, Kind] = {
    "scheduler": str,
    "num_inference_steps": int,
    "nfe": int,
    "guidance_scale": NUMBER,
    "seed": int,
}
DATASET: dict[str, Kind] = {"name": (str, type(None)), "split": str, "num_images": int, "config": (str, type(None))}
CAPTIONS: dict[str, Kind] = {"captions": str}


@dataclass(frozen=True)
class Facts:
    """Of one model.

    Attributes:
        index: model_index.json; None for what is no pipeline, an adapter or a ControlNet.
        adapter: LoRA matrices or the like, to be loaded into another pipeline; None for others.
        network: the configuration of the network, or of a ControlNet that is no pipeline; empty for an adapter.
        parameters: how many numbers the networks or the adapter have learned.
        run: run.json: configuration, data, hardware; None for a pipeline that didn't come from a run's folder.
        training: how it went, from metrics.jsonl; None without it.
        report: evaluate.py's, of these weights; None without one.
        alignment: how often it draws what a prompt says, in markdown; None where that wasn't measured.
    """

    index: Index | None
    adapter: Adapter | None
    network: dict[str, Any]
    parameters: int
    run: dict[str, Any] | None
    training: dict[str, Any] | None
    report: dict[str, Any] | None
    alignment: str | None

    @property
    def controlnet(self) -> bool:
        """Whether the model is a ControlNet by itself, to be put beside another pipeline."""
        return self.index is None and bool(self.network)

    @property
    def by_text(self) -> bool:
        """Whether it is conditioned on a text."""
        return self.index is None or self.index.class_name in BY_TEXT

    @property
    def condition(self) -> str | None:
        """What images it makes others of, as `make_condition` reads it; None for noise alone."""
        said = self.index.values if self.index else self.run["config"] if self.run else {}
        spec: str | None = said.get("condition")
        return spec

    @property
    def latent(self) -> bool:
        """Whether it works on what an autoencoder makes of images."""
        return self.index is not None and "vae" in self.index.components


def read_facts(source: Path, report: Path | None, dataset_name: str | None = None) -> Facts:
    """The facts of the folder of a pipeline, of an adapter or of a ControlNet.

    Args:
        source: the folder, with what training left beside the model.
        report: folder that evaluate.py wrote; None for `report` in the folder, if there is one.
        dataset_name: name of the data set instead of that in the files.

    Raises:
        UserError: if it holds no pipeline, a file of it isn't what was written there, or there is no report of this
            model where one was named.
    """
    if adapter := adapter_in(source):
        index, network, weights = None, {}, [own_file(source, source / adapter.file)]
        folders = {"": source}
    elif (source / CONTROLNET).is_dir() and not (source / INDEX_FILE).exists():
        index, folders = None, {CONTROLNET: source / CONTROLNET}
        component_files(source, CONTROLNET)
        network = read_mapping(own_file(source, source / CONTROLNET / "config.json"), {"_class_name": str})
        if network["_class_name"] != "ControlNetModel":
            raise UserError(
                f"--model: {source / CONTROLNET} holds a {shown(network['_class_name'])}, and no ControlNet"
            )
        weights = [own_file(source, path) for path in main_weights(source / CONTROLNET)]
    else:
        index = read_index(source)
        if index.backbone is None:
            needed = " or ".join(map(repr, COMPONENTS))
            raise UserError(
                f"--model: {source} is a {index.class_name} without a {needed}; none such is published here"
            )
        _check_index(source, index)
        for name in index.components:
            component_files(source, name)
        network = read_mapping(own_file(source, source / index.backbone / "config.json"), {"sample_size": (int, list)})
        learned = [name for name in (index.backbone, CONTROLNET) if name in index.components]
        weights = [own_file(source, path) for name in learned for path in main_weights(source / name)]
        folders = {name: source / name for name in index.components}
    run = _run(source, dataset_name)
    return Facts(
        index=index,
        adapter=adapter,
        network=network,
        parameters=sum(math.prod(shape) for path in weights for shape in tensors(path).values()),
        run=run,
        training=_training(source, run["images_per_step"]) if run else None,
        report=_report(source, report, dataset_name, folders),
        alignment=_alignment(source, folders),
    )


def _run(source: Path, dataset_name: str | None) -> dict[str, Any] | None:
    if not (source / RUN_FILE).exists():
        return None
    path = own_file(source, source / RUN_FILE)
    run = _on_one_line(read_mapping(path, RUN))
    config = run["config"]
    if run["images_per_step"] < 1:
        raise UserError(f"{path}: 'images_per_step' must be at least 1, is {run['images_per_step']}; restore it")
    for name in ("dataset_name", "pretrained_model_name_or_path"):
        _check_public(path, name, config.get(name))
    _check_condition(path, config.get("condition"))
    return run | {"config": config | ({"dataset_name": dataset_name} if dataset_name else {})}


def _on_one_line(value: Any) -> Any:
    """A value of JSON, every text of which is one line: none begins a heading, a block of code, or other metadata."""
    if isinstance(value, dict):
        return {printable(key): _on_one_line(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_on_one_line(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _check_index(source: Path, index: Index) -> None:
    """Of what a card says of the model, all that model_index.json may hold."""
    path = source / INDEX_FILE
    names = index.values.get("id2label") or {}
    if not isinstance(names, dict) or not all(n.isdecimal() and isinstance(v, str) for n, v in names.items()):
        raise UserError(f"{path}: 'id2label' must map numbers to names of classes, is {shown(names)}; restore it")
    _check_condition(path, index.values.get("condition"))
    prediction = index.values.get("prediction_type")
    if not isinstance(prediction, str | None):
        raise UserError(f"{path}: 'prediction_type' must be text, is {shown(prediction)}; restore it")


def _check_condition(path: Path, condition: Any) -> None:
    try:
        if condition is not None:
            make_condition(condition)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}; restore it") from error


def _check_public(path: Path, key: str, name: Any) -> None:
    if name is not None and not (isinstance(name, str) and PUBLIC_NAME.fullmatch(name)):
        raise UserError(f"{path}: {key!r} must be a name on the Hub, is {shown(name)}; restore it")


def _training(source: Path, images_per_step: int) -> dict[str, Any] | None:
    if not (source / METRICS_FILE).exists():
        return None
    path = own_file(source, source / METRICS_FILE)
    lines = [checked(path, line, METRICS) for line in read_metrics(source) if "loss" in checked(path, line)]
    if not lines:
        return None
    steps = [0, *(line["step"] for line in lines)]
    for before, after, line in zip(steps, steps[1:], lines, strict=False):
        if after <= before or line["images_per_second"] <= 0:
            raise UserError(f"{path}: must tell of increasing steps and speeds above 0, has {shown(line)}; restore it")
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


def _report(
    source: Path, named: Path | None, dataset_name: str | None, folders: dict[str, Path]
) -> dict[str, Any] | None:
    folder = named or source / "report"
    if not (folder / REPORT_FILE).exists():
        if named:
            raise UserError(f"--report {folder} holds no {REPORT_FILE}; name the folder that evaluate.py wrote")
        return None
    path = own_file(named or source, folder / REPORT_FILE)
    values = read_mapping(path)
    if "floor" in values:  # as version 0.1 called it
        values["baseline"] = values.pop("floor")
    report = _on_one_line(checked(path, values, REPORT))
    accuracy: dict[str, Kind] = {"accuracy": NUMBER} if "accuracy" in report["features"] else {}
    checked(f"{path}: features", report["features"], FEATURES | accuracy)
    checked(f"{path}: sampler", report["sampler"], SAMPLER)
    by_text = CAPTIONS if "captions" in report["dataset"] else {}
    dataset = checked(f"{path}: dataset", report["dataset"], DATASET | by_text)
    for result in [*report["results"], *report["baseline"]]:
        checked(f"{path}: results", result, RESULT)
    if report.get("weights") != weights_digest(folders):
        other = f"the weights of {report.get('checkpoint') or 'another model'}, not of these"
        why = f"{path} is of " + (other if "weights" in report else "weights that it doesn't name")
        if named:
            raise UserError(f"--report: {why}; evaluate this model with evaluate.py, or leave it out")
        print(printable(f"left out: {why}; evaluate.py measures this model anew"), flush=True)
        return None
    if not dataset.get("on_hub"):
        dataset["name"] = dataset_name
    _check_public(path, "dataset", dataset["name"])
    # What it calls the model is a path of the machine; the name is that of the publication.
    return {key: value for key, value in report.items() if key not in ("model", "weights")}


def _alignment(source: Path, folders: dict[str, Path]) -> str | None:
    if not (source / ALIGNMENT_FILE).exists():
        return None
    path = own_file(source, source / ALIGNMENT_FILE)
    weights, text = read_alignment(read_text(path))
    if weights != weights_digest(folders):
        line = f"left out: {path} is of other weights; benchmarks/scenes_aligned.py measures this model"
        print(printable(line), flush=True)
        return None
    return text
