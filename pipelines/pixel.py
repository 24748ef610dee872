"""Images straight from a network."""

from pipelines.unet import TransformerPipeline, UNetPipeline


class PixelDiffusionPipeline(UNetPipeline):
    """Unconditional or class-conditional generation in pixel space: what the network makes are the images."""

    STOCK = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}


class PixelTransformerPipeline(TransformerPipeline):
    """As `PixelDiffusionPipeline`, with a transformer."""
