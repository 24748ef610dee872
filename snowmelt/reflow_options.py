"""Options of reflow, the second stage of rectified flows. Nothing here imports torch, so that `--help` is immediate."""

from dataclasses import dataclass

from snowmelt.config import Config, option
from snowmelt.errors import UserError


@dataclass(kw_only=True)
class ReflowOptions(Config):
    """Reflow."""

    reflow_from: str | None = option(
        None,
        "flow model to straighten: train on pairs of noise and its samples, from its weights on (Liu et al. 2023)",
        path=True,
    )
    reflow_pairs: int | None = option(
        None, "pairs, which are made once; as many as training images by default", minimum=1, maximum=10**9
    )
    reflow_steps: int = option(100, "Euler steps of the model that a sample takes", minimum=1, maximum=100_000)
    reflow_guidance_scale: float = option(
        1.0, "guidance of the samples of a class; 1 for none", minimum=0, maximum=1000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = self.fields()
        for name in ("reflow_pairs", "reflow_steps", "reflow_guidance_scale"):
            if self.reflow_from is None and getattr(self, name) != fields[name].default:
                raise UserError(f"--{name}: needs --reflow_from")
        # They change the noise or the images of pairs, or judge by images, which belong to no noise.
        unfit = ("coupling", "noise_offset", "dream_training", "random_flip", "validation_split", "validation_share")
        for name in unfit if self.reflow_from else ():
            if name in fields and getattr(self, name) != fields[name].default:
                raise UserError(f"--{name}: is not for the pairs of --reflow_from; leave it out")
