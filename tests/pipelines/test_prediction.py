"""Prediction types convert to each other, in float64 to its precision."""

import itertools

import pytest
import torch

from pipelines.prediction import PREDICTION_TYPES, NoiseLevel, Prediction, PredictionType

LEVELS = {
    "variance-preserving": (torch.tensor([0.9999, 0.6, 0.01]), lambda alpha: (1 - alpha**2).sqrt()),
    "straight line": (torch.tensor([0.999, 0.5, 0.01]), lambda alpha: 1 - alpha),
    "variance-exploding": (torch.ones(3), lambda alpha: torch.tensor([0.002, 1.0, 80.0])),
}


@pytest.mark.parametrize(("first", "second"), itertools.permutations(PREDICTION_TYPES, 2))
@pytest.mark.parametrize("name", LEVELS)
def test_every_type_converts_to_every_other(name: str, first: str, second: str) -> None:
    alpha, sigma_of = LEVELS[name]
    alpha, sigma = alpha.double(), sigma_of(alpha.double()).double()
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=g, dtype=torch.float64)
    a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    level, x_t = NoiseLevel(alpha, sigma, sigma), a * x0 + s * eps
    outputs = {}
    for kind in (first, second):
        row = PredictionType(kind, 0.7).coefficients(a, s)
        outputs[kind] = row[0] * x0 + row[1] * eps
    prediction = Prediction(outputs[first], PredictionType(first, 0.7), x_t, level)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(prediction.eps, eps, rtol=1e-7, atol=1e-7)
    converted = prediction.convert(PredictionType(second, 0.7))
    torch.testing.assert_close(converted, outputs[second], rtol=1e-7, atol=1e-7)
    assert prediction.convert(PredictionType(first, 0.7)) is outputs[first]


def test_rows_are_the_definitions() -> None:
    """Each target written out as its paper does, where alpha isn't 1 and sigma_data not 0.5."""
    alpha, sigma, data = torch.tensor(0.6), torch.tensor(1.7), 0.7
    x0, eps = torch.tensor(0.3), torch.tensor(-1.1)
    x_t = alpha * x0 + sigma * eps
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / (sigma**2 + data**2).sqrt()
    written_out = {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha * eps - sigma * x0,
        "flow_prediction": eps - x0,
        "edm": (x0 - c_skip * x_t) / c_out,
        "score": -(x_t - alpha * x0) / sigma**2,
    }
    assert written_out.keys() == PREDICTION_TYPES.keys()
    for name, expected in written_out.items():
        a, b = PredictionType(name, data).coefficients(alpha, sigma)
        torch.testing.assert_close(a * x0 + b * eps, expected)


def test_pure_noise_says_nothing_of_the_data() -> None:
    level = NoiseLevel(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(999))
    x_t = torch.randn(1, 1, 2, 2)
    assert not Prediction(x_t, PredictionType("epsilon"), x_t, level).x0.any()
    v = Prediction(x_t, PredictionType("v_prediction"), x_t, level)
    assert torch.equal(v.x0, -x_t)


def test_another_output_keeps_the_rest() -> None:
    level = NoiseLevel(torch.tensor(0.6), torch.tensor(0.8), torch.tensor(5))
    x = torch.randn(1, 1, 2, 2)
    changed = Prediction(x, PredictionType("sample"), x, level, variance=x).with_output(2 * x)
    torch.testing.assert_close(changed.x0, 2 * x)
    assert changed.variance is x
