"""A training step on tensors without data: how many bytes would be alive at each operation, and how many it computes.

PyTorch's fake tensors go through the same autograd, autocast and optimizer as others, but hold nothing, so that a step
of a network for eight GPUs takes seconds on a laptop. What is counted is what PyTorch's allocator would be asked for:
not what kernels of cuDNN or oneDNN take for themselves, nor what the allocator loses to fragments.
"""

import contextlib
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from snowmelt.architectures import make_network
from snowmelt.gradient_clipping import GradientClipper
from snowmelt.objectives import StepContext, make_objective
from snowmelt.optimization import make_optimizer
from snowmelt.options import UnconditionalConfig
from snowmelt.sharding import DTYPES, units_of
from snowmelt.tasks.unconditional import BACKBONES

aten = torch.ops.aten
CPU_ATTENTION = {  # which torch's counter doesn't know
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@dataclass(frozen=True)
class Step:
    """What an optimizer step takes on one process; bytes, but for the first and the last.

    Attributes:
        parameters: of the network.
        flops: multiplications and additions.
        weights: in float32.
        moments: of the optimizer.
        ema: all averages.
        block: the largest block's weights.
        rest: those of no block.
        peaks: number of shards -> what else is alive when most is: gradients, copies of weights that autocast makes,
            and all the rest, which is activations and what is computed from them.
    """

    parameters: int
    flops: int
    weights: int
    moments: int
    ema: int
    block: int
    rest: int
    peaks: dict[int, dict[str, int]]


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations make, for as long as they live.

    Args:
        weights: the network's parameters, to tell gradients and autocast's copies from the rest.
        moments: the optimizer's, which were there before and aren't counted, as weights aren't.
        shards: to find the peak for: gradients are divided by it and, with more than one, autocast has nothing to
            copy, since weights are gathered in its precision.
    """

    def __init__(self, weights: list[nn.Parameter], moments: list[Tensor], shards: list[int]) -> None:
        super().__init__()
        self.live = {"gradients": 0, "copies": 0, "activations": 0}
        self.peaks = {count: dict(self.live) for count in shards}
        self._most = dict.fromkeys(shards, 0)
        self._weights = {id(weight.untyped_storage()) for weight in weights}
        self._kinds = {id(tensor.untyped_storage()): "known" for tensor in (*weights, *moments)}
        self._hooks = [weight.register_post_accumulate_grad_hook(self._has_gradient) for weight in weights]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copied = func is aten._to_copy.default and id(args[0].untyped_storage()) in self._weights
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._kinds:
                self._kinds[id(storage)] = kind = "copies" if copied else "activations"
                self.live[kind] += storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self._look()
        return out

    def _forget(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size

    def _has_gradient(self, weight: Tensor) -> None:
        assert weight.grad is not None
        storage = weight.grad.untyped_storage()
        self.live[self._kinds[id(storage)]] -= storage.nbytes()
        self.live["gradients"] += storage.nbytes()
        self._kinds[id(storage)] = "gradients"

    def _look(self) -> None:
        for shards in self.peaks:
            now = self.live | {"gradients": self.live["gradients"] // shards}
            now["copies"] *= shards == 1
            if sum(now.values()) > self._most[shards]:
                self._most[shards], self.peaks[shards] = sum(now.values()), now


class NormsInFloat32(TorchFunctionMode):
    """Autocast of CUDA, unlike that of CPUs, has normalizations compute in float32 and give that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.group_norm, F.layer_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def simulate(config: UnconditionalConfig, channels: int, shards: list[int], *, gpu: bool) -> Step:
    """An optimizer step of a training.

    Args:
        config: its options; `mixed_precision` is settled.
        channels: of the images or latents, whose size is `resolution`.
        shards: in how many parts weights, gradients, moments and averages are kept; 1 for one.
        gpu: whether precisions are those of autocast on a GPU, rather than on a CPU.

    Raises:
        UserError: for a network that there isn't.
    """
    objective = replace(make_objective(config, latent=channels > 3), bin_width=2 / 255)
    name = BACKBONES[config.backbone][0]
    accumulation = config.gradient_accumulation_steps
    dtype = DTYPES[config.mixed_precision or "no"]
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.ExitStack() as stack:
        network = make_network(
            name,
            config.model_size,
            config.model_config_name_or_path,
            resolution=config.size,
            channels=channels,
            out_channels=2 * channels if objective.learns_variance else channels,
            condition_channels=channels * config.self_condition + objective.target_channels,
            num_class_embeds=None,
            dropout=config.dropout,
            seed=0,
        ).train()
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        weights = list(network.parameters())
        optimizer, _ = make_optimizer([{"params": weights}], config, 1, module=network)
        if gpu and dtype != torch.float32:
            stack.enter_context(NormsInFloat32())
        autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        forward = convert_outputs_to_fp32(autocast(network.forward))
        context = StepContext(forward, torch.Generator(), 0, 0.0)

        clipper = GradientClipper(optimizer, config.max_grad_norm, config.max_grad_norm_ratio, torch.device("cpu"))

        def step(passes: int) -> None:
            for _ in range(passes):
                x0 = torch.empty(config.train_batch_size, channels, *config.size)
                labels = {"class_labels": torch.zeros(len(x0), dtype=torch.long)} if config.backbone == "dit" else {}
                objective.loss(x0, labels, context).loss.mean().backward()
            clipper.clip(0)
            optimizer.step()
            optimizer.zero_grad()

        # Apart from the other, since the counter's hooks keep alive what gradient checkpointing has computed again.
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            step(1)  # it makes the moments
        moments = [m for state in optimizer.state.values() for m in state.values() if isinstance(m, Tensor)]
        with LiveBytes(weights, moments, shards) as live:
            step(min(accumulation, 2))  # from the second pass on gradients are there from the start
        blocks = units_of(network)
        sizes = [sum(p.nbytes for p in block.parameters()) for block in blocks]
        whole = sum(p.nbytes for p in weights)
        return Step(
            parameters=sum(p.numel() for p in weights),
            flops=counter.get_total_flops() * accumulation,
            weights=whole,
            moments=sum(m.nbytes for m in moments),
            ema=whole * config.use_ema * (len(config.ema_widths) or 1),
            block=max(sizes),
            rest=whole - sum(sizes),
            peaks=live.peaks,
        )
