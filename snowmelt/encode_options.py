"""What `encode.py` takes. Nothing here imports torch, so that `--help` is immediate."""

from dataclasses import dataclass

from snowmelt.config import option
from snowmelt.errors import UserError
from snowmelt.options import DataOptions, LatentOptions


@dataclass(kw_only=True)
class EncodeConfig(LatentOptions, DataOptions):
    """Output."""

    output_dir: str = option("encoded", "folder of the latents")
    rows_per_file: int = option(10_000, "images in a file; processes share the files", minimum=1)
    mixed_precision: str = option(
        "fp16", "no: keep latents in float32; else they are kept in float16", choices=("no", "fp16", "bf16")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autoencoder is None:
            raise UserError("no --autoencoder: name the one to encode with")
        if self.aspect_ratio_buckets:
            raise UserError("--aspect_ratio_buckets: isn't for encode.py, whose latents are of one shape; leave it out")
        if self.streaming and not self.center_crop:
            raise UserError("--streaming: images of any shape may come, and each is encoded once; add --center_crop")
