"""Initial value problems, one per row, by an adaptive Runge-Kutta method; and the probability-flow ODE."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.prediction import Prediction

Derivative = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(time (B,), state (B, S), rows (B,): which of the system's rows these are) -> d state / d time (B, S)."""

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
FIFTH_ORDER = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
"""The pair of Dormand & Prince 1980 of orders 5 and 4, and the difference of the two."""

MIN_STEP = 1e-6


def rms(error: Tensor) -> Tensor:
    """The root mean square of each row, (B,) of (B, S)."""
    return error.square().mean(1).sqrt()


@torch.no_grad()
def integrate(
    derivative: Derivative,
    state: Tensor,
    span: tuple[float, float],
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor] = rms,
    max_step: float = math.inf,
) -> Tensor:
    """Solve one initial value problem per row, each with steps of its own, so that none depends on its batch.

    It is the Dormand-Prince pair with the step control of `scipy.integrate.RK45`, which would take the same steps for
    all rows; six evaluations a step, and one to begin with. All is decided on the state's device, which is asked once a
    step which rows go on.

    Args:
        derivative: of the state by time.
        state: (B, S) at the beginning of the span.
        span: the times from which and to which, increasing.
        rtol: relative tolerance.
        atol: absolute tolerance.
        norm: of errors (B, S) in units of what is tolerated, (B,); a step is taken where it is less than 1.
        max_step: the longest step. Without one, a loose tolerance lets a derivative that begins with almost nothing
            be stepped over.

    Returns:
        (B, S) at the end of the span.

    Raises:
        ValueError: where a derivative isn't finite, or the tolerance is finer than what it resolves.
    """
    result = state.clone()
    rows = torch.arange(len(state), device=state.device)
    time = torch.full_like(state[:, :1], span[0])
    step = torch.full_like(time, 0.1)
    first = derivative(time[:, 0], state, rows)
    while len(rows):
        left = span[1] - time
        step = torch.minimum(step, left).clamp(max=max_step)
        slopes = [first]
        for weights, node in zip(STAGES, NODES, strict=True):
            slopes.append(derivative((time + node * step)[:, 0], state + step * _sum(weights, slopes), rows))
        new = state + step * _sum(FIFTH_ORDER, slopes)
        slopes.append(derivative((time + step)[:, 0], new, rows))
        error = norm((step * _sum(ERROR, slopes)) / (atol + rtol * torch.maximum(state.abs(), new.abs())))[:, None]
        accepted = error < 1
        going = ~(accepted & (step >= left))[:, 0]
        time = torch.where(accepted, time + step, time)
        state = torch.where(accepted, new, state)
        first = torch.where(accepted, slopes[-1], first)
        step = step * (0.9 * error**-0.2).clamp(0.2, 10).clamp(max=torch.where(accepted, 10.0, 1.0))
        broken, stuck = ~error.isfinite().all(), (~accepted & (step < MIN_STEP)).any()
        if broken or stuck:
            raise ValueError(
                "the network's output isn't finite; the model is broken, or the images are"
                if broken
                else f"no step is short enough for rtol={rtol} and atol={atol}; raise them"
            )
        result[rows[~going]] = state[~going]
        rows, time, step, state, first = (v[going] for v in (rows, time, step, state, first))
    return result


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return sum((w * k for w, k in zip(weights, slopes, strict=False)), torch.zeros_like(slopes[0][:1]))


def flow_derivative(prediction: Prediction, log_ratio: Tensor) -> Tensor:
    """d u / d lambda of the probability-flow ODE, (B, C, H, W).

    All processes become one: u = x_t / sqrt(alpha^2 + sigma^2) = cos(phi) x0 + sin(phi) eps with lambda =
    log(tan(phi)) = log(sigma / alpha), in which the ODE (Song et al. 2021, eq. 13) is
    d u / d phi = cos(phi) eps^ - sin(phi) x0^, whatever the network predicts.

    Args:
        prediction: at x_t.
        log_ratio: lambda, (B,).
    """
    phi = log_ratio.exp().atan().view(-1, 1, 1, 1)
    return phi.cos() * phi.sin() * (phi.cos() * prediction.eps - phi.sin() * prediction.x0)
