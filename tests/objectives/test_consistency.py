"""Easy consistency tuning, and the sampler of consistency models."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, EDMEulerScheduler, UNet2DModel
from torch import Tensor, nn

from pipelines import PixelDiffusionPipeline, fitting_schedulers, make_scheduler
from snowmelt.errors import UserError
from snowmelt.evaluation.process import forward_process
from snowmelt.objectives import RECIPES, StepContext
from snowmelt.objectives.consistency import earlier_time
from tests.pipelines.models import quiet, tiny_pipeline

ECT = RECIPES["ect"]
MEAN, STD, SIGMA_DATA = 0.3, 0.5, 0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context(net: Any, step: int = 0) -> StepContext:
    return StepContext(net, generator(), step, step / 100)


def consistent(x_t: Tensor, sigma: Tensor) -> Tensor:
    """Where the ODE takes x_t = x0 + sigma eps of N(`MEAN`, `STD`^2): it keeps the distance in standard deviations."""
    return MEAN + STD / (STD**2 + sigma**2).sqrt() * (x_t - MEAN)


class Exact(nn.Module):
    """F of EDM's preconditioning that makes x0 so, plus a bias of x0."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        sigma = (4 * timestep).exp().view(-1, 1, 1, 1)
        total = sigma**2 + SIGMA_DATA**2
        x_t = sample * total.sqrt()
        x0 = consistent(x_t, sigma) + self.bias
        return ((x0 - SIGMA_DATA**2 / total * x_t) / (sigma * SIGMA_DATA / total.sqrt()),)


class ExactUNet(UNet2DModel):
    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        return Exact()(sample, timestep)


def data(n: int = 64) -> Tensor:
    return MEAN + STD * torch.randn(n, 1, 4, 4, generator=generator(1))


def test_times_come_nearer() -> None:
    t = torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0])
    first, *others = [earlier_time(t, progress) for progress in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert (first[:3] == 0).all()
    assert first[-1] == pytest.approx(40)
    for earlier, later in zip([first, *others], others, strict=False):
        assert (later >= earlier).all()
        assert later[-1] > earlier[-1]
    assert ((others[-1] / t) > 0.97).all()
    assert (others[-1] < t).all()


def test_first_stage_is_a_diffusion_loss() -> None:
    """Where r is 0 the target is the image itself."""
    small = replace(ECT, timestep_sampling="log_normal")
    x0, net = data(), Exact()
    spied: list[Tensor] = []

    def spy(sample: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        spied.append(timestep)
        return net(sample, timestep)

    loss = small.loss(x0, {}, context(spy)).loss
    sigma = (4 * spied[0]).exp()
    mild = sigma < 1
    t, _ = small.draw_times(64, generator())
    torch.testing.assert_close(t, sigma, rtol=1e-4, atol=0)
    noise = torch.randn(x0.shape, generator=_after_draw())
    expected = (consistent(x0 + sigma.view(-1, 1, 1, 1) * noise, sigma.view(-1, 1, 1, 1)) - x0).flatten(1).norm(dim=1)
    torch.testing.assert_close(loss[mild], (expected / sigma)[mild], rtol=1e-3, atol=1e-4)


def _after_draw() -> torch.Generator:
    drawn = generator()
    ECT.draw_times(64, drawn)
    return drawn


def test_gradient_is_of_the_noisier_image_alone() -> None:
    """d |D_t - D_r| / d bias of D_t by hand; with both, it would be 0."""
    net = Exact(0.1)
    loss = ECT.loss(data(), {}, context(net, 100)).loss.mean()
    (gradient,) = torch.autograd.grad(loss, net.bias)
    assert abs(gradient.item()) > 0.1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampler_ends_in_the_distribution(steps: int) -> None:
    """One step goes where the ODE does; with more, new noise is added and taken away."""
    net = ExactUNet(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    pipeline = quiet(PixelDiffusionPipeline(net, CMStochasticIterativeScheduler(clip_denoised=False)))
    noise = torch.randn(16, 1, 32, 32, generator=generator())
    given = {"batch_size": 16, "latents": noise, "num_inference_steps": steps, "generator": generator(5)}
    seen = []
    pipeline(**given, output_type="pt", callback_on_step_end=lambda p, i, t, x: seen.append(x["latents"]) or {})
    x0 = seen[-1]
    assert len(seen) == steps
    assert x0.mean() == pytest.approx(MEAN, abs=0.02)
    assert x0.std() == pytest.approx(STD, rel=0.02)
    if steps == 1:
        torch.testing.assert_close(x0, consistent(80 * noise, torch.tensor(80.0)), rtol=1e-3, atol=1e-3)


def test_samplers_that_fit() -> None:
    own = ECT.scheduler()
    assert "consistency" in fitting_schedulers(own)
    assert "consistency" not in fitting_schedulers(EDMEulerScheduler())
    euler = make_scheduler("edm-euler", own)
    assert (euler.config.sigma_data, euler.config.sigma_max) == (0.5, 80.0)
    assert tiny_pipeline(own).default_steps == 2
    assert not ECT.path.for_latents().scheduler("edm").config.clip_denoised
    assert ECT.path.for_latents().scheduler("edm").config.sigma_data == 1.0


def test_it_has_neither_steps_to_undo_nor_a_likelihood() -> None:
    pipeline = tiny_pipeline(ECT.scheduler())
    with pytest.raises(ValueError, match="scheduler: a consistency model has no steps to undo"):
        pipeline.invert(torch.zeros(1, 1, 16, 16))
    with pytest.raises(UserError, match="^likelihood: a consistency model has none"):
        forward_process(pipeline)
