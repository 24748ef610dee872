"""Perceptual distances: errors in the features of a network, which see what pixels don't (Zhang et al. 2018)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines import IMAGE_CHANNELS
from snowmelt.autoencoder.equivariance import enlarged
from snowmelt.autoencoder.losses import Perceptual
from snowmelt.errors import UserError
from snowmelt.evaluation.classifier import ClassifierFeatures, ConvNet
from snowmelt.evaluation.features import as_rgb
from snowmelt.evaluation.real import RealImages

VGG_SIDE = 16
"""What the five stages of VGG-16 need at least."""
OTHERS = "take --perceptual classifier, for data with labels, or none"


class FeatureDistance(nn.Module):
    """Squared errors of feature vectors of unit length, averaged over places and layers.

    (Zhang et al. 2018, eq. 1, with equal weights of all channels.)

    Args:
        net: its convolutional layers are compared after each `ReLU`.
    """

    def __init__(self, net: ConvNet) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (B,) between two batches of images (B, C, H, W) in [-1, 1]."""
        pairs = zip(self._features(images), self._features(others), strict=True)
        return torch.stack([(a - b).square().sum(1).flatten(1).mean(1) for a, b in pairs]).mean(0)

    def _features(self, x: Tensor) -> list[Tensor]:
        found, x = [], self.net.reduced(x)
        for layer in self.net.hidden:
            if isinstance(layer, nn.Flatten):  # what follows is for images of one size
                break
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(F.normalize(x, dim=1, eps=1e-10))
        return found


def _lpips(images: RealImages, device: torch.device) -> Perceptual:
    """LPIPS with VGG-16, of images laid on white (Zhang et al. 2018)."""
    if images.cache.channels not in IMAGE_CHANNELS:
        raise UserError(
            f"--perceptual lpips: takes gray, RGB and RGBA; these images have {images.cache.channels} channels"
        )
    try:
        import lpips
    except ImportError as error:
        raise UserError(
            f"--perceptual lpips: {error}; pip install 'snowmelt[lpips]', which brings torchvision and so needs a "
            f"torch that torchvision was built for; {OTHERS}"
        ) from error
    try:
        net = lpips.LPIPS(net="vgg", verbose=False)
    except OSError as error:
        raise UserError(f"--perceptual lpips: can't fetch its weights ({error}); {OTHERS}") from error
    net.eval().requires_grad_(False).to(device)

    def distance(images: Tensor, others: Tensor) -> Tensor:
        pair = (2 * as_rgb(enlarged(x, VGG_SIDE) / 2 + 0.5) - 1 for x in (images, others))
        return net(*pair).flatten()  # (B, 1, 1, 1) -> (B,)

    return distance


def _classifier(images: RealImages, device: torch.device) -> Perceptual:
    """A classifier trained on the data's labels."""
    if images.labels is None or len(images.cache.class_names or []) < 2:
        raise UserError(
            "--perceptual classifier: needs classes to tell apart, and the data has none; name their column with "
            "--label_column, or take --perceptual none"
        )
    return FeatureDistance(ClassifierFeatures(images, None, device).net)


PERCEPTUAL: dict[str, Callable[[RealImages, torch.device], Perceptual] | None] = {
    "none": None,
    "classifier": _classifier,
    "lpips": _lpips,
}


def make_perceptual(name: str, images: RealImages, device: torch.device) -> Perceptual | None:
    """The distance that `--perceptual` names; None for "none".

    Args:
        name: a key of `PERCEPTUAL`.
        images: the training data, whose labels the classifier learns.
        device: where it computes.

    Raises:
        UserError: if it can't be had, or not for this data.
    """
    make = PERCEPTUAL[name]
    return None if make is None else make(images, device)
