"""What is measured once, of the model itself: its likelihood, and how far it copies the training images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from pipelines import IMAGE_CHANNELS
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.evaluation.features import FeatureExtractor
from snowmelt.evaluation.likelihood import bits_per_dim
from snowmelt.evaluation.memorization import draw_closest, memorization
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.table import Result
from snowmelt.evaluation.variational_bound import variational_bound


@dataclass(frozen=True)
class Case:
    """A model, its samples (N, C, H, W) in [0, 1], and the images that it was trained on and not trained on."""

    pipeline: UnconditionalPipeline
    samples: Tensor
    real: RealImages
    held_out: RealImages | None
    extractor: FeatureExtractor
    state: PartialState
    seed: int
    batch_size: int
    likelihood_images: int
    folder: Path


@dataclass(frozen=True)
class Extra:
    """A row. `refuse` raises `UserError` where `compute` would, and at once; `keeps` asks for all samples."""

    compute: Callable[[Case], list[Result]]
    refuse: Callable[[UnconditionalPipeline, RealImages | None], object]
    keeps: bool = False


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
    "bound": Extra(
        _bound, lambda model, held_out: variational_bound(**_raw(model, held_out, np.arange(1)), num_timesteps=2)
    ),
}
