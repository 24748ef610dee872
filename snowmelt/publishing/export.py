"""From a run's folder to one that holds only what is published."""

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState

import pipelines
from pipelines import image_generators, save_strip
from pipelines.self_contained import SelfContainedMixin
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from snowmelt.publishing.card import write_card
from snowmelt.publishing.facts import Facts, components, read_facts
from snowmelt.run_folder import CONFIG_FILE, LORA_FILE

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
STOCK = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}
STRIP, STRIP_IMAGES, STRIP_STEPS = "denoising.png", 4, 50
ALIGNMENT_PICTURES = ("alignment-prompts.png", "alignment.png")
METRICS_FILE = "metrics.json"


def export(
    source: Path,
    folder: Path,
    repo_id: str,
    *,
    license: str = "unknown",
    dataset_name: str | None = None,
    report: Path | None = None,
    stock_pipeline: bool = False,
    strip: bool = True,
) -> None:
    """Make of a run's or a pipeline's folder, which isn't touched, one to be published.

    It holds the pipeline, whose weights are the average where the run kept one, with its own code; the configuration
    without what names this machine; metrics, pictures and README.md. No checkpoints, optimizer states or logs.

    Args:
        source: what to publish.
        folder: an empty folder.
        repo_id: user/name, for the lines that load it.
        license: by its name on the Hub.
        dataset_name: the data set's name on the Hub, where the run doesn't know it.
        report: the folder that evaluate.py wrote.
        stock_pipeline: publish as diffusers' own pipeline, which needs no code of ours.
        strip: sample a few pictures to show how they come about, unless the source has such a picture.

    Raises:
        UserError: if there is no pipeline, or none of diffusers' own that samples it.
    """
    facts = read_facts(source, report, dataset_name)
    if stock_pipeline:
        facts = replace(facts, index=_stock(facts))
    if facts.lora:
        _copy(str(source / LORA_FILE), str(folder / LORA_FILE))
    else:
        _copy_pipeline(source, folder, facts.index)
    if facts.run:
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(facts.run["config"], sort_keys=False))
    _write_json(folder / METRICS_FILE, {"training": facts.training, "evaluation": facts.report})
    _copy_pictures(source, folder, report)
    if strip and not facts.by_text and not (folder / STRIP).is_file():
        _draw_strip(folder)
    if (source / "README.md").is_file():  # the author's own
        shutil.copy(source / "README.md", folder)
    else:
        write_card(folder, repo_id, license, facts)


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
    """How a few pictures come about, as denoising.png; nothing for what is no picture."""
    pipeline: Any = load_pipeline(str(folder))
    if pipeline.channels not in pipeline.PICTURE_CHANNELS:
        return
    pipeline.to(PartialState().device)
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        batch_size=STRIP_IMAGES,
        class_labels=[i % pipeline.num_classes for i in range(STRIP_IMAGES)] if pipeline.num_classes else None,
        num_inference_steps=STRIP_STEPS,
        generator=image_generators(0, range(STRIP_IMAGES)),
        output_type="np",
        return_trajectory=True,
    )
    save_strip(output.trajectory, folder / STRIP)


def _copy_pipeline(source: Path, folder: Path, index: dict[str, Any]) -> None:
    """The parts, model_index.json and, unless diffusers has the class, the code."""
    for name in components(index):
        shutil.copytree(source / name, folder / name, copy_function=_copy)
    _write_json(folder / "model_index.json", index)
    own = getattr(pipelines, index["_class_name"], None)
    if own is None:
        SelfContainedMixin.forget_paths(folder)
    else:
        own.complete(folder)


def _copy(source: str, target: str) -> None:
    """Weights get a second name, which costs nothing, where the file system has such names."""
    if source.endswith(".safetensors"):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy(source, target)


def _stock(facts: Facts) -> dict[str, Any]:
    """model_index.json of diffusers' own pipeline."""
    index, scheduler = facts.index, facts.index.get("scheduler", ["", ""])[1]
    if (
        facts.lora
        or index["_class_name"] != "PixelDiffusionPipeline"
        or scheduler not in STOCK
        or facts.network.get("num_class_embeds")
        or "prediction_type" in index
        or "value_range" in index
    ):
        raise UserError(
            "--stock_pipeline: no pipeline of diffusers samples this model "
            f"({index.get('_class_name', 'LoRA')}, {scheduler}"
            f"{', by class' if facts.network.get('num_class_embeds') else ''}); they sample unconditional models of "
            "discrete time in pixels: publish without it"
        )
    kept = ("_diffusers_version", "unet", "scheduler")
    return {"_class_name": STOCK[scheduler], **{name: index[name] for name in kept}}


def _copy_pictures(source: Path, folder: Path, report: Path | None) -> None:
    grids = sorted((source / "samples").glob("step-*.png"))
    named = {"samples.png": grids[-1]} if grids else {"samples.png": source / "samples.png"}
    named |= {name: source / name for name in ("loss.png", STRIP, "evaluation.png", *ALIGNMENT_PICTURES)}
    # Not the report's other pictures, which show images of the data set: it may be nobody else's business.
    named |= {f"report-{path.name}": path for path in (report or source / "report").glob("sweep-*.png")}
    for name, path in named.items():
        if path.is_file():
            shutil.copyfile(path, folder / name)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
