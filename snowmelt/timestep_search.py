"""The best times for few steps, found on a model's trajectories (Chen et al. 2024, On the trajectory regularity of
ODE-based diffusion sampling, section 4).

Trajectories of many short steps say where a single long one, from any time of theirs to any later one, would end, and
how far that is from where they lead: without another evaluation of the network. Dynamic programming then finds the
times whose steps have the least sum of squared errors.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines import ScoreSdePipeline, make_sampler, make_scheduler
from pipelines.sampler import SEARCHED, Sampler
from pipelines.schedulers import FEW_STEPS, INVERTIBLE, family
from snowmelt.errors import UserError
from snowmelt.generate_options import GenerateConfig
from snowmelt.loading import SamplerOptions, sample, set_scheduler

CANDIDATES = 100
"""Times that are chosen from."""
IMAGES = 64
"""Trajectories that errors are averaged over."""


def search_timesteps(pipeline: Any, own: Any, config: GenerateConfig, writes: bool, **arguments: Any) -> None:
    """Find the times for the numbers of steps that the options name, and keep them with the model and the pipeline.

    Args:
        pipeline: the pipeline.
        own: the scheduler that the model was saved with.
        config: options of `generate.py`.
        writes: whether this process is the one that writes.
        arguments: further ones of `sample`.

    Raises:
        UserError: for a model whose samplers take no list of times.
    """
    pipeline.scheduler = own
    found = best_timesteps(pipeline, config, config.search_timesteps, **arguments)
    known = dict(own.config.get(SEARCHED) or {})
    own.register_to_config(**{SEARCHED: known | {str(count): times for count, times in found.items()}})
    set_scheduler(pipeline, config.scheduler, own)
    if writes:
        for count, times in found.items():
            print(f"{count} steps: {', '.join(f'{t:g}' for t in times)}")
        path = Path(str(config.model)) / "scheduler" / own.config_name
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(own.to_json_string())
        os.replace(partial, path)


def best_timesteps(
    pipeline: Any, options: SamplerOptions, counts: Sequence[int], **arguments: Any
) -> dict[int, list[float]]:
    """Times from noise to data, for each number of steps.

    Args:
        pipeline: the pipeline, of a discrete or flow model, with the scheduler that it was saved with.
        options: guidance and batch size.
        counts: numbers of steps, each less than `CANDIDATES`.
        arguments: further ones of `sample`.

    Raises:
        UserError: for a model whose samplers take no list of times.

    Raises:
        UserError: for a model whose samplers take no list of times.
    """
    own = pipeline.scheduler
    if isinstance(pipeline, ScoreSdePipeline) or family(own) == "edm" or type(own).__name__ in FEW_STEPS:
        raise UserError("--search_timesteps: is for flow models and for those with betas; leave it out")
    first = make_scheduler(INVERTIBLE[family(own)], own)
    trained = first.config.num_train_timesteps
    grid = [trained * (1 - i / CANDIDATES) for i in range(CANDIDATES)] if family(own) == "flow" else None
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((tensors["latents"].cpu(), tensors["pred_original_sample"].cpu()))
        return {}

    batches = []
    pipeline.scheduler = first
    for start in range(0, IMAGES, options.batch_size):
        sample(
            pipeline,
            replace(options, num_inference_steps=CANDIDATES),
            range(start, min(start + options.batch_size, IMAGES)),
            timesteps=grid,
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
            output_type="np",
            **arguments,
        )
        batches.append([torch.stack(tensors) for tensors in zip(*seen, strict=True)])
        seen.clear()
    pipeline.scheduler = own
    states, x0 = (torch.cat(tensors, 1) for tensors in zip(*batches, strict=True))
    if first.config.get("clip_sample"):
        x0 = x0.clamp(-first.config.clip_sample_range, first.config.clip_sample_range)
    errors = squared_errors(states, x0, make_sampler(first))
    times = grid or first.timesteps.tolist()
    return {count: [times[i] for i in shortest_path(errors, count)] for count in counts}


def squared_errors(states: Tensor, x0: Tensor, sampler: Sampler) -> Tensor:
    """How far a step of first order from evaluation i to j would end from where the trajectories are, (N, N + 1).

    The step is x_j = alpha_j x0 + sigma_j eps, of DDIM and of Euler's method for a flow; N stands for the data.

    Args:
        states: x_t after each of N evaluations, float32 (N, B, C, H, W).
        x0: expected by each, of that shape.
        sampler: whose steps these were.

    Returns:
        Sums over an image's values, averaged over images; infinite where j <= i.
    """
    count = len(states)
    levels = [sampler.level(i) for i in range(count)]
    alpha = torch.stack([level.alpha.cpu().float() for level in levels] + [torch.tensor(1.0)])
    sigma = torch.stack([level.sigma.cpu().float() for level in levels] + [torch.tensor(0.0)])
    errors = torch.full((count, count + 1), float("inf"), dtype=torch.float64)
    for i in range(count):
        # The first state isn't seen, and the last is x0; the noise is the same before a step and after it.
        j = i + 1 if i + 1 < count else i
        eps = (states[j - 1] - alpha[j] * x0[i]) / sigma[j]
        later = (slice(i + 1, None), *[None] * x0[i].ndim)
        ends = alpha[later] * x0[i] + sigma[later] * eps
        errors[i, i + 1 :] = (ends - states[i:]).square().flatten(2).sum(2).mean(1).double()
    return errors


def shortest_path(errors: Tensor, steps: int) -> list[int]:
    """Numbers of the evaluations at which so many steps begin, from the first to the data, of least sum of errors.

    Args:
        errors: of a step from i to j, (N, N + 1).
        steps: from 1 to N.
    """
    count = len(errors)
    best = torch.full((count + 1,), float("inf"), dtype=errors.dtype)
    best[0] = 0.0
    before = []
    for _ in range(steps):
        best, last = (best[:count, None] + errors).min(0)
        before.append(last)
    path = [count]
    for last in reversed(before):
        path.append(int(last[path[-1]]))
    return path[:0:-1]
