"""What a checkpoint holds: networks, their averages, the optimizer, the loss scale."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snowmelt.ema import Ema
from snowmelt.sharding import original_class, part_of, rebuilt, snapshot
from snowmelt.text.adapters import ADAPTERS, Adapter, adapter_of

Write = Callable[[Path], Any]
"""Writes what was collected to a path that doesn't exist yet."""


class Stateful(Protocol):
    """Something a checkpoint holds. One registry of them serves saving and loading, so that they can't drift."""

    def collect(self) -> Write:
        """What is needed to resume, as it is now: it is written while training goes on, by one process.

        Every process enters, as it may be spread over them.
        """

    def load(self, path: Path) -> None:
        """Take over what `collect` wrote at this path."""


class NetworkState:
    """A network, or the average of one, as a folder that `from_pretrained` loads."""

    def __init__(self, net: ModelMixin) -> None:
        self.net = net

    def collect(self) -> Write:
        """Configuration and weights, as `save_pretrained` writes them."""
        tensors = snapshot(self.net.state_dict())
        return lambda folder: rebuilt(self.net, tensors).save_pretrained(folder)

    def load(self, path: Path) -> None:
        """Take over the weights, from safetensors alone."""
        found, own = original_class(self.net).from_pretrained(path, use_safetensors=True), self.net.state_dict()
        self.net.load_state_dict({name: part_of(value, own[name]) for name, value in found.state_dict().items()})


class TrainedState:
    """Those of a network's parameters that are trained, where most are frozen, or their average.

    Args:
        net: the network, or its average.
        names: of the parameters.
    """

    def __init__(self, net: nn.Module, names: Iterable[str]) -> None:
        self.net = net
        self.names = list(names)

    def collect(self) -> Write:
        """Those parameters, as trained.safetensors in a new folder."""
        tensors = snapshot({name: self.net.get_parameter(name) for name in self.names})

        def write(folder: Path) -> None:
            folder.mkdir()
            save_file(tensors, folder / "trained.safetensors")

        return write

    def load(self, path: Path) -> None:
        """Take them over; the frozen ones stay as they are."""
        self.net.load_state_dict(load_file(path / "trained.safetensors"), strict=False)  # the others are as they were


class AdapterState:
    """LoRA matrices, or embeddings of a word, once more: in the file that diffusers looks for.

    Args:
        adapter: which of them.
        nets: the networks that have them, by the names of a pipeline: those to be sampled.
    """

    def __init__(self, adapter: Adapter, nets: dict[str, Any]) -> None:
        self.adapter = adapter
        self.nets = nets

    def collect(self) -> Write:
        """What the adapter's `file` holds, whatever name is given."""
        with TemporaryDirectory() as folder:
            self.adapter.save(Path(folder), self.nets)
            content = (Path(folder) / self.adapter.file).read_bytes()
        return lambda file: file.write_bytes(content)

    def load(self, path: Path) -> None:
        """Nothing: `TrainedState`s hold the same and more."""


def network_state(net: nn.Module, trained: nn.Module | None = None) -> Stateful:
    """A network, as far as it is trained.

    Args:
        net: the network, or an average.
        trained: the network in training, whose average it is.
    """
    if adapter_of(net) is None:
        return NetworkState(net)
    return TrainedState(net, [name for name, p in (trained or net).named_parameters() if p.requires_grad])


class OptimizerState:
    """An optimizer's moments, as safetensors. Its hyperparameters come from the configuration, not from here."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def collect(self) -> Write:
        """The moments, named by parameter index and key, as optimizer.safetensors in a new folder."""
        state = self.optimizer.state_dict()["state"]
        values = {f"{i}.{k}": v for i, moments in state.items() for k, v in moments.items()}
        tensors = snapshot(values)  # bitsandbytes counts steps in an int, PyTorch in a tensor of floats

        def write(folder: Path) -> None:
            folder.mkdir()
            save_file(tensors, folder / "optimizer.safetensors")

        return write

    def load(self, path: Path) -> None:
        """Take over the moments; hyperparameters stay as they are."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor | int]] = {}
        for key, value in load_file(path / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            counted = value.dim() == 0 and value.dtype == torch.int64
            moment = part_of(value, parameters[int(index)]) if value.dim() else value
            state.setdefault(int(index), {})[name] = int(value) if counted else moment
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class TensorState:
    """Something whose state is a dictionary of tensors, such as the losses that timesteps are drawn by."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def collect(self) -> Write:
        """What its `state_dict` gives, as state.safetensors in a new folder."""
        tensors = snapshot(self.owner.state_dict())

        def write(folder: Path) -> None:
            folder.mkdir()
            save_file(tensors, folder / "state.safetensors")

        return write

    def load(self, path: Path) -> None:
        """Give it to `load_state_dict`."""
        self.owner.load_state_dict(load_file(path / "state.safetensors"))


class ScalerState:
    """The loss scale of fp16 training."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler

    def collect(self) -> Write:
        """The scale and what it grows by, as scaler.json in a new folder."""
        text = json.dumps(self.scaler.state_dict())

        def write(folder: Path) -> None:
            folder.mkdir()
            (folder / "scaler.json").write_text(text)

        return write

    def load(self, path: Path) -> None:
        """Take over the scale."""
        self.scaler.load_state_dict(json.loads((path / "scaler.json").read_text()))


def training_state(
    networks: dict[str, ModelMixin],
    emas: dict[str, dict[str, Ema]],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> dict[str, Stateful]:
    """All that a training needs to resume, by the names of their folders in a checkpoint.

    Args:
        networks: in training, by name.
        emas: EMAs of them, by suffix and name; adapters are also written of the first.
        optimizer: of their parameters.
        scaler: of fp16 training; None without it.

    Returns:
        Networks by their names, averages by `{name}_{suffix}`, `optimizer` and, where there are any, the files of
        `ADAPTERS` and `scaler`.
    """
    states: dict[str, Stateful] = {name: network_state(net) for name, net in networks.items()}
    states["optimizer"] = OptimizerState(optimizer)
    for suffix, averages in emas.items():
        for name, ema in averages.items():
            states[f"{name}_{suffix}"] = network_state(ema.network, networks[name])
    first = next(iter(emas.values()), {})
    published = {name: first[name].network if name in first else net for name, net in networks.items()}
    for adapter in ADAPTERS:
        if adapted := {name: net for name, net in published.items() if adapter.adapts(net)}:
            states[adapter.file] = AdapterState(adapter, adapted)
    return states | ({} if scaler is None else {"scaler": ScalerState(scaler)})
