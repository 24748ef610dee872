"""Processes, device and precision: the `Accelerator` that the options and the launch ask for."""

import os
import platform
import re
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration

from snowmelt.errors import UserError
from snowmelt.options import TrainingConfig
from snowmelt.tracking import check_logger

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def native_precision() -> str:
    """bf16 where the hardware computes in it, else "no"."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


def use_all_cores() -> None:
    """Undo the single thread that `accelerate launch` gives a process on a CPU when nothing else was asked for."""
    launched = "ACCELERATE_USE_CPU" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if launched and threads > 1 and not torch.accelerator.is_available():
        print(f"{threads} threads, not accelerate launch's default of 1; --num_cpu_threads_per_process sets others")
        torch.set_num_threads(threads)


def hardware(accelerator: Accelerator) -> str:
    """What the run computes on, such as "2 x NVIDIA H200" or "2 cores of AMD EPYC"; never the name of the host."""
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} x {torch.cuda.get_device_name()}"
    threads = accelerator.num_processes * torch.get_num_threads()
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    return f"{threads} thread{'s' * (threads > 1)} of {models[0] if models else platform.machine()}, no GPU"


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Start this process's part of the run, and settle `config.mixed_precision`.

    Without the flag, a launch that asks for reduced precision gets it, and any other what the hardware computes in.

    Raises:
        UserError: for a precision or a kind of parallelism that can't be had here, or a tracker that isn't installed.
    """
    check_logger(config.logger)
    if config.mixed_precision is None:
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        config.mixed_precision = launched if launched in ("fp16", "bf16") else native_precision()
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16 needs a GPU; take bf16 or no")
    torch.set_float32_matmul_precision("high" if config.allow_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.allow_tf32
    use_all_cores()
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes on CPUs wouldn't know of each other
        mixed_precision=config.mixed_precision,
        # The loop feeds itself, so there is no end of a data loader for accumulation to align with.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=config.logger,
        project_config=ProjectConfiguration(
            project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / config.logging_dir)
        ),
    )
    if accelerator.distributed_type not in SUPPORTED:
        raise UserError(
            f"launched for {accelerator.distributed_type.value}; checkpoints here are for one process or data "
            "parallelism (MULTI_GPU, MULTI_CPU): choose that in `accelerate config`"
        )
    return accelerator
