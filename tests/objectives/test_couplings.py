"""Which noise goes with which image."""

import itertools
from dataclasses import replace

import pytest
import torch
from scipy import stats

from snowmelt.errors import UserError
from snowmelt.objectives import RECIPES, StepContext, make_objective
from snowmelt.objectives.couplings import CANDIDATES, independent, nearest, optimal_transport
from snowmelt.options import UnconditionalConfig
from tests.objectives.test_loss import generator


def distances(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (x0 - noise).square().flatten(1).sum(1)


def test_optimal_transport_is_the_best_of_all_permutations() -> None:
    x0 = torch.randn(6, 2, 3, 3, generator=generator(1))
    noise, coupled = independent(x0, generator()), optimal_transport(x0, generator())
    assert sorted(map(tuple, coupled.flatten(1).tolist())) == sorted(map(tuple, noise.flatten(1).tolist()))
    costs = {order: distances(x0, noise[list(order)]).sum().item() for order in itertools.permutations(range(6))}
    best = min(costs, key=costs.__getitem__)
    assert best != tuple(range(6))
    assert torch.equal(coupled, noise[list(best)])


def test_nearest_is_the_nearest_of_the_candidates() -> None:
    """Of each image by itself, so that some keep the first draw and some take each of the others."""
    x0 = torch.randn(64, 1, 2, 2, generator=generator(1))
    same = generator()
    drawn = torch.stack([independent(x0, same) for _ in range(CANDIDATES)])
    chosen = torch.stack([distances(x0, noise) for noise in drawn]).argmin(0)
    assert chosen.bincount(minlength=CANDIDATES).min() > 0
    assert torch.equal(nearest(x0, generator()), drawn[chosen, torch.arange(64)])


@pytest.mark.slow
def test_the_noise_of_a_batch_stays_normal_under_optimal_transport() -> None:
    """Of data away from 0, towards which the nearest of several leans."""
    x0 = torch.full((2000, 1, 1, 1), 0.5) + torch.rand(2000, 1, 1, 1, generator=generator(1))
    assert stats.kstest(optimal_transport(x0, generator()).flatten(), "norm").pvalue > 1e-3
    assert nearest(x0, generator()).mean() > 0.5


@pytest.mark.parametrize("name", ["ot", "nearest"])
def test_the_loss_is_that_of_the_coupled_noise(name: str) -> None:
    """A network that says nothing has the squared distance as its loss, which a coupling makes smaller."""
    x0 = torch.randn(32, 1, 2, 2, generator=generator(1))
    losses = {}
    for coupling in ("independent", name):
        context = StepContext(lambda x, timestep, return_dict: (torch.zeros_like(x),), generator(), 0, 0)
        losses[coupling] = replace(RECIPES["flow"], coupling=coupling).loss(x0, {}, context).loss.mean()
    assert losses[name] < 0.8 * losses["independent"]


def test_paths_that_take_a_coupling() -> None:
    def made(**options: str) -> str:
        return make_objective(UnconditionalConfig(**options)).coupling

    assert made() == "independent"
    assert made(objective="mixture", coupling="ot") == "ot"
    assert made(objective="epsilon", coupling="nearest") == "nearest"
    with pytest.raises(UserError, match="^--coupling ot: makes straight paths, and edm has others"):
        made(objective="edm", coupling="ot")
