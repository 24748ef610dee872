"""What `snowmelt doctor` says: versions, devices, memory, disk, the Hub, and what is missing for what."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from huggingface_hub import get_token

from snowmelt.environment import hardware, native_precision

PACKAGES = ("snowmelt", "torch", "diffusers", "accelerate", "datasets", "transformers", "huggingface_hub")
EXTRAS = {
    "peft": ("lora", "train_text2img.py --rank"),
    "bitsandbytes": ("8bit", "--use_8bit_adam"),
    "torch_fidelity": ("inception", "evaluate.py --features inception"),
    "lpips": ("lpips", "train_autoencoder.py --perceptual lpips"),
    "tensorboard": ("tensorboard", "--logger tensorboard"),
    "wandb": ("wandb", "--logger wandb"),
    "trackio": ("trackio", "--logger trackio"),
    "gradio": ("app", "snowmelt app"),
    "onnxscript": ("onnx", "publish.py --static_space"),
    "shtab": ("completion", "snowmelt completion"),
}
"""Module: the extra that brings it, and what needs it."""
GB = 1e9


def report() -> str:
    """Lines for people, and for a bug report; nothing of it names the host, the user or a token."""
    lines = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    lines += ["", f"device     {hardware(Accelerator())}, of {os.cpu_count()} cores"]
    precision = native_precision()
    lines.append(f"precision  {'bf16' if precision == 'bf16' else 'float32: no bf16 here'}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        lines.append(f"GPU memory {free / GB:.1f} of {total / GB:.1f} GB free")
    memory = psutil.virtual_memory()
    lines.append(f"memory     {memory.available / GB:.1f} of {memory.total / GB:.1f} GB free")
    lines.append(f"disk here  {shutil.disk_usage(Path.cwd()).free / GB:.1f} GB free")
    compiler = shutil.which("c++") or shutil.which("cl")
    lines.append(f"--compile  {'has a C++ compiler' if compiler else 'needs a C++ compiler, and there is none'}")
    login = "a token is there" if get_token() else "no token: hf auth login, before anything is published"
    lines.append(f"Hub        {'offline by HF_HUB_OFFLINE' if os.environ.get('HF_HUB_OFFLINE') else login}")
    missing = {module: extra for module, extra in EXTRAS.items() if importlib.util.find_spec(module) is None}
    lines += ["", "missing, for what needs it:" if missing else "all extras are installed"]
    lines += [f"  pip install 'snowmelt[{extra}]'  {purpose}" for extra, purpose in missing.values()]
    return "\n".join(lines)
