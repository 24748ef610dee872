"""What wraps a network: conditions, guidance, input channels."""

import pytest
import torch
from torch import Tensor

from pipelines.denoiser import CONCATENATED, Predictor, conditioned, guided
from pipelines.prediction import NoiseLevel, PredictionType
from tests.pipelines.models import tiny_unet

LEVEL = NoiseLevel(torch.tensor(0.6), torch.tensor(0.8), torch.tensor(300))


class Recorder:
    """A network that gives back its first channels, and remembers what it was given."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, sample: Tensor, timestep: Tensor, return_dict: bool, **conditions: Tensor) -> tuple[Tensor]:
        self.sample, self.timestep, self.conditions = sample, timestep, conditions
        return (sample[:, : self.channels] + conditions["class_labels"].view(-1, 1, 1, 1),)


def test_concatenated_conditions_join_the_scaled_data() -> None:
    """They aren't noisy, so EDM's c_in isn't theirs."""
    network = Recorder(1)
    x_t, mask = torch.randn(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    level = LEVEL._replace(input_scale=torch.tensor([0.5, 2.0]))
    conditions = {CONCATENATED: mask, "class_labels": torch.zeros(2)}
    prediction = Predictor(network, PredictionType("sample"))(x_t, level, conditions)
    assert torch.equal(network.sample[:, 1:], mask)
    assert torch.equal(network.sample[:, :1], x_t * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1))
    assert network.conditions.keys() == {"class_labels"}
    assert prediction.output.shape == prediction.x_t.shape == (2, 1, 4, 4)
    assert CONCATENATED in conditions  # which the next step needs


def test_guidance_reaches_concatenated_conditions() -> None:
    """The half without condition has a row of its own for each."""
    network = Recorder(1)
    predict = Predictor(network, PredictionType("sample"))
    x_t = torch.randn(2, 1, 4, 4)
    some = {CONCATENATED: torch.ones(2, 1, 4, 4), "class_labels": torch.full((2,), 3.0)}
    none = {CONCATENATED: torch.zeros(2, 1, 4, 4), "class_labels": torch.full((2,), 1.0)}
    output = guided(predict, [none, some], [2.5])(x_t, LEVEL).output
    torch.testing.assert_close(output, x_t + 1 + 2.5 * (3 - 1))
    assert network.sample[:, 1].mean((1, 2)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("interval", "passes"), [((0.0, 1.0), 2), ((0.0, 4 / 3), 4), ((4 / 3, 9.0), 2), ((1.0, 9.0), 4)]
)
def test_guidance_is_a_matter_of_the_noise_level(interval: tuple[float, float], passes: int) -> None:
    """sigma / alpha = 4 / 3: above the interval's beginning, at most its end."""
    network = Recorder(1)
    level = LEVEL._replace(alpha=torch.tensor(3.0, dtype=torch.float64), sigma=torch.tensor(4.0, dtype=torch.float64))
    labels = {"class_labels": torch.zeros(2)}
    predict = Predictor(network, PredictionType("sample"))
    guided(predict, [labels, labels], [3.0], interval)(torch.zeros(2, 1, 4, 4), level)
    assert len(network.sample) == passes


def test_guidance_at_noise_levels_of_their_own() -> None:
    """Each image as by itself: guided, above the interval, and below it."""
    unet = tiny_unet(1, 4)
    predict = Predictor(unet, PredictionType("epsilon"))
    labels, null = {"class_labels": torch.tensor([0, 1, 2])}, {"class_labels": torch.tensor([3, 3, 3])}
    x_t = torch.randn(3, 1, 16, 16)
    sigma = torch.tensor([1.0, 30.0, 0.01])
    level = NoiseLevel(torch.ones(3), sigma, torch.tensor([500, 990, 10]), (1 + sigma**2).rsqrt())
    together = guided(predict, [null, labels], [3.0], (0.1, 10.0))(x_t, level).output
    for i in range(3):
        own = NoiseLevel(level.alpha[i], level.sigma[i], level.timestep[i], (1 + sigma[i] ** 2).rsqrt())
        given = [{"class_labels": c["class_labels"][i : i + 1]} for c in (null, labels)]
        alone = guided(predict, given, [3.0], (0.1, 10.0))(x_t[i : i + 1], own).output
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_conditions_with_scales_of_their_own() -> None:
    """Of nothing, an image, and both: each difference has its scale, and one of 1 saves an evaluation."""
    network = Recorder(1)
    predict, x_t = Predictor(network, PredictionType("sample")), torch.randn(2, 1, 4, 4)
    chain = [{"class_labels": torch.full((2,), float(value))} for value in (1, 2, 4)]
    output = guided(predict, chain, [3.0, 5.0])(x_t, LEVEL).output
    torch.testing.assert_close(output, x_t + 1 + 3.0 * (2 - 1) + 5.0 * (4 - 2))
    output = guided(predict, chain, [1.0, 5.0])(x_t, LEVEL).output
    torch.testing.assert_close(output, x_t + 2 + 5.0 * (4 - 2))
    assert len(network.sample) == 4
    output = guided(predict, chain, [3.0, 1.0])(x_t, LEVEL).output
    torch.testing.assert_close(output, x_t + 1 + 3.0 * (2 - 1) + (4 - 2))
    assert len(network.sample) == 6


def test_no_guidance_costs_nothing() -> None:
    network = Recorder(1)
    predict, labels = Predictor(network, PredictionType("sample")), {"class_labels": torch.arange(2.0)}
    x_t = torch.randn(2, 1, 4, 4)
    output = guided(predict, [{"class_labels": torch.zeros(2)}, labels], [1.0])(x_t, LEVEL).output
    assert len(network.sample) == 2
    assert torch.equal(output, conditioned(predict, labels)(x_t, LEVEL).output)


def test_half_precision_ends_at_the_network() -> None:
    unet = tiny_unet().bfloat16()
    prediction = Predictor(unet, PredictionType("epsilon"), unet.dtype)(torch.randn(1, 1, 16, 16), LEVEL, {})
    assert prediction.output.dtype == prediction.x0.dtype == torch.float32
