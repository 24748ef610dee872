"""What `encode.py` takes. Nothing here imports torch, so that `--help` is immediate."""

from dataclasses import dataclass

from snowmelt.config import Config, option
from snowmelt.errors import UserError
from snowmelt.options import DataOptions, LatentOptions
from snowmelt.text.options import CaptionColumnOptions, PipelineOptions


@dataclass(kw_only=True)
class TextEncoderOptions(Config):
    """Captions."""

    text_encoder: str | None = option(
        None,
        "encode captions too, with this pretrained text encoder, CLIP or T5: its folder, that of a pipeline, or a Hub "
        "name",
        path=True,
    )


@dataclass(kw_only=True)
class OutputOptions(Config):
    """Output."""

    output_dir: str = option("encoded", "folder of the latents")
    rows_per_file: int = option(10_000, "images in a file; processes share the files", minimum=1)
    mixed_precision: str = option(
        "fp16", "no: keep latents in float32; else they are kept in float16", choices=("no", "fp16", "bf16")
    )


@dataclass(kw_only=True)
class EncodeConfig(
    OutputOptions, PipelineOptions, LatentOptions, CaptionColumnOptions, TextEncoderOptions, DataOptions
):
    """Encode the images of a data set, and maybe their captions."""

    pretrained_model_name_or_path: str | None = option(
        None,
        "pipeline that is to be fine-tuned: its autoencoder and text encoder are taken, and captions are encoded as it "
        "sees them",
        path=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        source = self.pretrained_model_name_or_path
        if source is None and self.autoencoder is None:
            raise UserError("no --autoencoder: name the one to encode with")
        for name in ("autoencoder", "text_encoder") if source else ("revision", "variant"):
            if getattr(self, name):
                why = f"that of --pretrained_model_name_or_path {source} is taken; leave it out"
                raise UserError(f"--{name}: {why if source else 'needs --pretrained_model_name_or_path'}")
        for name in ("caption_column", "skip_empty_captions"):
            if getattr(self, name) and not self.encodes_captions:
                raise UserError(f"--{name}: captions are encoded by a --text_encoder; name it, or leave this out")
        if self.aspect_ratio_buckets:
            raise UserError("--aspect_ratio_buckets: isn't for encode.py, whose latents are of one shape; leave it out")
        if self.streaming and not self.center_crop:
            raise UserError("--streaming: images of any shape may come, and each is encoded once; add --center_crop")
        if self.streaming and self.skip_empty_captions:
            raise UserError("--streaming: can't leave out rows, as --skip_empty_captions asks; drop one of the two")

    @property
    def encodes_captions(self) -> bool:
        """Whether captions are encoded too."""
        return bool(self.text_encoder or self.pretrained_model_name_or_path)
