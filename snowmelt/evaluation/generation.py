"""Samples of a pipeline and what is measured of each, drawn by all processes together: by class, or by caption."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from pipelines.base import ImagePipeline
from pipelines.score_sde import ODE
from snowmelt.data.captions import Captions
from snowmelt.errors import UserError, one_line
from snowmelt.evaluation.clip import ClipScore
from snowmelt.evaluation.closeness import closeness
from snowmelt.evaluation.features import FeatureExtractor
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.table import Images
from snowmelt.loading import SamplerOptions, sample


@dataclass(frozen=True)
class Samples:
    """Images 0 to N - 1 of a seed.

    Attributes:
        measured: what the metrics are of: features, the classes that were asked for, scores by captions.
        images: (n, C, H, W), the first n of them, float32 in [0, 1].
        seconds: that it took, features included.
    """

    measured: Images
    images: Tensor
    seconds: float


class _Begun(Exception):  # noqa: N818
    """The first step has been taken: nothing stands against the others."""


def check_memory(count: int, numbers: int) -> None:
    """Refuse more images than memory has room for.

    Args:
        count: of the images.
        numbers: that are kept of each, in float32, and in float64 while they are compared.

    Raises:
        UserError: if they take more than there is.
    """
    needed, there = count * numbers * 12, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"--num_images: {numbers:,} numbers of each of {count:,} images take {needed / 1e9:,.0f} GB of memory, and "
            f"there are {there / 1e9:,.0f}; take {there // (numbers * 12):,} or fewer"
        )


def evaluations(pipeline: ImagePipeline, options: SamplerOptions, **arguments: Any) -> int:
    """Evaluations of the network per image, found by beginning to sample one, or by sampling it with an adaptive ODE.

    Args:
        pipeline: the pipeline.
        options: of sampling.
        arguments: further ones of the pipeline.

    Raises:
        UserError: for whatever the pipeline or its scheduler refuse.
    """

    def stop(*_: Any) -> NoReturn:
        raise _Begun

    adaptive = options.predictor == ODE
    calls: list[Any] = []
    handle = pipeline.network.register_forward_hook(lambda *_: calls.append(None))
    try:
        with contextlib.suppress(_Begun):
            sample(pipeline, options, [0], callback_on_step_end=None if adaptive else stop, **arguments)
    except UserError:
        raise
    except Exception as error:  # of a configuration that anybody may have written, to whom it would be a traceback
        raise UserError(f"--model: it can't be sampled: {type(error).__name__}: {one_line(error)}") from error
    finally:
        handle.remove()
    return len(calls) if adaptive else len(pipeline.scheduler.timesteps)


def turns(count: int, state: PartialState) -> list[int]:
    """The numbers of the batches that this process computes, of so many.

    They are as many in every process, since networks may be spread over all of them; where that doesn't come out even,
    some batches are computed twice.
    """
    each = -(-count // state.num_processes)
    return [(state.process_index + i * state.num_processes) % count for i in range(each)]


def captioned_rows(images: int, count: int) -> np.ndarray:
    """Rows (count,) of captioned images whose captions `count` samples take: all in order and again, or, of more, some.

    Those are spread evenly, since data sets are often sorted.
    """
    return np.arange(count) % images if count >= images else np.arange(count) * images // count


def prompts_of(captions: Captions, count: int) -> list[str]:
    """The prompts of `count` samples: of each of `captioned_rows` the first caption."""
    return [captions.of(row)[0] for row in captioned_rows(len(captions), count).tolist()]


def real_scores(images: RealImages, rows: np.ndarray, clip: ClipScore, batch_size: int) -> Tensor:
    """How well real images fit their own captions, of which the first is taken.

    Args:
        images: with captions.
        rows: those to score, (B,).
        clip: the model that scores them.
        batch_size: images in a pass, at most.

    Returns:
        (B,).
    """
    parts = np.split(rows, range(batch_size, len(rows), batch_size))
    assert images.captions is not None  # or there are no scores
    return torch.cat([clip(images.batch(part), [images.captions.of(row)[0] for row in part]) for part in parts])


def draw(
    pipeline: Any,
    options: SamplerOptions,
    count: int,
    extractor: FeatureExtractor,
    state: PartialState,
    *,
    prepare: Callable[[Tensor], Tensor],
    keep: int,
    prompts: Sequence[str] = (),
    clip: ClipScore | None = None,
    pairs: Any = None,
    **arguments: Any,
) -> Samples:
    """Sample images 0 to count - 1: of the prompts, or of given images, for a model of such, or of classes in turn.

    Batches are the same whatever the number of processes, and so to the last bit are the results; each process has all
    of them in the end.

    Args:
        pipeline: on this process's device.
        options: of sampling.
        count: images of all processes together.
        extractor: sees the images.
        state: the processes.
        prepare: makes of images (B, C, H, W) in [0, 1] what the extractor sees and what is kept.
        keep: how many images to return.
        prompts: of the images, as many as these, for a model of texts.
        clip: scores the images by them.
        pairs: the `Pairs` of a model of given images.
        arguments: further ones of the pipeline.
    """
    start = time.monotonic()
    batches = [range(i, min(i + options.batch_size, count)) for i in range(0, count, options.batch_size)]
    own = []
    for batch in (batches[i] for i in turns(len(batches), state)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "prompt of .* tokens cut")  # of thousands
            given = pairs.arguments(batch) if pairs else {}
            drawn = sample(pipeline, options, batch, prompts=prompts, output_type="pt", **arguments, **given)
        images = prepare(drawn.images.float().cpu())
        scores = clip(images, prompts[batch.start : batch.stop]) if clip else None
        close = closeness(images, pairs.originals(batch)) if pairs else None
        own.append((batch.start, extractor(images), scores, close, images[: max(0, keep - batch.start)]))
    parts = sorted({part[0]: part for part in gather_object(own)}.values(), key=lambda part: part[0])
    classes = 0 if prompts else pipeline.num_classes
    _, features, found, close_to, kept = zip(*parts, strict=True)
    labels = torch.arange(count) % classes if classes else None
    if pairs:
        labels = None if pairs.images.labels is None else pairs.images.labels[torch.from_numpy(pairs.rows)]
    measured = Images(
        torch.cat(features),
        labels=labels,
        closeness=torch.cat(close_to) if pairs else None,
        clip_scores=torch.cat(found) if clip else None,
        clip=clip.features.name if clip else "",
    )
    return Samples(measured, torch.cat(kept), time.monotonic() - start)


def rounded(images: Tensor) -> Tensor:
    """Images in [0, 1] at 8 bits, as they would be saved and as the real ones are."""
    return (images * 255).round() / 255
