"""Training of flow maps: resumed, from other weights, from a teacher, on two processes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from safetensors.torch import load_file

from pipelines import PixelDiffusionPipeline
from pipelines.flow_map import TARGET_CHANNELS
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from snowmelt.other_models import begin_with, check_same_data
from snowmelt.teacher import make_teacher
from snowmelt.tracking import read_metrics
from tests.autoencoders import tiny_vae
from tests.conftest import trained
from tests.pipelines.models import quiet, tiny_unet
from tests.pipelines.oracle import MEAN, STD, Oracle
from tests.pipelines.test_flow_map import unet
from tests.test_resume import interrupted

MAP = {"objective": "soflow", "class_conditional": True, "max_train_steps": 4, "checkpointing_steps": 2}


@pytest.mark.parametrize("objective", ["soflow", "meanflow", "ect"])
def test_trained_and_resumed(objective, train, tmp_path, capsys):
    options = MAP | {"objective": objective, "ddpm_num_inference_steps": None}
    whole = train(tmp_path / "whole", **options)
    pipeline = load_pipeline(str(whole))
    assert f"num_inference_steps={pipeline.default_steps}" in capsys.readouterr().out
    if objective == "ect":
        assert isinstance(pipeline.scheduler, CMStochasticIterativeScheduler)
    else:
        assert isinstance(pipeline.scheduler, FlowMapEulerDiscreteScheduler)
        assert pipeline.config["flow_map"]
        assert pipeline.network.config.in_channels == pipeline.data_channels + TARGET_CHANNELS
    resumed = interrupted(whole, 2, tmp_path / "resumed")
    train(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed) == trained(whole, since=2)


def test_latents(train, tmp_path):
    tiny_vae("sd", 1).save_pretrained(tmp_path / "vae")
    run = train(tmp_path / "run", **MAP, autoencoder=tmp_path / "vae", resolution=16)
    assert quiet(load_pipeline(str(run)))(output_type="pt").images.shape == (1, 1, 16, 16)


@pytest.mark.parametrize("objective", ["meanflow", "ect"])
def test_two_processes(objective, train, launch, tmp_path):
    """They take the steps of one with twice the accumulation: gradients are shared, whatever else is evaluated."""
    options = MAP | {"objective": objective, "learning_rate": 1e-3, "lr_warmup_steps": 0}
    codes, log = launch(tmp_path / "two", 2, **options)
    assert codes == [0, 0], log
    one = train(tmp_path / "one", **options, gradient_accumulation_steps=2)
    name = "checkpoint-4/unet/diffusion_pytorch_model.safetensors"
    expected, begun = load_file(one / name), load_file(one / name.replace("4", "2"))
    torch.testing.assert_close(load_file(tmp_path / "two" / name), expected, rtol=0, atol=1e-5)
    assert any((expected[key] - begun[key]).abs().max() > 1e-4 for key in expected)


def test_a_flow_becomes_a_flow_map(train, tmp_path):
    """With its weights, and nothing of the second time, the velocities are those of the flow."""
    flow = train(tmp_path / "flow", class_conditional=True, max_train_steps=2)
    made = train(
        tmp_path / "map", **MAP | {"max_train_steps": 1, "learning_rate": 0.0, "pretrained_model_name_or_path": flow}
    )
    teacher, student = (quiet(load_pipeline(str(folder))) for folder in (flow, made))
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student.scheduler = FlowMatchEulerDiscreteScheduler()
    given = {"class_labels": [1, 2], "latents": noise, "num_inference_steps": 3, "output_type": "pt"}
    torch.testing.assert_close(student(2, **given).images, teacher(2, **given).images)
    weights = student.network.conv_in.weight
    assert (weights[:, 1:] == 0).all()


def test_a_teacher_is_learned_from(train, tmp_path):
    flow = train(tmp_path / "flow", class_conditional=True, max_train_steps=2)
    given = {"teacher": flow, "pretrained_model_name_or_path": flow, "teacher_guidance_scale": 2.0}
    made = train(tmp_path / "map", **MAP | given)
    alone = train(tmp_path / "alone", **MAP | {"pretrained_model_name_or_path": flow})
    one, other = ([line["loss"] for line in read_metrics(folder) if "loss" in line] for folder in (made, alone))
    assert one != other
    resumed = interrupted(made, 2, tmp_path / "resumed")
    train(resumed, **MAP, **given, resume_from_checkpoint="latest")
    assert trained(resumed) == trained(made, since=2)


@pytest.mark.parametrize("family", ["flow", "edm", "discrete"])
def test_velocities_of_any_process_are_those_of_the_straight_line(family: str) -> None:
    """Of normal data, whose velocity is known, within what a whole timestep is."""
    scheduler, predicts = {
        "flow": (FlowMatchEulerDiscreteScheduler(), "flow_prediction"),
        "edm": (EDMEulerScheduler(), "edm"),
        "discrete": (DDPMScheduler(), "epsilon"),
    }[family]
    config = scheduler.config
    schedule = {k: config[k] for k in ("beta_schedule", "rescale_betas_zero_snr") if k in config}
    pipeline = PixelDiffusionPipeline(Oracle(family, predicts, schedule), scheduler)
    teacher = make_teacher(pipeline, 1.0, 0.0, "--teacher DIR")
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (0.05, 0.3, 0.6, 0.9):
        x0 = MEAN + (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2) * (x_t - (1 - t) * MEAN)
        velocity = teacher(x_t, torch.full((2,), t), {})
        torch.testing.assert_close(velocity, (x_t - x0) / t, rtol=0.03, atol=0.03)


def test_guidance_of_a_teacher() -> None:
    """A dropped label has none; the others' is that of the pipeline."""
    flow = PixelDiffusionPipeline(tiny_unet(1, 3), FlowMatchEulerDiscreteScheduler(), id2label={0: "a", 1: "b"})
    x_t, t = torch.randn(3, 1, 16, 16), torch.tensor([0.2, 0.5, 0.8])
    labels = torch.tensor([0, 2, 1])
    plain, guided = (make_teacher(flow, scale, 0.1, "--teacher DIR") for scale in (1.0, 3.0))
    null = plain(x_t, t, {"class_labels": torch.full((3,), 2)})
    own = plain(x_t, t, {"class_labels": labels})
    torch.testing.assert_close(guided(x_t, t, {"class_labels": labels}), null + 3 * (own - null), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"objective": "flow", "teacher": "DIR"}, "--teacher: is for flow maps"),
        ({"objective": "flow", "flow_fraction": 0.5}, "--flow_fraction: is for flow maps"),
        ({"teacher_guidance_scale": 2.0}, "--teacher_guidance_scale: needs --teacher"),
        ({"condition": "lowres:2"}, "--condition: isn't for flow maps"),
        ({"objective": "flow", "pretrained_model_name_or_path": "DIR", "condition": "gray"}, "--pretrained_model_na"),
        ({"teacher": "nowhere"}, "--teacher: can't load nowhere"),
        ({"self_condition": True}, "--self_condition: isn't for soflow"),
        ({"objective": "ect", "self_condition": True}, "--self_condition: isn't for ect"),
        ({"objective": "ect", "dropout": 0.1}, "--dropout: isn't for ect"),
        ({"objective": "ect", "ddpm_num_inference_steps": 50}, "--ddpm_num_inference_steps 50: .* take 40 or fewer"),
        ({"snr_gamma": 5.0}, "--loss_weight or --snr_gamma: changes the loss of one time"),
    ],
)
def test_what_is_refused(options: dict[str, Any], line: str, train: Any, tmp_path: Path) -> None:
    quiet(PixelDiffusionPipeline(tiny_unet(), FlowMatchEulerDiscreteScheduler())).save_pretrained(tmp_path / "DIR")
    options = {k: tmp_path / v if v == "DIR" else v for k, v in options.items()}
    with pytest.raises(UserError, match=f"^{line}"):
        train(tmp_path / "run", **{"objective": "soflow"} | options)


def test_models_that_do_not_fit() -> None:
    own = PixelDiffusionPipeline(unet(1, None), FlowMapEulerDiscreteScheduler(), flow_map=True)
    cases = {
        "its shape is": PixelDiffusionPipeline(tiny_unet(3), FlowMatchEulerDiscreteScheduler()),
        "its number of classes is": PixelDiffusionPipeline(
            unet(1), FlowMapEulerDiscreteScheduler(), id2label={0: "a", 1: "b"}, flow_map=True
        ),
        "its value_range is": PixelDiffusionPipeline(
            unet(1, None), FlowMapEulerDiscreteScheduler(), value_range=(0, 9), flow_map=True
        ),
    }
    for line, other in cases.items():
        with pytest.raises(UserError, match=f"--teacher DIR: {line}"):
            check_same_data(other, own, "--teacher DIR")
    epsilon = PixelDiffusionPipeline(unet(1, None), DDPMScheduler(), flow_map=True)
    with pytest.raises(UserError, match="its process is discrete, and this model's flow; give the options"):
        begin_with(epsilon, own, "--pretrained_model_name_or_path DIR")
    wide = PixelDiffusionPipeline(unet(1, 5), FlowMapEulerDiscreteScheduler(), flow_map=True)
    with pytest.raises(UserError, match="its num_class_embeds is 5, and this model's None"):
        begin_with(wide, own, "--pretrained_model_name_or_path DIR")
    twice = PixelDiffusionPipeline(tiny_unet(2), FlowMatchEulerDiscreteScheduler(), self_condition=False)
    twice.register_to_config(self_condition=True)
    with pytest.raises(UserError, match="its self_condition is True, and this model's None"):
        begin_with(twice, own, "--pretrained_model_name_or_path DIR")
    few = PixelDiffusionPipeline(tiny_unet(), CMStochasticIterativeScheduler())
    with pytest.raises(UserError, match="is a consistency model, which knows no velocity"):
        make_teacher(few, 1.0, 0.0, "--teacher DIR")


def test_a_trained_edm_model_is_tuned(train, tmp_path):
    """It is where the tuning begins: with no steps of its own, its samples are those of the model in one step."""
    edm = train(tmp_path / "edm", objective="edm", max_train_steps=2)
    given = {"objective": "ect", "pretrained_model_name_or_path": edm, "max_train_steps": 1, "learning_rate": 0.0}
    tuned = load_pipeline(str(train(tmp_path / "tuned", **given)))
    teacher = load_pipeline(str(edm))
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"latents": noise, "num_inference_steps": 1, "output_type": "pt"}
    made, expected = (quiet(model)(2, **given).images for model in (tuned, teacher))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)
