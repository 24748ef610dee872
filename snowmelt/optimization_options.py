"""Options of the optimizer and its steps. Nothing here imports torch, so that `--help` is immediate."""

from dataclasses import dataclass

from snowmelt.config import Config, option
from snowmelt.errors import UserError


@dataclass(kw_only=True)
class OptimizationOptions(Config):
    """Optimization."""

    train_batch_size: int = option(16, "images per process and forward pass", minimum=1)
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step", minimum=1, resumable=True)
    num_epochs: int = option(100, "passes over the data", minimum=1, resumable=True, aliases=("num_train_epochs",))
    max_train_steps: int | None = option(None, "optimizer steps; wins over num_epochs", minimum=1, resumable=True)
    max_train_minutes: float | None = option(
        None, "end after so many minutes, resumes included, and the learning rate with them", above=0, resumable=True
    )
    learning_rate: float = option(1e-4, "peak learning rate", minimum=0)
    scale_lr: bool = option(False, "multiply it by the images of an optimizer step, over all processes")
    lr_scheduler: str = option(
        "cosine",
        "shape of the learning rate over optimizer steps",
        choices=(
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
            "piecewise_constant",
        ),
    )
    lr_step_rules: str | None = option(
        None, "of piecewise_constant, as 1:500,0.1:900,0.01: factors of learning_rate, each up to a step"
    )
    lr_warmup_steps: int = option(500, "optimizer steps of linear warm-up", minimum=0)
    optimizer: str = option(
        "adamw",
        "muon is for matrices and kernels, with adamw for all else (Jordan et al. 2024)",
        choices=("adamw", "adam", "sgd", "muon"),
    )
    adam_beta1: float = option(0.95, "beta1 of AdamW and Adam", minimum=0, below=1)
    adam_beta2: float = option(0.999, "beta2 of AdamW and Adam", minimum=0, below=1)
    adam_weight_decay: float = option(
        1e-6, "weight decay; with adam and sgd a part of the gradient", minimum=0, maximum=1
    )
    adam_epsilon: float = option(1e-8, "epsilon of AdamW and Adam", above=0, maximum=1)
    sgd_momentum: float = option(0.9, "momentum of sgd", minimum=0, below=1)
    use_8bit_adam: bool = option(False, "AdamW of bitsandbytes, whose moments take a quarter of the memory")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", above=0)
    max_grad_norm_ratio: float | None = option(
        None, "clip spikes, too: gradients to so many times the median norm of the last 100 steps", above=1
    )
    on_nonfinite: str = option(
        "stop",
        "what to do about a gradient that isn't finite: stop; skip the step, up to 10 in a row; or then rewind to the "
        "last checkpoint and go on in another order of data, up to 3 times",
        choices=("stop", "skip", "rewind"),
        resumable=True,
    )
    mixed_precision: str | None = option(
        None,
        "precision of the network's passes; bf16 where the hardware has it",
        choices=("no", "fp16", "bf16"),
    )
    allow_tf32: bool = option(True, "matrix products in TF32 on GPUs that have it, where they are in float32")
    compile: bool = option(
        False,
        "torch.compile the network: a minute or more of compiling, then faster steps on GPUs; CPUs gain little",
    )
    seed: int = option(0, "all randomness follows from it", minimum=0, maximum=2**63 - 1)

    def images_per_step(self, num_processes: int) -> int:
        """Images in an optimizer step, over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * num_processes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_8bit_adam and self.optimizer != "adamw":
            raise UserError(f"--use_8bit_adam: is AdamW; drop it, or --optimizer {self.optimizer}")
