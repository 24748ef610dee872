"""LoRA: matrices of low rank beside those of a pretrained network, which stays as it is (Hu et al. 2022)."""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers

from snowmelt.errors import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name."""

TARGETS = {
    "unet": ["to_k", "to_q", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
}
"""The projections of attention, by the names that diffusers and transformers give them."""


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def add_lora(parts: dict[str, Any], rank: int, seed: int, mixed_precision: str | None) -> None:
    """Give networks LoRA matrices, which change nothing yet, and freeze all else of them.

    What is frozen is kept in the precision that it computes in, which halves its memory; the matrices are in float32.

    Args:
        parts: the networks, by the keys of `TARGETS`.
        rank: of the matrices.
        seed: of their initial values.
        mixed_precision: "bf16", "fp16" or "no".

    Raises:
        UserError: if peft isn't installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError(f"--rank: {error}; pip install 'snowmelt[lora]'") from error
    for name, net in parts.items():
        net.requires_grad_(False)
        if mixed_precision in DTYPES:
            torch.nn.Module.to(net, DTYPES[mixed_precision])  # its own `to` would warn of modules that it hasn't
        torch.manual_seed(seed)
        net.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS[name]))
        cast_training_params(net)


def save_lora(folder: Path, parts: dict[str, Any]) -> None:
    """Write the matrices of these networks as `LORA_FILE`, as `load_lora_weights` reads it."""
    from peft import get_peft_model_state_dict

    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(net))
        for name, net in parts.items()
    }
    StableDiffusionLoraLoaderMixin.save_lora_weights(str(folder), **layers)
