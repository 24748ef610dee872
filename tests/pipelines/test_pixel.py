"""Arguments in, images out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from pipelines import (
    PixelDiffusionPipeline,
    SamplingOutput,
    fitting_schedulers,
    image_generators,
    make_sampler,
    make_scheduler,
)
from pipelines.sampler import LISTS
from pipelines.schedulers import SAMPLERS
from tests.pipelines.models import quiet, tiny_pipeline, tiny_unet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, to the schedulers

NAMES = {0: "ant", 1: "bee", 2: "cat"}
FAST: dict[str, Any] = {"num_inference_steps": 2}


def calls(pipeline: PixelDiffusionPipeline) -> list[tuple[int, Any]]:
    """(batch, class labels) of each evaluation of the network from now on."""
    seen: list[tuple[int, Any]] = []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        labels = kwargs.get("class_labels")
        seen.append((len(args[0]), None if labels is None else labels.tolist()))

    pipeline.unet.register_forward_pre_hook(record, with_kwargs=True)
    return seen


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_output_types(channels: int, mode: str) -> None:
    pipeline = tiny_pipeline(channels=channels)
    images = {
        kind: pipeline(2, generator=image_generators(0, [0, 1]), output_type=kind, **FAST).images
        for kind in ("pil", "np", "pt")
    }
    assert [image.mode for image in images["pil"]] == [mode] * 2
    assert images["np"].shape == (2, 16, 16, channels)
    assert images["np"].dtype == np.float32
    assert images["pt"].shape == (2, channels, 16, 16)
    assert np.array_equal(images["pt"].permute(0, 2, 3, 1).numpy(), images["np"])
    assert images["np"].min() >= 0
    assert images["np"].max() <= 1
    pixels = np.stack([np.asarray(image).reshape(16, 16, channels) for image in images["pil"]])
    assert np.array_equal(pixels, (images["np"] * 255).round())


def test_other_channels_come_as_arrays() -> None:
    pipeline = tiny_pipeline(channels=2)
    assert pipeline(output_type="np", **FAST).images.shape == (1, 16, 16, 2)
    with pytest.raises(ValueError, match="no PIL image has 2 channels; use output_type='np' or 'pt'"):
        pipeline(**FAST)
    with pytest.raises(ValueError, match="output_type: 'jpg' is not one of pil, np, pt"):
        pipeline(output_type="jpg", **FAST)


def test_return_dict() -> None:
    pipeline = tiny_pipeline()
    output = pipeline(**FAST)
    assert isinstance(output, SamplingOutput)
    assert output.trajectory is None
    images, trajectory = pipeline(return_dict=False, return_trajectory=True, **FAST)
    assert isinstance(images[0], PIL.Image.Image)
    assert len(trajectory.timesteps) == 2


def test_size() -> None:
    pipeline = tiny_pipeline()
    assert pipeline(height=8, output_type="pt", **FAST).images.shape == (1, 1, 8, 16)
    with pytest.raises(ValueError, match="width: 17 is not a multiple of 2"):
        pipeline(width=17, **FAST)


def test_latents() -> None:
    pipeline = tiny_pipeline(EDMEulerScheduler())
    noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    given = pipeline(2, latents=noise, output_type="pt", **FAST).images
    drawn = pipeline(2, generator=torch.Generator().manual_seed(7), output_type="pt", **FAST).images
    assert torch.equal(given, drawn)
    with pytest.raises(ValueError, match=r"latents: of shape \(2, 1, 16, 16\), but \(3, 1, 16, 16\)"):
        pipeline(3, latents=noise, **FAST)


@pytest.mark.parametrize(
    "labels", [2, "cat", [2], ["cat", "cat"], torch.tensor([2, 2]), torch.tensor(2), np.array([2, 2])]
)
def test_class_labels(labels: Any) -> None:
    pipeline = tiny_pipeline(num_class_embeds=4, id2label=NAMES)
    seen = calls(pipeline)
    pipeline(2, class_labels=labels, **FAST)
    assert seen == [(2, [2, 2])] * 2
    assert pipeline.num_classes == 3


def test_no_label_is_the_null_class() -> None:
    for names in (NAMES, None):
        pipeline = tiny_pipeline(num_class_embeds=4, id2label=names)
        seen = calls(pipeline)
        pipeline(2, **FAST)
        assert seen == [(2, [3, 3])] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 3}, r"class_labels: 3 is not among 0 to 2 \(ant, bee, cat\)"),
        ({"class_labels": -1}, "class_labels: -1 is not among 0 to 2"),
        ({"class_labels": "dog"}, "class_labels: 'dog' is not among 0 to 2"),
        ({"class_labels": [0, 1, 2]}, "class_labels: 3 given for 2 images"),
        ({"generator": image_generators(0, range(3))}, "generator: 3 given for 2 images"),
        ({"eta": 0.5}, "eta: DDPMScheduler takes none"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "'x' is not among latents, pred_original_sample"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(num_class_embeds=4, id2label=NAMES)(2, **arguments, **FAST)


def test_models_without_classes_or_without_a_null_class() -> None:
    with pytest.raises(ValueError, match="class_labels: this model is unconditional"):
        tiny_pipeline()(class_labels=0, **FAST)
    with pytest.raises(ValueError, match="guidance_scale: must be 1"):
        tiny_pipeline()(guidance_scale=2.0, **FAST)
    always = tiny_pipeline(num_class_embeds=3, id2label=NAMES)
    always(class_labels=2, **FAST)
    with pytest.raises(ValueError, match=r"class_labels: this model needs them: 0 to 2 \(ant, bee, cat\)"):
        always(**FAST)
    with pytest.raises(ValueError, match="guidance_scale: must be 1"):
        always(class_labels=2, guidance_scale=2.0, **FAST)


def test_guidance() -> None:
    """Ho & Salimans 2022, eq. 6, in one evaluation of both halves."""
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler(), num_class_embeds=4, id2label=NAMES)
    noise = torch.randn(2, 1, 16, 16)
    options = {"batch_size": 2, "latents": noise, "num_inference_steps": 1, "return_trajectory": True}
    null, conditional, guided = (
        pipeline(**options, **kwargs).trajectory.denoised
        for kwargs in ({}, {"class_labels": [0, 1]}, {"class_labels": [0, 1], "guidance_scale": 3.0})
    )
    assert torch.allclose(guided, null + 3 * (conditional - null), atol=1e-4)
    assert not torch.allclose(guided, conditional, atol=1e-3)
    seen = calls(pipeline)
    pipeline(2, class_labels=[0, 1], guidance_scale=3.0, num_inference_steps=1)
    assert seen == [(4, [3, 3, 0, 1])]


def level(pipeline: PixelDiffusionPipeline, t: float) -> float:
    """sigma / alpha at a time that the network is shown."""
    if isinstance(pipeline.scheduler, EDMEulerScheduler):
        return float(np.exp(4 * t))
    if isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
        return t / 1000 / max(1 - t / 1000, 1e-9)
    alpha2 = DDPMScheduler().alphas_cumprod[round(t)].double()
    return float(((1 - alpha2) / alpha2).sqrt())


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        EDMEulerScheduler(),
        *(make_scheduler(n, DDPMScheduler(timestep_spacing="trailing")) for n in ("ddim", "euler", "heun", "unipc")),
    ],
)
def test_guidance_interval(scheduler: Any) -> None:
    """Two rows per image where lo < sigma / alpha <= hi, one elsewhere (Kynkaanniemi et al. 2024, eq. 5)."""
    pipeline = tiny_pipeline(scheduler, num_class_embeds=4)
    seen = calls(pipeline)
    trajectory = pipeline(
        class_labels=0, guidance_scale=2.0, guidance_interval=(0.3, 2.0), num_inference_steps=12, return_trajectory=True
    ).trajectory
    expected = [2 if 0.3 < level(pipeline, float(t)) <= 2 else 1 for t in trajectory.timesteps]
    assert [batch for batch, _ in seen] == expected
    assert {1, 2} == set(expected)


FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.mark.parametrize("name", ["flow-euler", "dpmsolver++", "dpmsolver++-single", "unipc"])
def test_the_times_that_a_sampler_would_take_by_itself(name: str) -> None:
    """Given as a list, before the scheduler's shift, they make the same images."""
    pipeline = tiny_pipeline(make_scheduler(name, FLOW))
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    own = pipeline(latents=noise, num_inference_steps=5, output_type="pt").images
    sigmas = pipeline.scheduler.sigmas[:-1]
    times = (1000 * sigmas / (3 - 2 * sigmas)).tolist()
    assert torch.allclose(pipeline(latents=noise, timesteps=times, output_type="pt").images, own, atol=1e-5)
    pipeline.scheduler.register_to_config(searched_timesteps={"4": times})
    assert torch.allclose(pipeline(latents=noise, num_inference_steps=4, output_type="pt").images, own, atol=1e-5)


@pytest.mark.parametrize(
    ("trained", "name"),
    [(DDPMScheduler(), name) for name in SAMPLERS["discrete"]]
    + [(FlowMatchEulerDiscreteScheduler(), name) for name in SAMPLERS["flow"]],
)
def test_timesteps(trained: Any, name: str) -> None:
    scheduler = make_scheduler(name, trained)
    pipeline = tiny_pipeline(scheduler)
    times = [900, 500, 100]
    if not make_sampler(scheduler).takes_list:
        with pytest.raises(ValueError, match="takes no list; DDPM, EulerDiscrete, HeunDiscrete, DPMSolver"):
            pipeline(timesteps=times)
    else:
        shown = pipeline(timesteps=times, return_trajectory=True).trajectory.timesteps
        assert shown.unique().flip(0).tolist() == pytest.approx(times)
        # The error above names all that take a list.
        assert type(scheduler).__name__.removesuffix("Scheduler") in LISTS


def test_timesteps_go_through_a_flows_shift_together_with_the_sigmas() -> None:
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0))
    shown = pipeline(timesteps=[1000, 500], return_trajectory=True).trajectory.timesteps
    assert shown.tolist() == pytest.approx([1000, 750])
    assert pipeline.scheduler.sigmas.tolist() == pytest.approx([1, 0.75, 0])


def test_callback() -> None:
    pipeline = tiny_pipeline(DDIMScheduler(timestep_spacing="trailing"))
    seen: list[tuple[int, int]] = []

    def zero(pipe: Any, i: int, t: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((i, int(t)))
        assert set(tensors) == {"latents", "pred_original_sample"}
        return {"latents": torch.zeros_like(tensors["latents"])}

    output = pipeline(
        num_inference_steps=2,
        callback_on_step_end=zero,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
        output_type="pt",
        return_trajectory=True,
    )
    assert seen == [(0, 999), (1, 499)]
    assert (output.images == 0.5).all()
    assert (output.trajectory.noisy[1] == 0).all()


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmsolver++", "edm-euler"])
def test_trajectory(name: str) -> None:
    discrete = DDPMScheduler(timestep_spacing="trailing", clip_sample=False)
    trained = EDMEulerScheduler() if name == "edm-euler" else discrete
    pipeline = tiny_pipeline(make_scheduler(name, trained))
    output = pipeline(2, num_inference_steps=5, output_type="pt", return_trajectory=True)
    trajectory = output.trajectory
    assert trajectory.noisy.shape == trajectory.denoised.shape == (5, 2, 1, 16, 16)
    assert trajectory.timesteps.shape == (5,)
    # It starts at unit noise and ends at the image.
    assert float(trajectory.noisy[0].std()) == pytest.approx(1, abs=0.1)
    assert torch.allclose((trajectory.denoised[-1] / 2 + 0.5).clamp(0, 1), output.images, atol=1e-3)


def test_round_trip(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(
        FlowMatchEulerDiscreteScheduler(), num_class_embeds=4, prediction_type="epsilon", id2label=NAMES
    )
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(PixelDiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True))
    assert loaded.config.prediction_type == "epsilon"
    assert loaded.id2label == NAMES
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/model_index.json").read_text())["id2label"] == {
        "0": "ant",
        "1": "bee",
        "2": "cat",
    }
    images = [
        p(2, class_labels="bee", generator=image_generators(0, [0, 1]), output_type="np", **FAST).images
        for p in (pipeline, loaded)
    ]
    assert np.array_equal(*images)


@pytest.mark.parametrize("kind", [DiffusionPipeline, DDPMPipeline])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_plain_model_is_saved_as_diffusers_own(tmp_path: Path, kind: Any, prediction_type: str) -> None:
    """It loads without trust, and as our class too; what was saved there before leaves nothing behind."""
    scheduler = DDPMScheduler(timestep_spacing="trailing", prediction_type=prediction_type)
    tiny_pipeline(FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    assert (tmp_path / "pipeline.py").is_file()
    ours = tiny_pipeline(scheduler)
    ours.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index.pop("_class_name") == "DDPMPipeline"
    assert set(index) == {"_diffusers_version", "scheduler", "unet"}
    assert not (tmp_path / "pipeline.py").exists()
    loaded = [quiet(cls.from_pretrained(tmp_path)) for cls in (kind, PixelDiffusionPipeline)]
    assert [type(pipeline) for pipeline in loaded] == [DDPMPipeline, PixelDiffusionPipeline]
    images = [
        p(2, generator=torch.Generator().manual_seed(0), output_type="np", num_inference_steps=3).images
        for p in (ours, *loaded)
    ]
    assert np.array_equal(images[0], images[2])
    assert abs(images[0] - images[1]).max() < 1e-5


@pytest.mark.parametrize(
    "pipeline",
    [
        lambda: tiny_pipeline(FlowMatchEulerDiscreteScheduler()),
        lambda: tiny_pipeline(EDMEulerScheduler()),
        lambda: tiny_pipeline(DDIMScheduler()),  # whose stock pipeline steps with the noise of the unclipped x0
        lambda: tiny_pipeline(num_class_embeds=4),
        lambda: tiny_pipeline(value_range=(0.0, 5.0)),
        lambda: tiny_pipeline(FlowMatchEulerDiscreteScheduler(), prediction_type="epsilon"),
    ],
)
def test_what_diffusers_pipelines_would_lose_is_saved_with_its_code(tmp_path: Path, pipeline: Any) -> None:
    made = pipeline()
    made.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "PixelDiffusionPipeline"]
    assert (tmp_path / "pipeline.py").read_text() == PixelDiffusionPipeline.source()
    assert type(PixelDiffusionPipeline.from_pretrained(tmp_path)) is PixelDiffusionPipeline


def test_a_ddim_that_does_not_clip_is_diffusers_own(tmp_path: Path) -> None:
    tiny_pipeline(DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)).__name__ == "DDIMPipeline"


def test_a_class_made_elsewhere_is_saved_by_its_name(tmp_path: Path) -> None:
    """What it needs is unknown here."""

    class Other(PixelDiffusionPipeline):
        pass

    Other(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "Other"
    assert not (tmp_path / "pipeline.py").exists()


def test_a_published_folder_loads_as_this_class_without_running_its_code(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "PixelDiffusionPipeline"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "pipeline.py").write_text("raise RuntimeError('was run')")
    assert type(PixelDiffusionPipeline.from_pretrained(tmp_path)) is PixelDiffusionPipeline


def test_unknown_prediction_type() -> None:
    with pytest.raises(ValueError, match="prediction_type: 'noise' is not one of epsilon, sample, v_prediction"):
        tiny_pipeline(prediction_type="noise")


def test_image_generators() -> None:
    def draws(seed: int, indices: Any) -> list[float]:
        return [float(torch.randn(1, generator=g)) for g in image_generators(seed, indices)]

    assert draws(0, [5, 3]) == [draws(0, range(6))[5], draws(0, range(6))[3]]
    # Seeds of 32 bits collide by chance unless they are counted: 100,000 hashes would, with 69%.
    seeds = {g.initial_seed() for g in image_generators(0, range(100_000))}
    assert len(seeds) == 100_000
    assert max(seeds) < 2**32
    assert not seeds & {g.initial_seed() for g in image_generators(1, range(1000))}


def test_fitting_schedulers_of_a_pipeline() -> None:
    assert fitting_schedulers(tiny_pipeline(EDMEulerScheduler()).scheduler) == [
        "edm-euler",
        "edm-heun",
        "edm-dpmsolver++",
    ]
