"""Likelihoods against closed forms: networks that predict normally or uniformly distributed data as well as can be."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from scipy.integrate import RK45, quad, solve_ivp
from scipy.stats import norm

from pipelines import PixelDiffusionPipeline, make_scheduler
from pipelines.ode import ERROR, FIFTH_ORDER, NODES, STAGES, integrate
from pipelines.sde import SDES
from snowmelt.errors import UserError
from snowmelt.evaluation.likelihood import _draw, bits_per_dim
from snowmelt.evaluation.variational_bound import variational_bound
from snowmelt.objectives import RECIPES, Objective
from snowmelt.objectives.paths import DiscretePath, EdmPath, SdePath
from snowmelt.spaces import PixelSpace
from tests.pipelines.mixture import Pixels, draw, mixture_pipeline
from tests.pipelines.models import tiny_pipeline
from tests.pipelines.test_latent import pipeline_of

SIDE, SIGMA_DATA = 4, 0.5
D = SIDE**2
OBJECTIVES = {name: o for name, o in RECIPES.items() if not isinstance(o.path, SdePath) and not o.of_two_times} | {
    "zero_snr": Objective(DiscretePath("linear", zero_snr=True), "v_prediction"),
    "few_steps": Objective(DiscretePath("squaredcos_cap_v2", 50), "v_prediction"),
    "edm_epsilon": Objective(EdmPath(), "epsilon"),
}


class Optimal(ModelMixin, ConfigMixin):
    """E[F | x_t] for the data whose E[x0 | x_t] the subclass knows."""

    @register_to_config
    def __init__(
        self,
        family: str,
        target: str,
        log_ratios: tuple = (),
        side: int = SIDE,
        classes: int = 0,
        out_channels: int = 1,
    ) -> None:
        super().__init__()
        self.register_to_config(in_channels=1, num_class_embeds=classes or None, sample_size=side)
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    @classmethod
    def of(cls, objective: Objective, **options) -> "PixelDiffusionPipeline":
        """The pipeline of an objective, for float data in [-1, 1]."""
        scheduler, log_ratios = objective.scheduler(), ()
        if isinstance(scheduler, DDPMScheduler):
            alpha2 = scheduler.alphas_cumprod.double().numpy()
            log_ratios = tuple((np.log((1 - alpha2) / np.maximum(alpha2, 1e-300)) / 2).tolist())
        family = {"DDPMScheduler": "discrete", "EDMEulerScheduler": "edm"}.get(type(scheduler).__name__, "flow")
        value_range = options.pop("value_range", (-1.0, 1.0))
        options |= {"out_channels": 1 + objective.learns_variance}
        net = cls(family, objective.prediction_type, log_ratios, **options).eval()
        return PixelDiffusionPipeline(
            net, scheduler, prediction_type=objective.pipeline_prediction_type, value_range=value_range
        )

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        x, t = sample.double(), timestep.double().view(-1, 1, 1, 1)
        if self.config.family == "flow":
            alpha, sigma = 1 - t / 1000, t / 1000
        elif self.config.family == "edm":
            alpha, sigma = torch.ones_like(t), torch.exp(4 * t)
            x = x * (sigma**2 + SIGMA_DATA**2).sqrt()
        else:
            table = np.array(self.config.log_ratios)
            ratio = torch.from_numpy(np.exp(np.interp(t, np.arange(len(table)), table)))
            alpha, sigma = (1 + ratio**2).rsqrt(), (1 + ratio**-2).rsqrt()
        x0 = self.expected(x, alpha, sigma, class_labels)
        eps = (x - alpha * x0) / sigma
        total = sigma**2 + SIGMA_DATA**2
        outputs = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": alpha * eps - sigma * x0,
            "flow_prediction": eps - x0,
            "edm": (x0 - SIGMA_DATA**2 / total * x) / (sigma * SIGMA_DATA * total.rsqrt()),
        }
        output = outputs[self.config.target].to(sample.dtype)
        return (torch.cat([output] * self.config.out_channels, 1),)


class Normal(Optimal):
    """Data whose pixels have independent normal laws; a class adds its number to the mean."""

    mean = torch.linspace(-0.5, 0.5, D).double()
    std = torch.linspace(0.1, 0.6, D).double()
    axes = torch.eye(D).double()  # columns along which the data are independent

    def expected(self, x, alpha, sigma, labels):
        mean = (self.mean + (0 if labels is None else labels.double()[:, None])).view(-1, D)
        gain = (alpha * self.std.view(1, 1, 1, D) ** 2 / (alpha**2 * self.std.view(1, 1, 1, D) ** 2 + sigma**2)).view(
            -1, D
        )
        return (mean + ((x.flatten(1) - alpha.view(-1, 1) * mean) @ self.axes * gain) @ self.axes.T).view_as(x)


class Correlated(Normal):
    axes = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)).double())[0]


class Uniform(Optimal):
    """All bytes alike, each spread over its bin: x0 given x_t is normal with mean x_t / alpha, cut off at the edges."""

    edge = 256 / 255

    def expected(self, x, alpha, sigma, labels):
        center, spread = x / alpha, sigma / alpha
        low, high = (-self.edge - center) / spread, (self.edge - center) / spread
        flip = (low + high) < 0  # to the side where differences are exact
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        density = [torch.exp(-(v**2) / 2) / math.sqrt(2 * math.pi) for v in (low, high)]
        mass = (torch.special.ndtr(-low) - torch.special.ndtr(-high)).clamp(min=1e-300)
        shift = (density[0] - density[1]) / mass
        return (center + spread * torch.where(flip, -shift, shift)).clamp(-self.edge, self.edge)


def normal_images(n: int = 3) -> torch.Tensor:
    noise = torch.randn(n, D, generator=torch.Generator().manual_seed(1))
    return (Normal.mean + Normal.std * noise).float().view(n, 1, SIDE, SIDE)


def closed_form(images: torch.Tensor, net: type[Normal], low: float, high: float) -> torch.Tensor:
    """Bits per dimension where the ODE carries N(0, I) from sigma / alpha = high to low; at 0 and inf, the data's law.

    Along each axis (x - mean) / sqrt(std^2 + r^2) stays what it is.
    """
    shrink = ((net.std**2 + low**2) / (net.std**2 + high**2)).sqrt() if high < math.inf else net.std * 0
    mean = (net.mean @ net.axes) * (1 - shrink)
    std = shrink * math.hypot(1, high) if high < math.inf else net.std
    return -torch.distributions.Normal(mean, std).log_prob(images.double().flatten(1) @ net.axes).mean(1) / math.log(2)


def ends(objective: Objective) -> tuple[float, float]:
    scheduler = objective.scheduler()
    if isinstance(scheduler, DDPMScheduler):
        alpha2 = scheduler.alphas_cumprod.double()
        ratios = ((1 - alpha2) / alpha2).sqrt()
        return float(ratios[0]), float(ratios[ratios.isfinite()][-1])
    return (0.002, 80.0) if isinstance(objective.path, EdmPath) else (1 / 999, 999.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_normal_data(name):
    objective = OBJECTIVES[name]
    images = normal_images()
    bits = bits_per_dim(Normal.of(objective), images, rtol=1e-6, atol=1e-6)
    assert bits.shape == (3,)
    assert bits.dtype == torch.float64
    torch.testing.assert_close(bits, closed_form(images, Normal, *ends(objective)), atol=5e-6, rtol=0)
    torch.testing.assert_close(bits, closed_form(images, Normal, 0, math.inf), atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", SDES)
def test_mixture_under_sdes(name):
    """To less than a thousandth of a bit."""
    pipeline = mixture_pipeline(name, kind=Pixels, value_range=(-1.0, 1.0))
    images = draw(8)
    bits = bits_per_dim(pipeline, images, rtol=1e-6, atol=1e-6)
    exact = Pixels.bits(images, *(math.exp(pipeline.sde.log_ratio(t)) for t in (1e-5, 1.0)))
    assert exact.std() > 0.1
    torch.testing.assert_close(bits, exact, atol=1e-4, rtol=0)


def test_trace_is_without_bias():
    """One probe of correlated data errs; many seeds err less and less, on either side."""
    images = normal_images(1)
    pipeline = Correlated.of(RECIPES["v"])
    exact = closed_form(images, Correlated, *ends(RECIPES["v"]))
    bits = bits_per_dim(pipeline, images.expand(400, 1, SIDE, SIDE), batch_size=400, rtol=1e-4, atol=1e-4)
    assert bits.std() > 0.05
    assert abs(bits.mean() - exact) < 4 * bits.std() / 20


@pytest.mark.parametrize("name", ["epsilon", "flow", "edm"])
def test_random_bytes_cost_eight_bits(name):
    """No model can do better on average; the one that knows their law gets there, but for its blurred edges."""
    images = torch.randint(256, (200, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bits = bits_per_dim(Uniform.of(RECIPES[name], value_range=None), images, batch_size=200)
    assert 8 < bits.mean() < 8.01


def test_noise_fills_the_bin_around_a_value():
    """A byte stands for what is nearest to it, since networks are trained on the bytes."""
    x0, probe, width = _draw(PixelSpace(), torch.full((1, 1, 64, 64), 100, dtype=torch.uint8), 0, [0])
    offset = (x0 - (100 / 127.5 - 1)) / width
    assert offset.abs().max() < 0.5001
    assert abs(offset.mean()) < 0.02
    assert offset.std() == pytest.approx(12**-0.5, rel=0.02)
    assert sorted(probe.unique().tolist()) == [-1, 1]


@pytest.mark.parametrize(("dtype", "levels"), [(torch.uint8, 2**8), (torch.uint16, 2**16)])
def test_bits_count_the_levels(dtype, levels):
    """Uniform data coded with a normal law of the same variance: log2(levels) + log2(2 pi e / 12) / 2."""
    values = torch.randint(levels, (4, 1, 64, 64), generator=torch.Generator().manual_seed(0)).to(dtype)

    class Matched(Normal):
        mean, std, axes = torch.zeros(1).double(), torch.full((1,), 3**-0.5).double(), None

        def expected(self, x, alpha, sigma, labels):
            return alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * x

    bits = bits_per_dim(Matched.of(RECIPES["edm"], value_range=None, side=64), values)
    assert abs(bits.mean() - math.log2(levels) - math.log2(2 * math.pi * math.e / 12) / 2) < 0.01


def test_units_of_float_data():
    """The same images on another scale cost log2 of its ratio more."""
    images = normal_images()
    plain = bits_per_dim(Normal.of(RECIPES["v"]), images)
    scaled = bits_per_dim(Normal.of(RECIPES["v"], value_range=(100.0, 108.0)), 4 * images + 104)
    torch.testing.assert_close(scaled, plain + 2, atol=1e-3, rtol=0)


def test_labels():
    images = normal_images(2)
    pipeline = Normal.of(RECIPES["v"], classes=4)
    zero, far = both = bits_per_dim(pipeline, images, labels=torch.tensor([0, 2]))
    torch.testing.assert_close(bits_per_dim(pipeline, images, labels=[0, 2], batch_size=1), both)
    torch.testing.assert_close(zero, bits_per_dim(Normal.of(RECIPES["v"]), images[:1])[0])
    same = bits_per_dim(pipeline, images + torch.tensor([0.0, 2]).view(2, 1, 1, 1), labels=[0, 2])
    assert far > same[1] + 1
    bound = RECIPES["epsilon"]
    assert bits_per_dim(Normal.of(bound, classes=4), images).shape == (2,)  # the null class


def test_an_image_depends_on_seed_and_index_alone():
    """Each has steps of its own: a harder image beside it changes nothing."""
    pipeline = noised(RECIPES["flow"])
    images = bytes_like(3)
    images[1] = 255 - images[1]
    together = bits_per_dim(pipeline, images, seed=5)
    alone = torch.cat([bits_per_dim(pipeline, images[i : i + 1], indices=[i], seed=5) for i in (2, 0, 1)])
    torch.testing.assert_close(alone[[1, 2, 0]], together, rtol=1e-10, atol=0)
    torch.testing.assert_close(bits_per_dim(pipeline, images, seed=5, batch_size=2), together, rtol=1e-10, atol=0)
    assert (bits_per_dim(pipeline, images, seed=6) != together).all()


def test_a_real_network():
    """Labels, colours and gradients through a UNet; untrained, it can't beat a guess at random."""
    pipeline = tiny_pipeline(RECIPES["edm"].scheduler(), channels=3, num_class_embeds=4)
    images = torch.randint(256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bits = bits_per_dim(pipeline, images, labels=[0, 1, 2], rtol=1e-3, atol=1e-3, batch_size=2)
    assert (bits > 8).all()
    assert not bits.requires_grad
    assert all(p.grad is None for p in pipeline.unet.parameters())
    null = bits_per_dim(pipeline, images, rtol=1e-3, atol=1e-3)
    assert ((null - bits).abs() > 1e-2).all()


def test_any_scheduler_of_the_model():
    pipeline = Normal.of(RECIPES["v"])
    bits = bits_per_dim(pipeline, normal_images())
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler)
    torch.testing.assert_close(bits_per_dim(pipeline, normal_images()), bits)


def test_integrate_is_scipys():
    """Two rows of different difficulty, each as scipy solves it by itself."""
    rates = torch.tensor([[1.0, 3.0], [20.0, 0.1]]).double()
    start = torch.tensor([[1.0, 0.5], [-1.0, 2.0]]).double()
    calls = []

    def derivative(t, y, rows):
        calls.append(rows.tolist())
        return -rates[rows] * y + (rates[rows] * t[:, None]).sin()

    rows = [(stage, RK45.A[i, :i]) for i, stage in enumerate(STAGES, 1)]
    for ours, scipys in (*rows, (NODES, RK45.C[1:]), (FIFTH_ORDER, RK45.B), (ERROR, RK45.E)):
        np.testing.assert_allclose(ours, scipys, rtol=1e-15)
    ours = integrate(derivative, start, (-1.0, 2.0), 1e-8, 1e-8)
    for rate, y0, got in zip(rates.numpy(), start.numpy(), ours.numpy(), strict=True):
        alone = partial(lambda rate, t, y: -rate * y + np.sin(rate * t), rate)
        exact = solve_ivp(alone, (-1, 2), y0, rtol=1e-11, atol=1e-11, method="DOP853").y[:, -1]
        np.testing.assert_allclose(got, exact, atol=3e-7)
    assert [0, 1] in calls
    assert [1] in calls  # the harder one goes on alone


def test_integrate_gives_up():
    with pytest.raises(ValueError, match="isn't finite"):
        integrate(lambda t, y, rows: y / 0, torch.ones(1, 2).double(), (0.0, 1.0), 1e-5, 1e-5)
    noise = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="raise them"):
        integrate(
            lambda t, y, rows: torch.randn(y.shape, generator=noise), torch.ones(1, 2).double(), (0, 1), 1e-9, 1e-9
        )
    broken = Normal.of(RECIPES["v"])
    broken.unet.forward = lambda sample, *args, **kwargs: (sample / 0,)
    with pytest.raises(UserError, match="likelihood: the network's output isn't finite"):
        bits_per_dim(broken, normal_images())


def noised(objective: Objective, clip: bool = False, **options) -> PixelDiffusionPipeline:
    """The optimal pipeline for bytes, whose sampler clips or doesn't."""
    pipeline = Normal.of(objective, value_range=None, **options)
    pipeline.scheduler.register_to_config(clip_sample=clip)
    return pipeline


def bytes_like(n: int) -> torch.Tensor:
    return ((normal_images(n).clamp(-1, 1) + 1) * 127.5).round().byte()


def expected_terms(scheduler: DDPMScheduler, x0: np.ndarray, large: bool) -> np.ndarray:
    """(T + 1, D): the bound's terms in nats, averaged over x_t in closed form or by quadrature; L_T is the last."""
    alpha2 = scheduler.alphas_cumprod.double().numpy()
    beta = scheduler.betas.double().numpy()
    mean, var = Normal.mean.numpy(), Normal.std.numpy() ** 2
    terms = []
    for t in range(len(beta)):
        gain = alpha2[t] ** 0.5 * var / (alpha2[t] * var + 1 - alpha2[t])
        bias = (1 - gain * alpha2[t] ** 0.5) * (mean - x0)  # of the expected x0, which x_t's noise spreads
        spread = gain * (1 - alpha2[t]) ** 0.5
        if t == 0:
            second = beta[1] * (1 - alpha2[0]) / (1 - alpha2[1])
            terms.append([_code(x0[d], x0[d] + bias[d], spread[d], second**0.5) for d in range(D)])
            continue
        posterior = beta[t] * (1 - alpha2[t - 1]) / (1 - alpha2[t])
        model = beta[t] if large else posterior
        distance = (alpha2[t - 1] ** 0.5 * beta[t] / (1 - alpha2[t])) ** 2 * (bias**2 + spread**2)
        terms.append((np.log(model / posterior) + (posterior + distance) / model - 1) / 2)
    terms.append((alpha2[-1] * x0**2 - alpha2[-1] - np.log(1 - alpha2[-1])) / 2)
    return np.array(terms)


def _code(x0: float, center: float, spread: float, std: float) -> float:
    """E[-log P(x0's bin)] over means N(center, spread^2) of a normal law with that std."""
    low = -math.inf if x0 < -0.999 else x0 - 1 / 255
    high = math.inf if x0 > 0.999 else x0 + 1 / 255

    def integrand(z: float) -> float:
        a, b = ((edge - center - spread * z) / std for edge in (low, high))
        mass = norm.cdf(b) - norm.cdf(a) if a < 0 else norm.sf(a) - norm.sf(b)
        return -math.log(max(mass, 1e-300)) * norm.pdf(z)

    return quad(integrand, -8, 8, limit=200)[0]


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("name", ["few_steps", "zero_snr"])
def test_bound_is_the_sum_of_its_terms(name, variance_type):
    """Averaged over draws, against every term's expectation; one pixel is black and one white."""
    objective = OBJECTIVES[name]
    pipeline = noised(objective)
    pipeline.scheduler.register_to_config(variance_type=variance_type)
    image = bytes_like(1)
    image.flatten()[[7, 15]] = torch.tensor([0, 255], dtype=torch.uint8)
    draws = 3000 if name == "few_steps" else 150
    bits = variational_bound(pipeline, image.expand(draws, 1, SIDE, SIDE), batch_size=5000)
    terms = expected_terms(
        objective.scheduler(), image.double().flatten().numpy() / 127.5 - 1, "large" in variance_type
    )
    exact = terms.mean(1).sum() / math.log(2)
    error = bits.std() / draws**0.5
    assert error < 0.05
    assert abs(bits.mean() - exact) < 4 * error


def test_bound_of_some_timesteps_is_without_bias():
    pipeline = noised(OBJECTIVES["few_steps"])
    image = bytes_like(1)
    draws = image.expand(500, 1, SIDE, SIDE)
    whole = variational_bound(pipeline, draws[:200], batch_size=5000)
    some = variational_bound(pipeline, draws, num_timesteps=8, batch_size=5000)
    error = (some.var() / 500 + whole.var() / 200).sqrt()
    assert some.std() > whole.std()
    assert abs(some.mean() - whole.mean()) < 4 * error


def test_bound_is_near_the_likelihood():
    """For many steps, on data that the model knows."""
    images = bytes_like(200)
    pipeline = noised(RECIPES["epsilon_cosine"])
    pipeline.scheduler.register_to_config(variance_type="fixed_large")
    difference = (variational_bound(pipeline, images, batch_size=5000) - bits_per_dim(pipeline, images)).mean()
    assert -0.1 < difference < 0.2


def test_bound_clips_where_the_sampler_does():
    """White images, of which the network expects more than white."""

    class Bright(Normal):
        mean, std = torch.full((D,), 2.0).double(), torch.full((D,), 0.5).double()

    white = torch.full((2, 1, SIDE, SIDE), 255, dtype=torch.uint8)
    pipeline = Bright.of(OBJECTIVES["few_steps"], value_range=None)
    clipped = variational_bound(pipeline, white)
    pipeline.scheduler.register_to_config(clip_sample=False)
    assert (clipped < variational_bound(pipeline, white) / 2).all()


def test_bound_depends_on_seed_and_index_alone():
    pipeline = noised(OBJECTIVES["few_steps"])
    images = bytes_like(3)
    together = variational_bound(pipeline, images, seed=5, num_timesteps=7, batch_size=4)
    alone = torch.cat(
        [variational_bound(pipeline, images[i : i + 1], indices=[i], seed=5, num_timesteps=7) for i in range(3)]
    )
    torch.testing.assert_close(alone, together)


def test_bound_of_a_real_network():
    images = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bits = variational_bound(tiny_pipeline(channels=3), images, num_timesteps=4)
    assert bits.isfinite().all()
    assert not bits.requires_grad


def test_bad_input():
    pipeline, images = noised(OBJECTIVES["few_steps"]), bytes_like(2)
    for measure in (bits_per_dim, variational_bound):
        with pytest.raises(UserError, match="the model's are"):
            measure(pipeline, images.expand(2, 3, SIDE, SIDE))
        with pytest.raises(UserError, match="trained on whole numbers"):
            measure(pipeline, images.float())
        with pytest.raises(UserError, match="3 indices for 2"):
            measure(pipeline, images, indices=[1, 2, 3])
        with pytest.raises(UserError, match="unconditional"):
            measure(pipeline, images, labels=[1, 2])
        with pytest.raises(UserError, match="bfloat16"):
            measure(noised(OBJECTIVES["few_steps"]).to(torch.bfloat16), images)
        with pytest.raises(UserError, match="makes no pixels"):
            measure(pipeline_of(), images)
    with pytest.raises(UserError, match="from 2 to the model's 50"):
        variational_bound(pipeline, images, num_timesteps=51)
    with pytest.raises(UserError, match="take bits_per_dim"):
        variational_bound(Normal.of(RECIPES["flow"], value_range=None), images)
    with pytest.raises(UserError, match="a score-based model has no variational bound"):
        variational_bound(mixture_pipeline("subvp"), torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="take bits_per_dim"):
        variational_bound(Normal.of(RECIPES["v"]), normal_images())
    pipeline.scheduler.register_to_config(variance_type="learned")
    with pytest.raises(UserError, match="'learned'"):
        variational_bound(pipeline, images)
