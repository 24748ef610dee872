"""What a checkpoint holds: networks, their averages, the optimizer, the loss scale."""

import contextlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snowmelt.ema import Ema, applied
from snowmelt.text.lora import LORA_FILE, save_lora


class Part(Protocol):
    """Something a checkpoint holds. One registry of parts serves saving and loading, so that they can't drift."""

    def save(self, folder: Path) -> None:
        """Write everything needed to go on into `folder`, which doesn't exist yet."""

    def load(self, folder: Path) -> None:
        """Become what `save` wrote."""


class ModelPart:
    """A network, or one of its averages, as a folder that `from_pretrained` loads."""

    def __init__(self, net: ModelMixin, ema: Ema | None = None) -> None:
        self.net = net
        self.ema = ema

    def save(self, folder: Path) -> None:
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            self.net.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        state = type(self.net).from_pretrained(folder, use_safetensors=True).state_dict()
        if self.ema:
            self.ema.load(state)
        else:
            self.net.load_state_dict(state)


class TrainedPart:
    """The LoRA matrices of a network that is frozen but for them, or their EMA."""

    def __init__(self, net: nn.Module, ema: Ema | None = None) -> None:
        self.net = net
        self.ema = ema

    def save(self, folder: Path) -> None:
        folder.mkdir()
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            tensors = {name: p.detach().contiguous() for name, p in self.net.named_parameters() if p.requires_grad}
            save_file(tensors, folder / "trained.safetensors")

    def load(self, folder: Path) -> None:
        state = load_file(folder / "trained.safetensors")
        if self.ema:
            self.ema.load(state)
        else:
            self.net.load_state_dict(state, strict=False)  # the others are as they were


class LoraPart:
    """LoRA matrices, or their EMA, once more: in the file that `load_lora_weights` of diffusers looks for.

    Args:
        nets: the networks that have them, by the names of a pipeline.
        emas: their averages, which are those to be sampled.
    """

    def __init__(self, nets: dict[str, Any], emas: dict[str, Ema]) -> None:
        self.nets = nets
        self.emas = emas

    def save(self, file: Path) -> None:
        with applied(self.emas.values()):
            save_lora(file.parent, self.nets)

    def load(self, file: Path) -> None:
        """Nothing: `TrainedPart`s hold the same and more."""


def network_part(net: ModelMixin, ema: Ema | None = None) -> Part:
    """A network, or one of its averages, as far as it is trained."""
    return (TrainedPart if getattr(net, "peft_config", None) else ModelPart)(net, ema)


class OptimizerPart:
    """An optimizer's moments, as safetensors. Its hyperparameters come from the configuration, not from here."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def save(self, folder: Path) -> None:
        folder.mkdir()
        state = self.optimizer.state_dict()["state"]
        values = {f"{i}.{k}": v for i, moments in state.items() for k, v in moments.items()}
        # bitsandbytes counts steps in an int, PyTorch in a tensor of floats.
        tensors = {key: torch.as_tensor(value).contiguous() for key, value in values.items()}
        save_file(tensors, folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        state: dict[int, dict[str, Tensor | int]] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            counted = value.dim() == 0 and value.dtype == torch.int64
            state.setdefault(int(index), {})[name] = int(value) if counted else value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class ScalerPart:
    """The loss scale of fp16 training."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "scaler.json").write_text(json.dumps(self.scaler.state_dict()))

    def load(self, folder: Path) -> None:
        self.scaler.load_state_dict(json.loads((folder / "scaler.json").read_text()))


def training_parts(
    nets: dict[str, ModelMixin],
    averages: list[dict[str, Ema]],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> dict[str, Part]:
    """All that a training needs to go on, by folder: networks and averages by their names, `optimizer`, `scaler`."""
    parts: dict[str, Part] = {name: network_part(net) for name, net in nets.items()}
    parts |= {"optimizer": OptimizerPart(optimizer)}
    parts |= {name: network_part(ema.net, ema) for emas in averages for name, ema in emas.items()}
    if adapted := {name: net for name, net in nets.items() if getattr(net, "peft_config", None)}:
        parts |= {LORA_FILE: LoraPart(adapted, averages[0] if averages else {})}
    return parts | ({} if scaler is None else {"scaler": ScalerPart(scaler)})
