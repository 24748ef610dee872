"""From a run's folder to one that holds only what is published."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState

from pipelines import IMAGE_CHANNELS, PIPELINES, PixelDiffusionPipeline, image_generators, save_strip
from pipelines.bundle import CODE_FILE, forget_paths
from pipelines.controlnet import CONTROLNET
from snowmelt.errors import UserError, printable
from snowmelt.loading import load_pipeline
from snowmelt.model_folder import INDEX_FILE, Index, component_files, own_file, own_files
from snowmelt.publishing.card import write_card
from snowmelt.publishing.facts import Facts, read_facts
from snowmelt.run_folder import CONFIG_FILE

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
STOCK = (*PixelDiffusionPipeline.STOCK.values(), "StableDiffusionPipeline")
"""The pipelines of diffusers that are published as they are: those that training here makes or begins from."""
STRIP, STRIP_IMAGES = "denoising.png", 4
ALIGNMENT_IMAGES = ("alignment-prompts.png", "alignment.png")
CHART = re.compile(r"sweep-[a-z_]+\.png")
METRICS_FILE = "metrics.json"


def export(
    source: Path,
    folder: Path,
    repo_id: str,
    *,
    license: str = "unknown",
    dataset_name: str | None = None,
    report: Path | None = None,
    stock_pipeline: bool | None = None,
    strip: bool = True,
) -> None:
    """Make of a run's or a pipeline's folder, which isn't touched, one to be published.

    It holds the pipeline, whose weights are the average where the run kept one, with its own code; the configuration
    without what names this machine; metrics, images and README.md. No checkpoints, optimizer states or logs.

    Args:
        source: what to publish.
        folder: an empty folder.
        repo_id: user/name, for the lines that load it.
        license: by its name on the Hub.
        dataset_name: the data set's name on the Hub, where the run doesn't know it.
        report: the folder that evaluate.py wrote.
        stock_pipeline: publish as diffusers' own pipeline, which needs no code of ours, or, for False, as ours; None
            for diffusers' where nothing is lost by it.
        strip: sample a few images to show how they come about.

    Raises:
        UserError: if there is no pipeline, none of diffusers' own that samples it, or a file that isn't the model's.
    """
    facts = read_facts(source, report, dataset_name)
    readme = source / "README.md"  # the author's own
    own_card = own_file(source, readme) if os.path.lexists(readme) else None
    if facts.controlnet:
        if stock_pipeline:
            raise UserError("--stock_pipeline: this is a ControlNet, which any pipeline takes; publish without it")
        _copy_component(source, folder, CONTROLNET)
    elif facts.adapter is not None:
        what, file = facts.adapter.what, facts.adapter.file
        if stock_pipeline:
            raise UserError(f"--stock_pipeline: these are {what}, which any pipeline loads; publish without it")
        _copy(own_file(source, source / file), folder / file)
    elif facts.index is not None:
        _copy_pipeline(source, folder, facts.index, stock_pipeline)
    if facts.run:
        text = yaml.safe_dump(facts.run["config"], sort_keys=False, allow_unicode=True)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    _write_json(folder / METRICS_FILE, {"training": facts.training, "evaluation": facts.report})
    _copy_images(source, folder, report, facts)
    if strip and not facts.by_text and not facts.condition:
        _draw_strip(folder)
    if own_card:
        shutil.copyfile(own_card, folder / "README.md")
    else:
        write_card(folder, repo_id, license, facts)


def describe(source: Path, folder: Path, name: str) -> None:
    """Write into an empty folder what a publication would say of a model, without the model: card, metrics, images.

    Args:
        source: folder of a run or a pipeline.
        folder: an empty folder.
        name: of the model, for the lines that load it.

    Raises:
        UserError: if a file isn't the model's.
    """
    facts = read_facts(source, None)
    for file in (INDEX_FILE, CODE_FILE):
        if (source / file).is_file():
            shutil.copyfile(own_file(source, source / file), folder / file)
    _write_json(folder / METRICS_FILE, {"training": facts.training, "evaluation": facts.report})
    _copy_images(source, folder, None, facts)
    write_card(folder, name, "unknown", facts)


def add_variant(folder: Path, variant: str) -> None:
    """Add the weights in half precision to an export, under the names that `from_pretrained(variant=...)` looks for.

    Args:
        folder: the export.
        variant: "fp16" or "bf16".
    """
    parts: dict[str, Any] = load_pipeline(str(folder)).components
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            low: Any = part.to(PRECISIONS[variant])
            with tempfile.TemporaryDirectory(dir=folder) as partial:  # its configuration would name this machine
                low.save_pretrained(partial, variant=variant)
                for path in Path(partial).glob(f"*.{variant}*"):
                    path.replace(folder / name / path.name)


def _draw_strip(folder: Path) -> None:
    """Denoising trajectories of a few samples, as denoising.png; nothing where they can't be shown."""
    pipeline: Any = load_pipeline(str(folder))
    if pipeline.channels not in IMAGE_CHANNELS:
        return
    pipeline.to(PartialState().device)
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        batch_size=STRIP_IMAGES,
        class_labels=[i % pipeline.num_classes for i in range(STRIP_IMAGES)] if pipeline.num_classes else None,
        num_inference_steps=pipeline.default_steps,
        generator=image_generators(0, range(STRIP_IMAGES)),
        output_type="np",
        return_trajectory=True,
    )
    save_strip(output.trajectory, folder / STRIP)


def _copy_pipeline(source: Path, folder: Path, index: Index, stock: bool | None) -> None:
    """The components, model_index.json and, unless diffusers has the class, the code.

    Raises:
        UserError: if it is of a class that isn't published here, or `stock` asks for what there is not.
    """
    own = PIPELINES.get(index.class_name)
    if own is None and index.class_name not in STOCK:
        known = ", ".join([*PIPELINES, *STOCK])
        raise UserError(f"--model: {source} is a {index.class_name}; published are {known}")
    left_out = [file for name in index.components for file in _copy_component(source, folder, name)]
    if left_out:
        print(f"left out, being no part of a pipeline: {printable(', '.join(left_out))}", flush=True)
    _write_json(folder / INDEX_FILE, index.values)
    if index.class_name in PixelDiffusionPipeline.STOCK.values():
        own = PixelDiffusionPipeline  # which may be asked for in its place
        stock = PixelDiffusionPipeline.stock_class(folder, alike=False) is not None if stock is None else stock
    if own is None:
        if stock is False:
            raise UserError(f"--no-stock_pipeline: {source} is a {index.class_name}, of which there is none of ours")
        forget_paths(folder)
        return
    try:
        own.complete(folder, stock=stock)
    except ValueError as error:
        scheduler = index.components.get("scheduler", ("", ""))[1]
        raise UserError(
            f"--stock_pipeline: no pipeline of diffusers samples this model, a {index.class_name} with {scheduler}; "
            "they sample unconditional models of 8-bit pixels in discrete time: publish without it"
        ) from error


def _copy_component(source: Path, folder: Path, name: str) -> list[str]:
    """The known files of a component; what is left out."""
    known_files, others = component_files(source, name)
    (folder / name).mkdir()
    for file, path in known_files.items():
        _copy(path, folder / name / file)
    return [f"{name}/{other}" for other in others]


def _copy(source: Path, target: Path) -> None:
    """Weights get a second name, which costs nothing, where the file system has such names."""
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _copy_images(source: Path, folder: Path, report: Path | None, facts: Facts) -> None:
    grids = sorted((source / "samples").glob("step-*.png"))
    named = {"samples.png": grids[-1] if grids else source / "samples.png"}
    named |= {name: source / name for name in ("loss.png", "evaluation.png")}
    named |= {name: source / name for name in ALIGNMENT_IMAGES if facts.alignment}
    found = {name: own_file(source, path) for name, path in named.items() if os.path.lexists(path)}
    if facts.report:
        # Not the report's other images, which show the data set: it may be nobody else's business.
        place = report or source / "report"
        charts = own_files(report or source, sorted(place.glob("sweep-*.png")))
        found |= {f"report-{name}": path for name, path in charts.items() if CHART.fullmatch(name)}
    for name, path in found.items():
        shutil.copyfile(path, folder / name)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
