"""What `evaluate.py` takes. Nothing here imports torch, so that `--help` is immediate."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowmelt.condition_options import PAIR_METRICS
from snowmelt.config import option
from snowmelt.errors import UserError
from snowmelt.loading import PipelineOptions, SamplerOptions
from snowmelt.options import METRICS as COMPARED
from snowmelt.options import ImageOptions
from snowmelt.text.options import CLIP, CLIP_HELP, TEXT_METRICS, CaptionColumnOptions, check_alignment

METRICS = (*COMPARED, *TEXT_METRICS, *PAIR_METRICS, "memorization", "likelihood", "bound")


def _sampler(value: str) -> dict[str, Any]:
    name, _, steps = value.rpartition(":")
    return {"scheduler": name, "num_inference_steps": int(steps)}


def _predictor(value: str) -> dict[str, Any]:
    name, corrections, steps = value.split(":")
    return {"predictor": name, "num_corrector_steps": int(corrections), "num_inference_steps": int(steps)}


SWEEPS: dict[str, Callable[[str], dict[str, Any]]] = {
    "num_inference_steps": lambda value: {"num_inference_steps": int(value)},
    "guidance_scale": lambda value: {"guidance_scale": float(value)},
    "image_guidance_scale": lambda value: {"image_guidance_scale": float(value)},
    "noise_level": lambda value: {"noise_level": float(value)},
    "eta": lambda value: {"eta": float(value)},
    "s_churn": lambda value: {"s_churn": float(value)},
    "scheduler": lambda value: {"scheduler": value},
    "sampler": _sampler,
    "predictor": _predictor,
    "tolerance": lambda value: {"predictor": "probability_flow", "num_corrector_steps": 0, "tolerance": float(value)},
    "checkpoint": lambda value: {"checkpoint": value},
}
"""What can be swept: a value, as it is written, to the options that it changes."""
HOW = {"sampler": "NAME:STEPS", "predictor": "NAME:CORRECTOR_STEPS:STEPS"}


@dataclass(kw_only=True)
class EvaluateConfig(SamplerOptions, CaptionColumnOptions, ImageOptions, PipelineOptions):
    """Evaluation."""

    split: str = option("train", "split of the images that samples are compared with")
    held_out_split: str | None = option(
        None,
        "split that the model wasn't trained on: for the real-data baseline, likelihood, memorization, the classifier, "
        "and the captions of a model of texts",
    )
    num_images: int = option(5000, "images to sample", minimum=2)
    metrics: list[str] = option(["fd", "kid", "prdc"], f"of {' '.join(METRICS)}")
    features: str = option(
        "classifier", "trained on the labelled data itself; 'inception', or a vision model of transformers"
    )
    clip_model_name_or_path: str = option(CLIP, CLIP_HELP)
    likelihood_images: int = option(200, "held-out images for likelihood and bound, which take long", minimum=2)
    sweep: list[str] = option(
        [],
        f"PARAMETER=VALUE,VALUE: sample anew with each; of {', '.join(SWEEPS)} (as ddim:20; checkpoint=all)",
    )
    output: str | None = option(None, "folder of the report; 'report' in the model's folder by default")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.metrics = [name for word in self.metrics for name in word.split(",") if name]
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"--metrics: {name!r} is not one of {', '.join(METRICS)}")
        for name in ("likelihood", "bound"):
            if name in self.metrics and self.held_out_split is None:
                raise UserError(f"--metrics {name}: is that of images not trained on; name them with --held_out_split")
        check_alignment(self.metrics, self.dataset_name, "--metrics")
        if not self.metrics:
            raise UserError(f"--metrics: none given; take some of {', '.join(METRICS)}")

    @property
    def folder(self) -> Path:
        """Folder of the report."""
        model = Path(str(self.model))
        return Path(self.output) if self.output else (model if model.is_dir() else Path()) / "report"


def checkpoints(path: Path) -> list[int]:
    """Steps of the complete checkpoints of a run's folder, ascending."""
    from snowmelt.checkpoint import complete

    return [int(folder.name.removeprefix("checkpoint-")) for folder in complete(path)]


@dataclass(frozen=True)
class Setting:
    """One way of sampling: the configuration's own, or a value of a sweep."""

    config: EvaluateConfig
    parameter: str = ""
    value: str = ""

    @property
    def shown(self) -> str | float:
        """The value, as a number where it is one."""
        try:
            return float(self.value) if "." in self.value else int(self.value)
        except ValueError:
            return self.value


def settings_of(config: EvaluateConfig) -> list[Setting]:
    """The configuration's own setting, then those of its sweeps.

    Raises:
        UserError: for a parameter that can't be swept, or a value that it doesn't take.
    """
    settings = [Setting(config)]
    for word in config.sweep:
        parameter, _, values = word.partition("=")
        if parameter not in SWEEPS or not values:
            raise UserError(f"--sweep {word}: must be PARAMETER=VALUE,VALUE with one of {', '.join(SWEEPS)}")
        if parameter == "checkpoint" and values == "all":
            values = ",".join(map(str, checkpoints(Path(str(config.model)))))
        for value in filter(None, values.split(",")):
            try:
                changed = dataclasses.replace(config, **SWEEPS[parameter](value))
            except UserError:
                raise
            except ValueError:
                how = HOW.get(parameter, "a number")
                raise UserError(f"--sweep {parameter}: {value!r} is not {how}") from None
            settings.append(Setting(changed, parameter, value))
    return settings
