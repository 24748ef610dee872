"""What `publish.py --static_space` makes of a model: its denoiser as ONNX, and steps that need no scheduler."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
    VQModel,
)
from torch import nn

from pipelines import LatentDiffusionPipeline, PixelDiffusionPipeline, ScoreSdePipeline, make_scheduler
from pipelines.flow_map import TARGET_CHANNELS
from snowmelt.errors import UserError
from snowmelt.publishing import static_model
from snowmelt.publishing.static_model import MOST_STEPS, write_static_model
from snowmelt.publishing.static_space import PAGE, check_exporter, write_static_space
from tests.conftest import ROOT, run_in_process
from tests.pipelines.models import quiet, tiny_pipeline, tiny_unet

NEEDS_ONNX = "static Spaces need onnx and onnxscript: pip install -e '.[onnx]'"
Graph = Callable[..., np.ndarray]


def sampled(settings: dict[str, Any], denoiser: Graph, noise: np.ndarray, steps: int, label: int | None) -> np.ndarray:
    """What the page does: x0 of the graph, clipped, and an affine step; in (B, C, H, W)."""
    table = settings["tables"][steps - 1]
    x = noise * np.float32(table["start"])
    labels = {} if label is None else {"label": np.array([label])}
    for step in table["steps"]:
        x0 = denoiser(x_t=x, level=np.array(step["level"], np.float32), **labels)
        if settings["clip"] is not None:
            x0 = x0.clip(-settings["clip"], settings["clip"])
        x = np.float32(step["x"]) * x + np.float32(step["x0"]) * x0
    return x


def as_graph(module: nn.Module) -> Graph:
    """The module itself, in place of the ONNX graph that is made of it."""

    def call(**inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()

    return call


def onnx_graph(path: Path) -> Graph:
    """By the reference implementation of ONNX, in numpy."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return lambda **inputs: evaluator.run(None, inputs)[0]


def written(pipeline: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Graph]]:
    """Settings and modules by file, without the time that an export takes."""
    graphs: dict[str, Graph] = {}

    def keep(module: nn.Module, inputs: Any, output: str, path: Path) -> None:
        graphs[path.name] = as_graph(module)

    with patch.object(static_model, "_export", keep):
        write_static_model(pipeline, folder)
    return json.loads((folder / "model.json").read_text()), graphs


def flow_map() -> PixelDiffusionPipeline:
    torch.manual_seed(0)
    config = dict(tiny_unet(1, 4).config) | {"in_channels": 1 + TARGET_CHANNELS}
    unet = UNet2DModel.from_config(config).eval()
    return quiet(PixelDiffusionPipeline(unet, FlowMapEulerDiscreteScheduler(), flow_map=True))


def self_conditioned() -> PixelDiffusionPipeline:
    unet = UNet2DModel.from_config(dict(tiny_unet().config) | {"in_channels": 2})
    return PixelDiffusionPipeline(unet, DDIMScheduler(), self_condition=True)


def latent() -> LatentDiffusionPipeline:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    types = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = VQModel(latent_channels=4, num_vq_embeddings=16, scaling_factor=0.7, **blocks, **types).eval()
    return quiet(LatentDiffusionPipeline(vae, tiny_unet(4, 4), FlowMatchEulerDiscreteScheduler(shift=2.0)))


SCHEDULERS = {
    "clipped": lambda: tiny_pipeline(DDPMScheduler(timestep_spacing="trailing"), 3, 4),
    "offset": lambda: tiny_pipeline(DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False), 3),
    "zero-snr": lambda: tiny_pipeline(
        DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
    ),
    "flow": lambda: tiny_pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), 3, 4),
    "x0-of-a-flow": lambda: tiny_pipeline(FlowMatchEulerDiscreteScheduler(), prediction_type="sample"),
    "edm": lambda: tiny_pipeline(EDMEulerScheduler(sigma_max=20.0), 3),
    "flow-map": flow_map,
    "latent": latent,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_are_the_schedulers(name: str, tmp_path: Path) -> None:
    """The affine steps lead where the pipeline's own scheduler does, or the deterministic one of its family."""
    pipeline = SCHEDULERS[name]()
    settings, graphs = written(pipeline, tmp_path)
    label = 1 if pipeline.num_classes else None
    noise = np.random.default_rng(0).standard_normal((1, *settings["data"])).astype(np.float32)
    pipeline.scheduler = make_scheduler(settings["scheduler"], pipeline.scheduler)
    assert len(settings["tables"]) == MOST_STEPS
    for steps in (1, 4, 10):
        x = sampled(settings, graphs["denoiser.onnx"], noise, steps, label)
        if "decoder.onnx" in graphs:
            x = graphs["decoder.onnx"](latents=x)
        given = {"class_labels": label, "latents": torch.from_numpy(noise), "num_inference_steps": steps}
        expected = pipeline(1, **given, output_type="np").images.transpose(0, 3, 1, 2)
        assert list(x.shape[1:]) == settings["image"]
        assert expected.std() > 0.05
        assert np.abs((x / 2 + 0.5).clip(0, 1) - expected).max() < 1e-4


def test_graphs(tmp_path: Path) -> None:
    """As ONNX they compute what they do in torch, and are one file each, of the size that the page expects."""
    pytest.importorskip("onnxscript", reason=NEEDS_ONNX)
    pipeline = latent()
    write_static_model(pipeline, tmp_path, guidance_scale=2.5)
    settings = json.loads((tmp_path / "model.json").read_text())
    assert (settings["classes"], settings["null_class"], settings["guidance_scale"]) == (["0", "1", "2"], 3, 2.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.onnx", "denoiser.onnx", "model.json"]
    assert settings["bytes"] == {p.name: p.stat().st_size for p in tmp_path.glob("*.onnx")}
    for path in tmp_path.glob("*.onnx"):
        assert not re.search(rb"site-packages|\.py\b|" + re.escape(str(ROOT)).encode(), path.read_bytes())
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    x = sampled(settings, onnx_graph(tmp_path / "denoiser.onnx"), noise.numpy(), 2, 2)
    images = onnx_graph(tmp_path / "decoder.onnx")(latents=x)
    expected = pipeline(1, class_labels=2, latents=noise, num_inference_steps=2, output_type="pt").images
    assert np.abs((images / 2 + 0.5).clip(0, 1) - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ScoreSdePipeline(tiny_unet(), DDPMScheduler()), "a ScoreSdePipeline; it runs unconditional and class"),
        (lambda: tiny_pipeline(CMStochasticIterativeScheduler()), "a consistency model, whose steps draw noise"),
        (self_conditioned, "a self-conditioned model"),
        (lambda: tiny_pipeline(channels=2), "a model of 2 channels; it shows images of 1, 3 or 4"),
        (lambda: tiny_pipeline(DDIMScheduler(thresholding=True)), "a model whose scheduler thresholds x0 dynamically"),
    ],
)
def test_what_a_page_cannot_run(make: Callable[[], Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        write_static_model(make(), tmp_path)
    assert f"--static_space: the page in the browser can't run {said}" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no pipeline here"):
        write_static_space(tmp_path, tmp_path / "page")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output_dir", "folder"], "--output_dir uploads nothing: drop it, or --create_pr"),
        (["--space"], "--static_space: --space makes a Space of the name alice/digits; give another name"),
    ],
)
def test_options(words: list[str], said: str) -> None:
    given = ["--model", "run", "--hub_model_id", "alice/digits", "--static_space", "alice/digits"]
    with pytest.raises(UserError) as error:
        run_in_process([*given, *words], "publish")
    assert said in str(error.value)


def test_without_onnx() -> None:
    with patch("importlib.util.find_spec", return_value=None), pytest.raises(UserError) as error:
        check_exporter()
    assert str(error.value).endswith("aren't there: pip install 'snowmelt[onnx]'")


def test_nothing_is_loaded_from_elsewhere() -> None:
    """But a pinned version of the runtime: no fonts, analytics or scripts of others; the rest are links."""
    places = {place for file in PAGE.iterdir() for place in re.findall(r'https?://[^"\s]+', file.read_text())}
    links = {"https://huggingface.co/$model", "https://onnxruntime.ai"}
    assert places - links == {"https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"}
