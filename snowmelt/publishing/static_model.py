"""What a page without a server needs of a model: its denoiser as an ONNX graph, and tables of its sampler's steps.

The steps of DDIM, and of Euler on a flow or on EDM's path, take x_t to x' = c_x x_t + c_x0 x0, where x0 is what the
network expects. So whoever evaluates the graph needs of a scheduler only these two numbers per step.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, FlowMapEulerDiscreteScheduler
from torch import Tensor, nn

from pipelines import IMAGE_CHANNELS, make_scheduler
from pipelines.backbones import num_class_embeds, trained_size
from pipelines.denoiser import Predictor
from pipelines.prediction import NoiseLevel, Prediction
from pipelines.sampler import Sampler
from pipelines.samplers import make_sampler
from pipelines.schedulers import FEW_STEPS, invertible
from pipelines.vae import shift_and_scale
from snowmelt.errors import UserError

DENOISER, DECODER, SETTINGS = "denoiser.onnx", "decoder.onnx", "model.json"
MOST_STEPS = 10
CLASSES = (
    "PixelDiffusionPipeline",
    "PixelTransformerPipeline",
    "LatentDiffusionPipeline",
    "LatentTransformerPipeline",
)
MOST_BYTES = 2**31
"""Of an ONNX file, which is one protobuf message."""


class _Denoiser(nn.Module):
    """(x_t, values of its noise level, label) -> the expected x0, as the pipelines read it of their networks."""

    def __init__(self, predict: Predictor) -> None:
        super().__init__()
        self.network = predict.network
        self.predict = predict

    def forward(self, x_t: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
        conditions = {} if label is None else {"class_labels": label}
        return self.predict(x_t, NoiseLevel(*level.unbind()), conditions).x0


class _Decoder(nn.Module):
    """Latents (1, c, h, w), scaled as the network has them -> an image (1, C, H, W)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.shift, self.scale = shift_and_scale(vae)

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.scale + self.shift, return_dict=False)[0]


def write_static_model(pipeline: Any, folder: Path, guidance_scale: float | None = None) -> None:
    """Write the graphs and `model.json`, which says how they are to be called.

    Args:
        pipeline: unconditional or class-conditional, of pixels or latents; its parts are made float32.
        folder: an empty folder.
        guidance_scale: to begin with; None for no guidance.

    Raises:
        UserError: for a model whose steps are none of those above, or which can't be one graph.
    """
    _check(pipeline)
    own = pipeline.scheduler
    sampler_name = "flow-map" if isinstance(own, FlowMapEulerDiscreteScheduler) else invertible(own)
    scheduler = make_scheduler(sampler_name, own)
    sampler = make_sampler(scheduler)
    for part in filter(None, (pipeline.network, pipeline.vae)):
        part.to("cpu").eval()
        nn.Module.to(part, torch.float32)
    data: list[Any] = [pipeline.data_channels, *trained_size(pipeline.network)]
    embeds, known = num_class_embeds(pipeline.network), pipeline.num_classes
    tables = [_table(sampler, pipeline._predictor(sampler), steps + 1) for steps in range(MOST_STEPS)]
    x_t = torch.zeros(1, *data)
    inputs = {"x_t": x_t, "level": torch.tensor(tables[0]["steps"][0]["level"])}
    if embeds is not None:
        inputs["label"] = torch.zeros(1, dtype=torch.long)
    _export(_Denoiser(pipeline._predictor(sampler)), inputs, "x0", folder / DENOISER)
    if pipeline.vae is not None:
        _export(_Decoder(pipeline.vae), {"latents": x_t}, "image", folder / DECODER)
    names = pipeline.id2label or {}
    settings = {
        "scheduler": sampler_name,
        "data": data,
        "image": [pipeline.channels, *(side * pipeline.vae_scale_factor for side in data[1:])],
        "classes": [names.get(i, str(i)) for i in range(known)],
        "null_class": known if embeds == known + 1 else None,
        "guidance_scale": guidance_scale or 1.0,
        "steps": min(FEW_STEPS.get(type(scheduler).__name__, MOST_STEPS), MOST_STEPS),
        "clip": scheduler.config.clip_sample_range if scheduler.config.get("clip_sample") else None,
        "tables": tables,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx"))},
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")


def _check(pipeline: Any) -> None:
    """Refuse what a page can't sample.

    Raises:
        UserError: saying what, and what it can.
    """
    name, why = type(pipeline).__name__, None
    if name not in CLASSES:
        why = f"a {name}; it runs unconditional and class-conditional models of pixels or latents"
    elif isinstance(pipeline.scheduler, CMStochasticIterativeScheduler):
        why = "a consistency model, whose steps draw noise; it takes the steps of DDIM, EDM and flows, flow maps too"
    elif pipeline.scheduler.config.get("thresholding"):
        why = "a model whose scheduler thresholds x0 dynamically"
    elif pipeline.config.get("self_condition"):
        why = "a self-conditioned model, whose steps need those before"
    elif None in trained_size(pipeline.network):
        why = "a network that doesn't say which size it was trained for"
    elif pipeline.channels not in IMAGE_CHANNELS:
        why = f"a model of {pipeline.channels} channels; it shows images of 1, 3 or 4"
    elif max(_bytes(pipeline.network), _bytes(pipeline.vae)) > MOST_BYTES:
        why = "a model of more than 2 GB, which no ONNX file holds"
    if why:
        raise UserError(f"--static_space: the page in the browser can't run {why}. --space makes one on a server")


def _bytes(network: nn.Module | None) -> int:
    return 0 if network is None else 4 * sum(parameter.numel() for parameter in network.parameters())


def _table(sampler: Sampler, predict: Predictor, num_inference_steps: int) -> dict[str, Any]:
    """The factor of the noise that the steps begin with, and of each step the noise level, c_x and c_x0.

    They are what the sampler itself makes of (x0, eps) = (1/2, 0), which nothing clips, and (0, 1).
    """
    sampler.set_timesteps(num_inference_steps, None, torch.device("cpu"))
    x0, eps = torch.tensor([[0.5, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1, 1)
    start = sampler.start(torch.ones(1))
    steps = []
    for i in sampler.evaluations():
        level = sampler.level(i)
        x = sampler.x_t(level.alpha * x0 + level.sigma * eps, i)
        seen = Prediction(x, predict.prediction_type, x, level)
        after = sampler.step(seen.with_output(seen.output_of(x0, predict.prediction_type)), i, x)
        half_alpha, sigma = after.flatten().tolist()
        c_x = sigma / float(level.sigma)
        scale = 1.0 if level.input_scale is None else level.input_scale
        values: list[Any] = [level.alpha, level.sigma, level.timestep, scale]
        values += [level.target_sigma] if predict.target_channels else []
        steps.append({"level": [float(v) for v in values], "x": c_x, "x0": 2 * half_alpha - float(level.alpha) * c_x})
    return {"start": float(start), "steps": steps}


def _export(module: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    """Write a network as ONNX, without the exporter's notes, which name files of this machine."""
    # Here, since it is an extra.
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _quiet(), torch.no_grad():
        names: dict[str, Any] = {"input_names": list(inputs), "output_names": [output]}
        program: Any = torch.onnx.export(module.eval(), tuple(inputs.values()), dynamo=True, verbose=False, **names)
    ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of operators of torchvision, which isn't needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
