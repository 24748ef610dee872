"""Networks spread over processes by FSDP2, where `accelerate launch` is configured for it.

The configuration is Accelerate's; the sharding is PyTorch's `fully_shard`, applied here: Accelerate applies it to one
network, where averages are kept of it that must be spread too, on GPUs alone, and casts the network's inputs to half
precision, in which noise levels can't be told apart. What a process holds is float32; the network computes in the run's
precision by autocast, as it does without sharding.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from diffusers import AutoencoderKL, ModelMixin, VQModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from snowmelt.errors import UserError, one_line
from snowmelt.optimization_options import OptimizationOptions
from snowmelt.text.adapters import adapter_of

FLAG = "ACCELERATE_USE_FSDP"
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNITS = ("ResnetBlock2D", "Attention", "BasicTransformerBlock", "CLIPEncoderLayer")
"""Classes whose modules are gathered and freed as a whole, of the networks of diffusers and the text encoders here."""
UNITS_OF = {"DiTTransformer2DModel": ("Attention", "FeedForward")}
"""Where others do: this network takes the embedding of its times from the inside of its first block."""


def find_sharding(config: OptimizationOptions) -> FullyShardedDataParallelPlugin | None:
    """What the launch is configured for, read off the variables that `accelerate launch` sets; None: no sharding.

    Args:
        config: the optimizer, which must work on parts of matrices.

    Raises:
        UserError: for FSDP of version 1, or settings that training here doesn't have.
    """
    if os.environ.get(FLAG, "false").lower() not in ("1", "true", "yes"):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(f"launched for FSDP of version {version}; set fsdp_version: 2 in the launch's configuration")
    try:
        plugin = FullyShardedDataParallelPlugin()
    except ValueError as error:
        raise UserError(
            f"the launch's FSDP configuration: {one_line(error)}; with fsdp_version: 2, fsdp_reshard_after_forward is "
            "true or false"
        ) from error
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError("the launch's FSDP configuration: fsdp_offload_params isn't for training here; set it to false")
    if plugin.activation_checkpointing:
        raise UserError(
            "the launch's FSDP configuration: fsdp_activation_checkpointing: set it to false, and give "
            "--gradient_checkpointing"
        )
    if config.optimizer == "muon" or config.use_8bit_adam:
        flag = "--use_8bit_adam" if config.use_8bit_adam else "--optimizer muon"
        raise UserError(f"{flag}: works on whole matrices, which FSDP spreads over processes; take --optimizer adamw")
    return plugin


def shard(net: nn.Module, plugin: FullyShardedDataParallelPlugin, accelerator: Accelerator) -> None:
    """Spread a network's parameters over all processes: each holds a part of each, in place of the whole.

    The modules of `UNITS`, or of the classes that the configuration names, are gathered one at a time while the network
    computes. Every process enters, with the same network, and from then on wherever the network is called.

    Args:
        net: the network, on the device.
        plugin: of the launch.
        accelerator: the device and the precision.

    Raises:
        UserError: for networks that aren't spread.
    """
    if adapter_of(net) is not None or isinstance(net, AutoencoderKL | VQModel):
        what = "autoencoders" if isinstance(net, ModelMixin) and adapter_of(net) is None else "adapters"
        raise UserError(
            f"launched for FSDP, which isn't for {what}; launch for data parallelism (MULTI_GPU, MULTI_CPU)"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    named = plugin.transformer_cls_names_to_wrap
    units = units_of(net, named)
    if named and not units:
        raise UserError(f"the launch's FSDP configuration: {type(net).__name__} has no modules of {', '.join(named)}")
    # Gathered as autocast would cast them, which keeps its copies of float32 weights until the backward pass. What is
    # outside of the units sees the noise level, and stays float32.
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[accelerator.mixed_precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=plugin.reshard_after_forward)
    fully_shard(net, mesh=mesh)
    for attribute in ("__name__", "__qualname__", "__module__"):  # by which configurations and pipelines know it
        setattr(type(net), attribute, getattr(original_class(net), attribute))


def units_of(net: nn.Module, named: Sequence[str] | None = None) -> list[nn.Module]:
    """The modules of a network that are gathered and freed as a whole, by the names of their classes.

    Args:
        net: the network.
        named: classes, where they aren't those of `UNITS`.
    """
    names = UNITS_OF.get(type(net).__name__, UNITS) if named is None else named
    units: list[nn.Module] = []
    inside: set[nn.Module] = set()  # of the units before: modules() has what is outside first
    for module in net.modules():
        if type(module).__name__ in names and module not in inside:
            units.append(module)
            inside.update(module.modules())
    return units


def describe_parts(networks: Mapping[str, nn.Module]) -> str:
    """A line on how much of sharded networks this process holds."""
    parameters = [p for net in networks.values() for p in net.parameters()]
    here = sum(held(p).numel() for p in parameters)
    return f"FSDP2: this process holds {here:,} of {sum(p.numel() for p in parameters):,} parameters"


def original_class(net: nn.Module) -> Any:
    """A network's class, whether it is sharded or not."""
    return next(cls for cls in type(net).__mro__ if not issubclass(cls, FSDPModule))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part. Every process enters."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in its own memory: to be changed in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor, which every process has, what this process holds of one like it."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def snapshot(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of whole tensors, on the CPU, in the process that writes; nothing in the others. Every process enters.

    Args:
        tensors: tensors, or numbers, by name.
    """
    writes, copies = PartialState().is_main_process, {}
    for name, value in tensors.items():
        tensor = whole(torch.as_tensor(value).detach())
        if writes:
            copies[name] = tensor.to("cpu", copy=True).contiguous()
    return copies


def rebuilt(net: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """A network of the same class and configuration that has these tensors, whole.

    Args:
        net: a network of diffusers or transformers, sharded or not.
        tensors: its state.
    """
    cls: Any = original_class(net)
    with torch.device("meta"):
        # As it is saved: in memory, values given by position count as defaults, which another version may change.
        made = cls.from_config(json.loads(net.to_json_string())) if isinstance(net, ModelMixin) else cls(net.config)
    made.load_state_dict(tensors, assign=True)
    return made


def unsharded(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Networks as they can be saved: sharded ones gathered, in the process that writes. Every process enters."""
    found = dict(networks)
    for name, net in networks.items():
        if isinstance(net, FSDPModule):
            tensors = snapshot(networks[name].state_dict())
            found[name] = rebuilt(networks[name], tensors) if tensors else net
    return found
