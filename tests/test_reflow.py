"""Reflow: straighter paths, pairs that are the model's own, and what can't be straightened."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipelines.denoiser import conditioned
from pipelines.prediction import Prediction
from pipelines.samplers import make_sampler
from pipelines.sampling import sample
from snowmelt import reflow
from snowmelt.conditioning import NoConditioning
from snowmelt.data import pair_cache
from snowmelt.data.pair_cache import build_pairs
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from snowmelt.objectives import Losses, Objective, StepContext
from snowmelt.objectives.paths import StraightPath
from snowmelt.spaces import PixelSpace
from snowmelt.tasks.diffusion import DiffusionTask
from snowmelt.tracking import read_metrics
from tests.autoencoders import tiny_vae
from tests.conftest import trained
from tests.pipelines.models import quiet
from tests.test_resume import interrupted

FLOW = Objective(StraightPath(), "flow_prediction")


class Velocity(nn.Module):
    """A flow in the plane."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.layers(torch.cat([x.flatten(1), timestep[:, None] / 1000], 1)).view(x.shape),)


def four_points(n: int, generator: torch.Generator) -> Tensor:
    """Data (n, 1, 1, 2) near the corners of a square."""
    corners = 2.0 * torch.randint(2, (n, 2), generator=generator) - 1
    return (1.5 * corners + 0.1 * torch.randn(n, 2, generator=generator)).view(n, 1, 1, 2)


def fit(net: Velocity, batch_of: Callable[[torch.Generator], tuple[Tensor, Tensor | None]]) -> None:
    """600 steps of the objective on batches of x0 and perhaps noise."""
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(600):
        generator = torch.Generator().manual_seed(step)
        x0, noise = batch_of(generator)
        loss = FLOW.loss(x0, {}, StepContext(net, generator, step, step / 600), noise).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def solve(net: Velocity, noise: Tensor, steps: int) -> tuple[Tensor, float]:
    """What the flow makes of noise, and how far its paths are from straight ones.

    That is the mean square of the difference between the velocity along a path and the way from its beginning to its
    end (Liu et al. 2023, section 2.2), which is 0 for straight paths of constant speed.
    """
    sampler = make_sampler(FLOW.scheduler())
    sampler.set_timesteps(steps, None, torch.device("cpu"))
    velocities: list[Tensor] = []
    denoiser = conditioned(FLOW.predictor(net), {})

    def on_step(i: int, x: Tensor, prediction: Prediction) -> Tensor:
        velocities.append(prediction.output)
        return x

    x0 = sample(denoiser, sampler, sampler.start(noise), on_step=on_step)
    way = noise - x0
    return x0, torch.stack([(v - way).square().sum((1, 2, 3)).mean() for v in velocities]).mean().item()


def test_reflow_makes_paths_straighter() -> None:
    """And takes each noise to where the first flow took it, in one step, which the first flow can't."""
    first, second = Velocity(), Velocity()
    fit(first, lambda generator: (four_points(256, generator), None))
    noise = torch.randn(8192, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    samples, bent = solve(first, noise, 50)
    second.load_state_dict(first.state_dict())

    def pairs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(noise), (256,), generator=generator)
        return samples[rows], noise[rows]

    fit(second, pairs)
    fresh = torch.randn(2000, 1, 1, 2, generator=torch.Generator().manual_seed(2))
    target, bent = solve(first, fresh, 50)
    _, straight = solve(second, fresh, 50)
    assert straight < bent / 5
    errors = [(solve(net, fresh, 1)[0] - target).square().mean().item() for net in (first, second)]
    assert errors[1] < errors[0] / 5


@pytest.fixture(scope="module")
def teacher(train, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("reflow") / "teacher", learning_rate=1e-2, label_dropout=0.25)


REFLOW = {"label_dropout": 0.25, "reflow_pairs": 40, "reflow_steps": 3, "reflow_guidance_scale": 2.0}


def test_pairs_are_what_the_model_makes(teacher, train, tmp_path) -> None:
    """Of their noise and label: the first quarter without one and unguided; and the student begins as the model."""
    run = train(
        tmp_path / "run", **REFLOW, reflow_from=teacher, cache_dir=tmp_path / "cache", learning_rate=0.0, use_ema=False
    )
    weights = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(teacher / weights), load_file(run / weights)
    assert all(torch.equal(before[name], after[name]) for name in before)
    (file,) = (tmp_path / "cache").rglob(pair_cache.VALUES)
    noise, samples = torch.from_numpy(np.fromfile(file, np.float32).reshape(40, 2, 1, 8, 8)).unbind(1)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    pipeline = quiet(load_pipeline(str(teacher)))
    draw = {"num_inference_steps": 3, "output_type": "pt"}
    null = pipeline(10, latents=noise[:10], **draw).images
    rest = pipeline(30, load_digits().target[:30], 2.0, latents=noise[10:], **draw).images
    torch.testing.assert_close(torch.cat([null, rest]), (samples / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-4)
    assert rest.std() > 0


def test_no_label_of_a_pair_is_dropped(teacher, train, tmp_path, monkeypatch) -> None:
    """A quarter of the pairs has none from the beginning."""
    batches: list[tuple[Tensor, Tensor]] = []
    loss = DiffusionTask.loss

    def recorded(task: DiffusionTask, batch: dict[str, Tensor], context: StepContext) -> Losses:
        batches.append((batch["label"], task.conditioning.embed(batch, torch.Generator())["class_labels"]))
        return loss(task, batch, context)

    monkeypatch.setattr(DiffusionTask, "loss", recorded)
    train(tmp_path / "run", **REFLOW, reflow_from=teacher, max_train_steps=5)  # of 8 pairs each: all of them
    assert all(torch.equal(label, given) for label, given in batches)
    assert sum((label == 10).sum().item() for label, _ in batches) == 10


def test_resume_is_exact(teacher, train, tmp_path, monkeypatch) -> None:
    """And the pairs are made once."""
    options = REFLOW | {"reflow_from": teacher, "max_train_steps": 6, "checkpointing_steps": 1, "learning_rate": 1e-3}
    whole = train(tmp_path / "whole", **options)
    monkeypatch.setattr(reflow, "_solve", None)
    resumed = interrupted(whole, 4, tmp_path / "resumed")
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed) == trained(whole, since=4)
    assert [line["loss"] for line in read_metrics(resumed)] == [line["loss"] for line in read_metrics(whole)]


def test_latents(train, tmp_path) -> None:
    tiny_vae("sd", 1).save_pretrained(tmp_path / "vae")
    options = {"autoencoder": tmp_path / "vae", "resolution": 16, "class_conditional": False}
    teacher = train(tmp_path / "teacher", **options)
    run = train(tmp_path / "run", **options, reflow_from=teacher, reflow_pairs=8, reflow_steps=2)
    assert load_pipeline(str(run)).vae is not None
    other = tiny_vae("sd", 1)
    other.decoder.conv_out.bias.data[0] += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="its autoencoder is another than --autoencoder"):
        train(tmp_path / "x", **options | {"autoencoder": tmp_path / "other"}, reflow_from=teacher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reflow_from": "no/such/place"}, "^--reflow_from: can't load no/such/place: it is no folder"),
        ({"objective": "edm"}, "^--objective edm: --reflow_from straightens flows; take flow or mixture$"),
        (
            {"objective": "mixture"},
            "its prediction is flow_prediction, and this model's sample; give the options that it was",
        ),
        ({"class_conditional": False}, "its number of classes is 10, and this model's 0; take one of the same data"),
        (
            {"label_dropout": 0.0},
            "^--reflow_from .*: its num_class_embeds is 11, and this model's 10; give",
        ),
        ({"resolution": 16}, "^--reflow_from .*: its shape is .*; take one of the same data"),
        (
            {"backbone": "dit", "model_config_name_or_path": None, "model_size": "tiny"},
            "its network is UNet2DModel, and this model's DiT",
        ),
        ({"self_condition": True}, "its self_condition is None, and this model's True; give the options"),
        ({"coupling": "ot"}, "^--coupling: is not for the pairs of --reflow_from; leave it out$"),
        ({"reflow_from": None}, "^--reflow_pairs: needs --reflow_from$"),
    ],
)
def test_refused(options, message, teacher, train, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(tmp_path / "run", **REFLOW | {"reflow_from": teacher} | options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_models_that_are_no_flows(train, tmp_path) -> None:
    for objective, line in (
        ("epsilon", "is no flow model of train_unconditional.py"),
        ("ve", "is a ScoreSdePipeline;"),
    ):
        model = train(tmp_path / objective, objective=objective, max_train_steps=1)
        with pytest.raises(UserError, match=line):
            train(tmp_path / "run", reflow_from=model)


def test_a_pairs_noise_is_mixed_with_its_sample() -> None:
    """And its sample is x0 as it is, where cached images are integers."""
    x0, noise = torch.randn(2, 16, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []

    def net(x: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        seen.extend([x, timestep.view(-1, 1, 1, 1) / 1000])
        return (noise - x0,)

    task = DiffusionTask(FLOW, PixelSpace(), NoConditioning(), data=None)  # type: ignore[arg-type]
    context = StepContext(net, torch.Generator().manual_seed(0), 0, 0)
    losses = task.loss({"image": x0, "noise": noise}, context)
    torch.testing.assert_close(seen[0], (1 - seen[1]) * x0 + seen[1] * noise)
    assert losses.loss.max() < 1e-12


class Killed(BaseException):
    """As by a signal."""


def test_a_killed_builder_is_resumed(tmp_path) -> None:
    made: list[int] = []

    def generate(start: int, stop: int) -> np.ndarray:
        if made == [0, 4]:
            raise Killed
        made.append(start)
        return np.arange(start * 8, stop * 8, dtype=np.float32).reshape(-1, 2, 1, 2, 2)

    arguments = {"count": 10, "shape": (1, 2, 2), "labels": None, "batch": 4, "depends_on": {"seed": 0}}
    with pytest.raises(Killed):
        build_pairs(tmp_path, generate, **arguments)
    made.clear()
    noise, samples = build_pairs(tmp_path, generate, **arguments)
    assert made == [8]
    expected = torch.arange(80.0).view(10, 2, 1, 2, 2)
    assert torch.equal(noise.as_tensor(), expected[:, 0])
    assert torch.equal(samples.as_tensor(), expected[:, 1])
    assert np.array_equal(samples.gather(np.array([7, 2]), None), expected[[7, 2], 1])
    assert noise.fingerprint != samples.fingerprint
    other = build_pairs(tmp_path, generate, **arguments | {"labels": np.arange(10)})[0]
    assert other.fingerprint != noise.fingerprint


def test_networks_of_named_sizes(train, tmp_path) -> None:
    """Their settings are the same ones, in memory and out of a file."""
    options = {"model_config_name_or_path": None, "model_size": "tiny", "max_train_steps": 1}
    first = train(tmp_path / "first", **options)
    train(tmp_path / "second", **options, reflow_from=first, reflow_pairs=8, reflow_steps=2)
    train(tmp_path / "third", **options, pretrained_model_name_or_path=first)
