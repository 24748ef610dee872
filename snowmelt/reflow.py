"""Reflow: a flow is trained anew on the pairs that it makes of noise, so that its paths get straighter.

The pairs of a flow's ODE don't cross, other than those of independent noise and images, and so the flow that is learned
from them has no need to bend (Liu et al. 2023, section 2.2).
"""

import json
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines import image_generators, make_scheduler
from pipelines.backbones import trained_size
from pipelines.samplers import make_sampler
from pipelines.sampling import sample
from pipelines.schedulers import family
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.data.cache import ImageCache
from snowmelt.data.order import PAIRS
from snowmelt.data.pair_cache import PairCache, build_pairs
from snowmelt.errors import UserError
from snowmelt.model_source import Source
from snowmelt.options import UnconditionalConfig
from snowmelt.other_models import begin_with, check_same_data


def make_pairs(
    source: Source,
    student: UnconditionalPipeline,
    images: ImageCache,
    config: UnconditionalConfig,
    accelerator: Accelerator,
) -> tuple[PairCache, PairCache]:
    """Noise and samples of a flow model, whose weights the student is given to begin with.

    With classes, they are those of the training images in turn, and a fraction `label_dropout` is of the null class: a
    pair belongs to the condition that it was made with, so none is dropped in training.

    Args:
        source: the model.
        student: what is to be trained, which must be like it.
        images: the training images.
        config: the options.
        accelerator: whose device samples, in one process while the others wait.

    Raises:
        UserError: if the model is no flow, or another one than the options describe, or its samples aren't finite.
    """
    flag = f"--reflow_from {config.reflow_from}"
    teacher = source.load()
    check_same_data(teacher, student, flag)
    if family(teacher.scheduler) != "flow":
        raise UserError(f"{flag}: is no flow model of train_unconditional.py (--objective flow or mixture); take one")
    begin_with(teacher, student, flag)
    teacher.to(accelerator.device).set_progress_bar_config(disable=True)
    teacher.scheduler = make_scheduler("flow-euler", teacher.scheduler)
    count = config.reflow_pairs or len(images)
    labels = _labels(images, count, config) if config.class_conditional else None
    shape: Any = (student.data_channels, *trained_size(student.network))
    seed = int(np.random.SeedSequence((PAIRS, config.seed)).generate_state(1)[0])

    def generate(start: int, stop: int) -> np.ndarray:
        generators = image_generators(seed, range(start, stop))
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        known = None if labels is None else labels[start:stop]
        pairs = torch.stack([noise, _solve(teacher, noise, known, config)], 1)
        if not pairs.isfinite().all():
            raise UserError(f"{flag}: its samples aren't finite; take another model, or more --reflow_steps")
        return pairs.numpy()

    noise, samples = build_pairs(
        images.path.parent,
        generate,
        count=count,
        shape=shape,
        labels=labels,
        batch=config.train_batch_size,
        depends_on={
            "weights": source.digest(),
            "scheduler": json.loads(teacher.scheduler.to_json_string()),
            "settings": [student.config.get(name) for name in ("prediction_type", "self_condition")],
            "steps": config.reflow_steps,
            "guidance_scale": config.reflow_guidance_scale,
            "seed": seed,
        },
    )
    accelerator.print(f"{count} pairs of noise and samples of {config.reflow_from}, {config.reflow_steps} steps each")
    return noise, samples


def _labels(images: ImageCache, count: int, config: UnconditionalConfig) -> np.ndarray:
    """Classes of the pairs, (N,) int64: first those of the null class, then those of the images in turn."""
    assert images.labels is not None  # make_conditioning refused
    null = round(config.label_dropout * count)
    return np.concatenate([np.full(null, len(images.class_names or [])), np.resize(images.labels, count - null)])


def _solve(teacher: Any, noise: Tensor, labels: np.ndarray | None, config: UnconditionalConfig) -> Tensor:
    """What the model's ODE makes of noise (B, c, h, w), float32 on the CPU, by Euler steps."""
    samples = torch.empty_like(noise)
    device = teacher.network.device
    null = np.zeros(len(noise), bool) if labels is None else labels == teacher.num_classes
    for rows, scale in ((~null, config.reflow_guidance_scale), (null, 1.0)):
        if not rows.any():
            continue
        known = None if labels is None or rows is null else labels[rows]
        sampler = make_sampler(teacher.scheduler)
        try:
            chain = teacher._label_chain(int(rows.sum()), known, scale)
            denoiser_of = teacher._guided(teacher._predictor(sampler), *chain, None)
            denoiser = teacher._denoiser(denoiser_of, None)
            sampler.set_timesteps(config.reflow_steps, None, device)
        except ValueError as error:
            raise UserError(f"--reflow_{error}") from error
        chosen = torch.from_numpy(rows)
        samples[chosen] = sample(denoiser, sampler, sampler.start(noise[chosen].to(device))).cpu()
    return samples
