"""Images straight from a UNet2DModel."""

from pipelines.unet import UNetPipeline


class PixelDiffusionPipeline(UNetPipeline):
    """Unconditional or class-conditional generation in pixel space: what the network makes are the images."""

    STOCK = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}
