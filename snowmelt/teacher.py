"""The velocity of a trained model, which a flow map learns in few steps: distillation."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler
from torch import Tensor

from pipelines import guided, make_sampler
from pipelines.backbones import num_class_embeds
from pipelines.denoiser import Predictor
from pipelines.prediction import NoiseLevel, expand
from pipelines.schedulers import family
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.errors import UserError


@dataclass(frozen=True)
class Teacher:
    """A model of any process, read as the velocity of the straight line x_t = (1 - t) x0 + t eps.

    All processes have the same x_t up to a factor where they have the same sigma / alpha, and there the expected x0 is
    the same: v = (x_t - x0) / t.

    Args:
        predict: its network.
        scheduler: the one that it was saved with.
        num_class_embeds: rows of its label table, the null label's included; None without one.
        guidance_scale: of its labels.
    """

    predict: Predictor
    scheduler: Any
    num_class_embeds: int | None
    guidance_scale: float

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, conditions: dict[str, Any]) -> Tensor:
        """dx_t / dt, float32 (B, C, H, W).

        Args:
            x_t: on the straight line, (B, C, H, W).
            t: times in (0, 1), (B,).
            conditions: `class_labels` (B,), in which the number of classes is the null label, or none.
        """
        chain: list[dict[str, Tensor]] = [{}]
        if self.num_class_embeds is not None:
            labels = conditions.get(
                "class_labels", torch.full((len(x_t),), self.num_class_embeds - 1, device=x_t.device)
            )
            chain = [{"class_labels": labels}]
        if self.guidance_scale != 1:
            chain.insert(0, {"class_labels": torch.full_like(labels, self.num_class_embeds - 1)})  # type: ignore[operator]
        level, factor = self._level(t)
        scales = [self.guidance_scale] * (len(chain) - 1)
        prediction = guided(self.predict, chain, scales)(x_t * expand(factor, x_t), level)
        return (x_t - prediction.x0) / expand(t, x_t)

    def _level(self, t: Tensor) -> tuple[NoiseLevel, Tensor]:
        """The noise level of its own process at times t (B,), and x_t there as a multiple of the straight line's."""
        kind, ratio = family(self.scheduler), t / (1 - t)
        if kind == "flow":
            return NoiseLevel(1 - t, t, t * self.scheduler.config.num_train_timesteps), torch.ones_like(t)
        if kind == "edm":
            c_in = (ratio**2 + self.scheduler.config.sigma_data**2).rsqrt()
            return NoiseLevel(torch.ones_like(t), ratio, ratio.log() / 4, c_in), 1 / (1 - t)
        known = ((1 / self.scheduler.alphas_cumprod.to(t.device) - 1).sqrt()).log()  # of each timestep, ascending
        above = torch.searchsorted(known, ratio.log()).clamp(1, len(known) - 1)
        low, high = known[above - 1], known[above]
        timestep = above - 1 + ((ratio.log() - low) / (high - low)).clamp(0, 1)
        alpha = (1 + ratio**2).rsqrt()
        return NoiseLevel(alpha, ratio * alpha, timestep), alpha / (1 - t)


def make_teacher(pipeline: UnconditionalPipeline, guidance_scale: float, label_dropout: float, flag: str) -> Teacher:
    """The velocity of a model of the same data.

    Args:
        pipeline: the model.
        guidance_scale: of its labels.
        label_dropout: fraction of labels that the student is trained without.
        flag: that named it, with its value.

    Raises:
        UserError: for a model that can't be asked for what the student learns.
    """
    if isinstance(pipeline.scheduler, CMStochasticIterativeScheduler):
        raise UserError(f"{flag}: is a consistency model, which knows no velocity; take the one that it was tuned from")
    if pipeline.config.get("self_condition"):
        raise UserError(f"{flag}: is self-conditioned, which has no velocity of x_t alone; take another")
    embeds, classes = num_class_embeds(pipeline.network), pipeline.num_classes
    has_null = embeds is not None and embeds > classes
    if guidance_scale != 1 and not (classes and has_null):
        raise UserError("--teacher_guidance_scale: the teacher wasn't trained with dropped labels; leave it out")
    if classes and label_dropout and not has_null:
        raise UserError(f"{flag}: wasn't trained with dropped labels; add --label_dropout 0")
    predict = pipeline._predictor(make_sampler(pipeline.scheduler))
    return Teacher(predict, pipeline.scheduler, embeds, guidance_scale)
