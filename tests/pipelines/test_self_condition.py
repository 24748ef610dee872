"""Networks that are given their own last estimate of x0: training, sampling, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from pipelines import PixelDiffusionPipeline, PixelTransformerPipeline, ScoreSdePipeline
from pipelines.denoiser import X0_LIMIT
from snowmelt.errors import UserError
from snowmelt.evaluation.likelihood import bits_per_dim
from snowmelt.evaluation.variational_bound import variational_bound
from snowmelt.objectives import RECIPES, StepContext
from tests.pipelines.models import quiet
from tests.pipelines.test_transformer import BLOCKS

SCHEDULERS = {"flow": FlowMatchEulerDiscreteScheduler(), "ddim": DDIMScheduler(), "edm": EDMEulerScheduler()}
CLASSES = {"id2label": {0: "a", 1: "b"}}


def unet(inputs: int = 2, outputs: int = 1, num_class_embeds: int | None = 3) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=inputs,
        out_channels=outputs,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=num_class_embeds,
    ).eval()


def pipeline_of(kind: str, scheduler: Any = SCHEDULERS["flow"]) -> Any:
    if kind == "unet":
        return quiet(PixelDiffusionPipeline(unet(), scheduler, **CLASSES, self_condition=True))
    torch.manual_seed(0)
    dit = DiTTransformer2DModel(in_channels=2, out_channels=1, num_embeds_ada_norm=2, **BLOCKS).eval()
    return quiet(PixelTransformerPipeline(dit, scheduler, **CLASSES, self_condition=True))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_each_evaluation_is_given_the_estimate_before(kind: str, scheduler: str, guidance: float) -> None:
    """After guidance, for both of its halves; and zeros to begin with, in each call anew."""
    pipeline = pipeline_of(kind, SCHEDULERS[scheduler])
    given: list[torch.Tensor] = []
    pipeline.network.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(args[0][:, 1:].clone()), with_kwargs=True
    )
    for _ in range(2):
        given.clear()
        output = pipeline(2, [0, 1], guidance, num_inference_steps=4, output_type="pt", return_trajectory=True)
        assert output.images.shape == (2, 1, 8, 8)
        expected = [torch.zeros(2, 1, 8, 8), *output.trajectory.denoised[:-1].clamp(-X0_LIMIT, X0_LIMIT)]
        for seen, estimate in zip(given, expected, strict=True):
            assert torch.equal(seen, estimate if guidance == 1 else torch.cat([estimate, estimate]))
    assert expected[-1].std() > 0.01


def test_training_gives_half_of_the_images_their_estimates() -> None:
    """A network that adds up what it sees: the second pass has the first one's x0, through which no gradient flows."""
    objective = replace(RECIPES["mixture"], self_condition=True)
    scale, calls = torch.ones((), requires_grad=True), []

    def net(x: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        calls.append(x)
        return (scale * (2 * x[:, :1] + x[:, 1:]),)

    x0 = torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    loss = objective.loss(x0, {}, StepContext(net, torch.Generator().manual_seed(0), 0, 0)).loss
    first, second = calls
    assert not first[:, 1].any()
    assert torch.equal(first[:, 0], second[:, 0])
    chosen = second[:, 1].flatten(1).any(1)
    assert 160 < chosen.sum() < 240
    torch.testing.assert_close(second[chosen, 1], (2 * first[chosen, 0]).clamp(-X0_LIMIT, X0_LIMIT))
    assert not second[~chosen, 1].any()
    output = 2 * second[:, :1] + second[:, 1:]
    expected = (2 * (output - x0) * output).mean()
    (gradient,) = torch.autograd.grad(loss.mean(), scale)
    torch.testing.assert_close(gradient, expected)


def test_score_based_models() -> None:
    scheduler = DDPMScheduler()
    pipeline = quiet(ScoreSdePipeline(unet(), scheduler, "epsilon", **CLASSES, self_condition=True))
    draw = {"class_labels": 1, "guidance_scale": 2.0, "num_inference_steps": 3, "output_type": "np"}
    images = pipeline(**draw, generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, 8, 8, 1)
    with pytest.raises(ValueError, match="predictor: not 'probability_flow'"):
        pipeline(**draw, predictor="probability_flow")


def test_published_with_its_code(tmp_path: Path) -> None:
    """Its folder says what it is, though its scheduler is one of diffusers' own pipelines."""
    pipeline = quiet(PixelDiffusionPipeline(unet(), DDIMScheduler(), **CLASSES, self_condition=True))
    pipeline.save_pretrained(tmp_path / "published")
    theirs = quiet(DiffusionPipeline.from_pretrained(tmp_path / "published", trust_remote_code=True))
    assert type(theirs).__module__ != type(pipeline).__module__
    draw = {"class_labels": 1, "guidance_scale": 2.0, "num_inference_steps": 3, "output_type": "np"}
    images = [p(**draw, generator=torch.Generator().manual_seed(0)).images for p in (pipeline, theirs)]
    assert np.array_equal(*images)
    plain = PixelDiffusionPipeline(unet(num_class_embeds=None), DDPMScheduler(), self_condition=True)
    plain.save_pretrained(tmp_path / "plain")
    assert PixelDiffusionPipeline.stock_class(tmp_path / "plain") is None
    assert (tmp_path / "plain/pipeline.py").is_file()


def test_what_it_refuses() -> None:
    pipeline = pipeline_of("unet")
    assert (pipeline.data_channels, pipeline.channels) == (1, 1)
    with pytest.raises(ValueError, match="^self_condition: steps that depend on those before can't be undone"):
        pipeline.invert(torch.zeros(1, 1, 8, 8))
    with pytest.raises(
        ValueError, match="^self_condition: needs a network whose input has twice .* has 1 and puts out 1$"
    ):
        PixelDiffusionPipeline(unet(1, 1), SCHEDULERS["flow"], self_condition=True)
    with pytest.raises(TypeError, match="^self_condition: must be"):
        PixelDiffusionPipeline(unet(), SCHEDULERS["flow"], self_condition=1)  # type: ignore[arg-type]
    learned = PixelDiffusionPipeline(unet(2, 2), DDPMScheduler(variance_type="learned_range"), self_condition=True)
    assert quiet(learned)(class_labels=1, num_inference_steps=2, output_type="pt").images.shape == (1, 1, 8, 8)
    for measure in (bits_per_dim, variational_bound):
        with pytest.raises(UserError, match="^likelihood: a self-conditioned model has none"):
            measure(pipeline, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
