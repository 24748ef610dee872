"""Options of models that make images of given ones."""

from dataclasses import dataclass

from snowmelt.config import Config, option
from snowmelt.errors import UserError

PAIR_METRICS = ("psnr", "ssim")
"""Metrics of models of given images."""


@dataclass(kw_only=True)
class ConditionOptions(Config):
    """Image to image."""

    condition: str | None = option(
        None,
        "make images of others: lowres:4, gray, mask, noise:0.3 or edges, which are made of them, or column:NAME",
    )
    conditioning_dropout_prob: float = option(
        0.0, "fraction of these that is dropped, for image_guidance_scale; 0.1, say", minimum=0, below=1
    )
    max_noise_level: float | None = option(
        None, "add noise of any level up to this to them, a condition too (Ho et al. 2022); 0.5, say", above=0, below=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("conditioning_dropout_prob", "max_noise_level"):
            if getattr(self, name) and not self.condition:
                raise UserError(f"--{name}: is of a --condition; give that too")
