"""Times for few steps, found on the trajectories of many."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

import generate
from pipelines import PixelDiffusionPipeline, make_sampler, make_scheduler
from snowmelt.errors import UserError
from snowmelt.timestep_search import shortest_path, squared_errors
from tests.pipelines.models import tiny_pipeline


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_shortest_path() -> None:
    """Against all paths."""
    errors = torch.rand(6, 7, generator=generator(), dtype=torch.float64)
    errors[torch.ones(6, 7).tril().bool()] = float("inf")
    for steps in range(1, 7):
        paths = [(0, *between) for between in itertools.combinations(range(1, 6), steps - 1)]
        sums = {path: sum(errors[i, j] for i, j in itertools.pairwise((*path, 6))) for path in paths}
        assert shortest_path(errors, steps) == list(min(sums, key=sums.__getitem__))


@pytest.mark.parametrize(
    ("trained", "name"), [(FlowMatchEulerDiscreteScheduler(shift=2.0), "flow-euler"), (DDPMScheduler(), "ddim")]
)
def test_errors_are_those_of_real_steps(trained: Any, name: str) -> None:
    """Of normal data, whose expected x0 is known: a step of the sampler from i to j, and the trajectory there."""
    scheduler = make_scheduler(name, trained)
    scheduler.register_to_config(clip_sample=False)
    sampler = make_sampler(scheduler)
    sampler.set_timesteps(10, None, torch.device("cpu"))
    levels = [sampler.level(i) for i in sampler.evaluations()]
    alpha = torch.stack([level.alpha.float() for level in levels] + [torch.tensor(1.0)])
    sigma = torch.stack([level.sigma.float() for level in levels] + [torch.tensor(0.0)])

    def expected(x: torch.Tensor, i: int) -> torch.Tensor:
        return x * alpha[i] * 0.25 / (alpha[i] ** 2 * 0.25 + sigma[i] ** 2)

    def stepped(x: torch.Tensor, i: int, j: int) -> torch.Tensor:
        x0 = expected(x, i)
        return alpha[j] * x0 + sigma[j] * (x - alpha[i] * x0) / sigma[i]

    states = [torch.randn(5, 1, 2, 2, generator=generator())]
    for i in range(10):
        states.append(stepped(states[i], i, i + 1))
    x0 = torch.stack([expected(x, i) for i, x in enumerate(states[:-1])])
    errors = squared_errors(torch.stack(states[1:]), x0, sampler)
    for i, j in itertools.product(range(10), range(11)):
        if j <= i:
            assert errors[i, j] == float("inf")
        else:
            real = (stepped(states[i], i, j) - states[j]).square().flatten(1).sum(1).mean()
            assert float(errors[i, j]) == pytest.approx(float(real), rel=1e-3, abs=1e-6)


def run(monkeypatch: pytest.MonkeyPatch, model: Path, output: Path, *flags: str) -> None:
    arguments = ["--model", str(model), "--output_dir", str(output), "--num_images", "2", *flags]
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    generate.main()


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(shift=2.0), DDPMScheduler(timestep_spacing="trailing")]
)
def test_they_are_kept_with_the_model(
    scheduler: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("snowmelt.timestep_search.CANDIDATES", 20)
    model = tmp_path / "model"
    tiny_pipeline(scheduler, num_class_embeds=3).save_pretrained(model)
    before = tiny_pipeline(scheduler, num_class_embeds=3)
    search = ("--search_timesteps", "3", "5", "--guidance_scale", "2", "--num_inference_steps", "3")
    run(monkeypatch, model, tmp_path / "first", *search)
    kept = json.loads((model / "scheduler/scheduler_config.json").read_text())["searched_timesteps"]
    assert {count: len(times) for count, times in kept.items()} == {"3": 3, "5": 5}
    assert "3 steps: " + ", ".join(f"{t:g}" for t in kept["3"]) in capsys.readouterr().out
    settings = json.loads((tmp_path / "first/settings.json").read_text())
    assert settings["timesteps"] == kept["3"]
    run(monkeypatch, model, tmp_path / "second", "--search_timesteps", "2", "--num_inference_steps", "7")
    assert "timesteps" not in json.loads((tmp_path / "second/settings.json").read_text())

    loaded = PixelDiffusionPipeline.from_pretrained(model)
    assert set(loaded.scheduler.config.searched_timesteps) == {"2", "3", "5"}
    assert loaded.scheduler.config.searched_timesteps["3"] == kept["3"]
    for name in ("dpmsolver++", "flow-euler" if "Flow" in type(scheduler).__name__ else "ddpm"):
        loaded.scheduler = make_scheduler(name, loaded.scheduler)
        before.scheduler = make_scheduler(name, before.scheduler)
        found, given, even = (
            pipeline(generator=generator(), output_type="pt", **steps).images
            for pipeline, steps in (
                (loaded, {"num_inference_steps": 3}),
                (loaded, {"timesteps": kept["3"]}),
                (before, {"num_inference_steps": 3}),
            )
        )
        assert torch.equal(found, given)
        assert not torch.equal(found, even)
    assert "will be ignored" not in caplog.text  # which diffusers says, and isn't so
    assert DiffusionPipeline.from_pretrained(model, trust_remote_code=True).scheduler.config.searched_timesteps


@pytest.mark.parametrize(
    ("scheduler", "flags", "said"),
    [
        (EDMEulerScheduler(), (), "--search_timesteps: is for flow models and for those with betas"),
        (FlowMapEulerDiscreteScheduler(), (), "--search_timesteps: is for flow models and for those with betas"),
        (DDPMScheduler(), ("--image", "a.png"), "is of the model itself, without --image; leave one of them out"),
        (DDPMScheduler(), ("--checkpoint", "5"), "without --checkpoint"),
        (
            DDPMScheduler(),
            ("--search_timesteps", "51"),
            "--search_timesteps: must be at least 1 and at most 50, got 51",
        ),
        (None, (), "--search_timesteps: times are saved with the model, and alice/digits is no folder; download it"),
    ],
)
def test_mistakes(
    scheduler: Any, flags: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path("alice/digits") if scheduler is None else tmp_path / "model"
    if scheduler is not None:
        tiny_pipeline(scheduler).save_pretrained(model)
    with pytest.raises(UserError, match=said):
        run(monkeypatch, model, tmp_path / "out", "--search_timesteps", "3", *flags)


def test_a_configuration_from_elsewhere() -> None:
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler())
    for value, said in (({"2": [5, 9]}, "timesteps: must decrease"), ([5], "its searched_timesteps must be lists by")):
        pipeline.scheduler.register_to_config(searched_timesteps=value)
        with pytest.raises(ValueError, match=said):
            pipeline(num_inference_steps=2)
