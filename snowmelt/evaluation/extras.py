"""What is measured of the model itself: its likelihood, how far it copies training images, whether it draws scenes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from pipelines import IMAGE_CHANNELS
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.errors import UserError
from snowmelt.evaluation.alignment import scene_alignment
from snowmelt.evaluation.features import FeatureExtractor, NoFeatures
from snowmelt.evaluation.generation import draw, rounded
from snowmelt.evaluation.likelihood import bits_per_dim
from snowmelt.evaluation.memorization import draw_closest, memorization
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.table import Result
from snowmelt.evaluation.variational_bound import variational_bound
from snowmelt.loading import SamplerOptions


@dataclass(frozen=True)
class Case:
    """A model, its samples (N, C, H, W) in [0, 1], and the images that it was trained on and not trained on."""

    pipeline: Any
    options: SamplerOptions
    samples: Tensor
    real: RealImages
    held_out: RealImages | None
    extractor: FeatureExtractor
    state: PartialState
    seed: int
    batch_size: int
    likelihood_images: int
    num_images: int
    folder: Path


@dataclass(frozen=True)
class Extra:
    """A row.

    `refuse` raises `UserError` where `compute` would, and at once; `keeps` asks for all samples, and `swept` to be
    measured anew with each value of a sweep.
    """

    compute: Callable[[Case], list[Result]]
    refuse: Callable[[Any, RealImages | None], object]
    keeps: bool = False
    swept: bool = False


def draws_scenes(pipeline: Any, options: SamplerOptions, num_images: int, state: PartialState) -> list[Result]:
    """How many of the scenes' prompts are right in all they say; in every process alike.

    Half of them name combinations that training shows, half such as no training image shows.

    Args:
        pipeline: of a model of texts that makes RGB images.
        options: of sampling.
        num_images: prompts of both sorts together.
        state: the processes, which draw them together.
    """

    def made(texts: list[str], indices: range) -> np.ndarray:
        count = len(indices)
        drawn = draw(pipeline, options, count, NoFeatures(), state, prompts=texts, prepare=rounded, keep=count)
        return (drawn.images * 255).round().byte().permute(0, 2, 3, 1).numpy()

    each = num_images // 2
    results = []
    for name, found in scene_alignment(made, count=each, seed=options.seed, batch_size=each).items():
        right = found.attributes["all"]
        title = f"Right in all they say, of {each} prompts of {name} combinations"
        error = (right * (1 - right) / each) ** 0.5
        results.append(Result(f"alignment_{name.replace(' ', '_')}", title, right, error, False))
    return results


def _alignment(case: Case) -> list[Result]:
    return draws_scenes(case.pipeline, case.options, case.num_images, case.state)


def check_scenes(channels: int) -> None:
    """Refuse images of so many channels, of which the checker of scenes reads nothing.

    Raises:
        UserError: if they aren't RGB.
    """
    if channels != 3:
        raise UserError(f"--metrics alignment: is read off RGB images; these have {channels} channels")


def _likelihood(case: Case) -> list[Result]:
    return _coded(case, "likelihood", "Bits per dimension, by the probability-flow ODE,", bits_per_dim)


def _bound(case: Case) -> list[Result]:
    return _coded(case, "bound", "Bits per dimension, variational bound,", variational_bound)


def _memorization(case: Case) -> list[Result]:
    """By the main process, which draws the closest pairs too."""
    if not case.state.is_main_process:
        return []
    found = memorization(case.samples, case.real, case.held_out, case.extractor)
    if case.samples.shape[1] in IMAGE_CHANNELS:
        draw_closest(case.samples, case.real, found, case.folder / "closest.png")
    results = []
    spaces = (("", "pixels"), ("_features", f"features ({case.extractor.name})"))
    for (suffix, where), space in zip(spaces, found.spaces, strict=True):
        title = f"Fraction of samples nearer to a training image than 99% of {found.compared}, in {where}"
        closer = f"Probability that a sample is nearer to a training image than one of {found.compared}, in {where}"
        results.append(Result(f"memorization{suffix}", title, space.fraction, None, True))
        results.append(Result(f"memorization{suffix}_closer", closer, space.closer, None, True))
    return results


def _coded(case: Case, metric: str, title: str, measure: Callable[..., Tensor]) -> list[Result]:
    """The mean over random held-out images, which the processes share by batches, the same however many they are."""
    assert case.held_out is not None  # EvaluateConfig refused
    rows = np.sort(np.random.default_rng(case.seed).permutation(len(case.held_out))[: case.likelihood_images])
    batches = np.split(rows, range(case.batch_size, len(rows), case.batch_size))
    own = batches[case.state.process_index :: case.state.num_processes]
    parts = gather_object(
        [(batch[0], measure(**_raw(case.pipeline, case.held_out, batch), seed=case.seed)) for batch in own]
    )
    bits = torch.cat([part for _, part in sorted(parts, key=lambda part: part[0])])
    error = (bits.std() / len(bits) ** 0.5).item()
    return [Result(metric, f"{title} of {len(bits)} images of {case.held_out.split}", bits.mean().item(), error, True)]


def _raw(pipeline: UnconditionalPipeline, held_out: RealImages | None, rows: np.ndarray) -> dict:
    """Arguments for held-out images as the cache holds them, with their labels if the model has classes."""
    assert held_out is not None  # EvaluateConfig refused
    cache = held_out.cache
    labels = cache.labels[rows].tolist() if pipeline.num_classes and cache.labels is not None else None
    images = torch.from_numpy(cache.gather(rows, None))
    return {"pipeline": pipeline, "images": images, "labels": labels, "indices": rows.tolist()}


EXTRAS: dict[str, Extra] = {
    "likelihood": Extra(_likelihood, lambda model, held_out: bits_per_dim(**_raw(model, held_out, np.arange(0)))),
    "memorization": Extra(_memorization, lambda model, held_out: None, keeps=True),
    "alignment": Extra(_alignment, lambda model, held_out: check_scenes(model.channels), swept=True),
    "bound": Extra(
        _bound, lambda model, held_out: variational_bound(**_raw(model, held_out, np.arange(1)), num_timesteps=2)
    ),
}
