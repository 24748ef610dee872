"""The patch discriminator (Isola et al. 2017), which judges whether patches of an image are real."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from snowmelt.autoencoder.equivariance import enlarged
from snowmelt.autoencoder.options import AutoencoderConfig
from snowmelt.data.cache import ImageCache
from snowmelt.errors import UserError
from snowmelt.values import to_resolution

SMALLEST = 8


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Convolutions of 4 x 4: `layers` that halve the side, one that doesn't, and one to a logit per patch.

    Images that are too small for that are enlarged: to 6 pixels for one layer, 24 for three.
    Batch statistics are those of the batch at hand, always: nothing is kept of them.

    Args:
        channels: of the images.
        width: channels of the first layer; each further one doubles them, to at most 8 times as many.
        layers: 3 give patches of 70 x 70 pixels, as in the paper.
    """

    @register_to_config
    def __init__(self, channels: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        stack: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            before, after = (width * min(2**n, 8) for n in (layer - 1, layer))
            stack += [
                nn.Conv2d(before, after, 4, stride=2 if layer < layers else 1, padding=1, bias=False),
                nn.BatchNorm2d(after, track_running_stats=False),
                nn.LeakyReLU(0.2),
            ]
        stack += [nn.Conv2d(width * min(2**layers, 8), 1, 4, padding=1)]
        self.stack = nn.Sequential(*stack)
        for module in self.stack:  # Radford et al. 2016, section 3
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to logits (B, 1, h, w), positive for real ones."""
        logits: Tensor = self.stack(enlarged(images, 3 * 2**self.config.layers))
        return logits


def make_discriminator(config: AutoencoderConfig, data: ImageCache) -> PatchDiscriminator | None:
    """One that halves the side three times, or as often as such images allow; none without `disc_weight`.

    Raises:
        UserError: for images smaller than 8 pixels, half precision whose range is too small for the adaptive weight,
            or compilation, which allows one backward pass only.
    """
    if not config.disc_weight:
        return None
    side = min(data.size)
    for refused, what in (
        (side < SMALLEST, f"--resolution {to_resolution(*data.size)}: too small for the discriminator"),
        (config.mixed_precision == "fp16", "--mixed_precision fp16: the discriminator needs bf16 or no"),
        (config.compile, "--compile: can't be had with the discriminator"),
    ):
        if refused:
            raise UserError(f"{what}; change that, or pass --disc_weight 0")
    torch.manual_seed(config.seed)
    return PatchDiscriminator(data.channels, config.disc_width, min(3, (side // 4).bit_length() - 1))
