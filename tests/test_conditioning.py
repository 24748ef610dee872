"""What the network is given, and in what range it sees the data."""

import pytest
import torch

from snowmelt.conditioning import LabelConditioning, NoConditioning
from snowmelt.spaces import PixelSpace


def embed(dropout: float, labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return LabelConditioning(10, dropout).embed({"label": labels}, generator)["class_labels"]


def test_dropped_labels_become_the_null_label():
    labels = torch.arange(10_000) % 10
    given = embed(0.2, labels)
    dropped = given == 10
    assert dropped.float().mean() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(given[~dropped], labels[~dropped])
    assert torch.equal(given, embed(0.2, labels))
    assert not torch.equal(given, embed(0.2, labels, seed=1))
    assert torch.equal(labels, torch.arange(10_000) % 10)


def test_no_dropout_needs_no_null_label():
    labels = torch.arange(10)
    assert torch.equal(embed(0.0, labels), labels)
    assert LabelConditioning(10, 0.0).num_class_embeds == 10
    assert LabelConditioning(10, 0.1).num_class_embeds == 11


def test_unconditional():
    assert NoConditioning().embed({"images": torch.zeros(2, 1, 8, 8)}, torch.Generator()) == {}


@pytest.mark.parametrize(
    ("dtype", "value_range"),
    [(torch.uint8, (0, 255)), (torch.uint16, (0, 65535)), (torch.float32, (-3.5, 1.25))],
)
def test_pixels_span_minus_one_to_one(dtype, value_range):
    low, high = value_range
    raw = torch.tensor([low, high, (low + high) / 2]).to(dtype).view(3, 1, 1, 1)
    before = raw.clone()
    x0 = PixelSpace(value_range).from_cache(raw)
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0.flatten(), torch.tensor([-1.0, 1.0, 0.0]), atol=0.005, rtol=0)
    assert x0.flatten()[:2].tolist() == [-1, 1]
    assert torch.equal(raw.view(torch.uint8), before.view(torch.uint8))  # it is a view of the cache
