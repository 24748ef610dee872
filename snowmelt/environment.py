"""Processes, device and precision: the `Accelerator` that the options and the launch ask for."""

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration

from snowmelt.data.loader import Cache
from snowmelt.errors import UserError
from snowmelt.options import TrainingConfig
from snowmelt.sharding import FLAG, find_sharding
from snowmelt.tracking import check_logger

PRECISIONS = ("no", "fp16", "bf16")
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
    "ACCELERATE_USE_TPU": "TPUs",
}
"""Variables that `accelerate launch` sets, and what they ask for."""
TRUE = ("1", "true", "yes")
COPIES = 3
"""Of an image in memory at once, at least: the data, the noise, and what is made of both."""


def native_precision() -> str:
    """bf16 where the hardware computes in it, else "no"."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


@dataclass(frozen=True)
class Launch:
    """What `accelerate launch` was asked for, on its command line, in its saved configuration or by OMP_NUM_THREADS;
    None: nothing.
    """

    num_processes: int | None = None
    mixed_precision: str | None = None
    num_cpu_threads_per_process: int | None = None


def find_launch() -> Launch:
    """How this process was launched, read off the command line of the process that started it.

    The launcher hands on its defaults in the same variables as what it was asked for, so these can't tell.
    """
    try:
        launcher = psutil.Process().parent()
        words, exported = launcher.cmdline(), launcher.environ().get("OMP_NUM_THREADS", "")
    except (psutil.Error, AttributeError):
        return Launch()
    starts = [i for i, word in enumerate(words, 1) if word in ("launch", "accelerate.commands.launch")]
    if not starts or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return Launch()
    given = launch_command_parser().parse_known_args(words[starts[0] :])[0]
    file = given.config_file or (default_config_file if Path(default_config_file).is_file() else None)
    saved = None if file is None else load_config_from_file(file)
    precision = given.mixed_precision or getattr(saved, "mixed_precision", None)
    return Launch(
        given.num_processes or getattr(saved, "num_processes", None),
        None if precision is None else str(precision),
        given.num_cpu_threads_per_process or (int(exported) if exported.isdecimal() else None),
    )


def use_all_cores(launch: Launch) -> None:
    """Undo the single thread that `accelerate launch` gives a process on a CPU when nothing else was asked for."""
    launched = "ACCELERATE_USE_CPU" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and launch.num_cpu_threads_per_process is None and not torch.accelerator.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def describe(accelerator: Accelerator, config: TrainingConfig, launch: Launch) -> list[str]:
    """Lines on what a run begins with: processes, threads, images of a step; and what was asked for in vain.

    Args:
        accelerator: processes, device and precision.
        config: batch size and accumulation, and options that have no effect.
        launch: what `accelerate launch` was asked for.
    """
    processes, threads = accelerator.num_processes, torch.get_num_threads()
    images = config.train_batch_size * config.gradient_accumulation_steps * processes
    place = (
        accelerator.device.type
        if accelerator.device.type != "cpu"
        else f"{threads} CPU thread{'s' * (threads > 1)} each"
    )
    lines = [
        f"{processes} process{'es' * (processes > 1)}, {place}, mixed precision {accelerator.mixed_precision}; "
        f"{images} images per optimizer step"
    ]
    if launch.num_processes is not None and launch.num_processes > processes and accelerator.device.type == "cpu":
        lines.append(
            f"warning: {launch.num_processes} processes were asked for, but `accelerate launch` starts one on CPUs; "
            f"`torchrun --nproc_per_node {launch.num_processes} SCRIPT ...` starts them"
        )
    return lines + config.ignored()


def hardware(accelerator: Accelerator) -> str:
    """What the run computes on, such as "2 x NVIDIA H200" or "2 cores of AMD EPYC"; never the name of the host."""
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} x {torch.cuda.get_device_name()}"
    threads = accelerator.num_processes * torch.get_num_threads()
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    return f"{threads} thread{'s' * (threads > 1)} of {models[0] if models else platform.machine()}, no GPU"


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Start this process's part of the run, and settle `config.mixed_precision`.

    Without the flag it is that of the launch, where one was given or is in Accelerate's saved configuration, and else
    what the hardware computes in.

    Raises:
        UserError: for a precision or a kind of parallelism that can't be had here, or a tracker that isn't installed.
    """
    check_logger(config.logger)
    _check_parallelism()
    plugin = find_sharding(config)
    os.environ.pop(FLAG, None)  # the trainer shards; Accelerate would, too
    launch = find_launch()
    config.mixed_precision = config.mixed_precision or launch.mixed_precision or native_precision()
    if config.mixed_precision not in PRECISIONS:
        raise UserError(
            f"mixed_precision {config.mixed_precision} of the launch: not one of {', '.join(PRECISIONS)}; change it in "
            "`accelerate config`, or give --mixed_precision"
        )
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16 needs a GPU; take bf16 or no")
    torch.set_float32_matmul_precision("high" if config.allow_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.allow_tf32
    use_all_cores(launch)
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
    accelerator.state.fsdp_plugin = plugin if accelerator.num_processes > 1 else None
    for line in describe(accelerator, config, launch):
        accelerator.print(line)
    return accelerator


def check_memory(data: Cache, config: TrainingConfig, device: torch.device) -> None:
    """Refuse batches of training or sampling whose data alone don't fit into memory.

    Args:
        data: what is trained on, images or latents.
        config: the batch sizes.
        device: that computes.

    Raises:
        UserError: as `check_fits`.
    """
    numbers = data.gather(np.arange(1), None).size
    for flag in ("train_batch_size", "eval_batch_size"):
        check_fits(flag, getattr(config, flag), numbers, device)


def check_fits(flag: str, count: int, numbers: int, device: torch.device) -> None:
    """Refuse a batch whose data alone don't fit into memory; a network's activations take many times as much.

    Args:
        flag: what its size was given by.
        count: images in it.
        numbers: of an image.
        device: that computes.

    Raises:
        UserError: saying what fits.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    needed = 4 * COPIES * numbers  # bytes of an image
    if count * needed > free:
        raise UserError(
            f"--{flag} {count}: the images alone take {count * needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            f"take at most {free // needed}, and far fewer for the network to fit beside them"
        )


def _check_parallelism() -> None:
    """Refuse what checkpoints here aren't for, before Accelerate makes it ready.

    Raises:
        UserError: if the launch asks for DeepSpeed or another kind of sharding.
    """
    asked = [name for variable, name in UNSUPPORTED.items() if os.environ.get(variable, "false").lower() in TRUE]
    if asked:
        raise UserError(
            f"launched for {asked[0]}; training here is for one process, data parallelism (MULTI_GPU, MULTI_CPU) or, "
            "where the model doesn't fit a device, FSDP with fsdp_version: 2; choose one of them in `accelerate config`"
        )
