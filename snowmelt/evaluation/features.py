"""Feature extractors: networks in whose eyes sets of images are compared."""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel
from transformers.image_processing_utils import BaseImageProcessor

from pipelines import IMAGE_CHANNELS
from snowmelt.errors import UserError, one_line
from snowmelt.evaluation.classifier import ClassifierFeatures
from snowmelt.evaluation.real import RealImages

OTHERS = "without a network there are --features classifier, for data with labels, and a model's local folder"


class FeatureExtractor(Protocol):
    """What every extractor has."""

    @property
    def name(self) -> str:
        """Name of the network and its weights, as reports give it."""

    @property
    def fingerprint(self) -> str:
        """A hash of its weights: equal ones give equal features."""

    @property
    def accuracy(self) -> float | None:
        """Fraction of held-out images that it recognises, where its classes are those of the data set."""

    @property
    def head(self) -> Callable[[Tensor], Tensor] | None:
        """Features (B, D) to the logits (B, K) of its classes, where it has any."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), float32 in [0, 1], to features (B, D), float32 on the CPU."""


class HubFeatures:
    """A vision model of transformers: CLIP's image embedding, else the pooled output or the class token.

    Args:
        name: its repository on the Hub, or a local folder.
        channels: of the images.
        device: where it computes.
        flag: the option that names it.

    Raises:
        UserError: if it can't be loaded, lacks weights, or the images are of no kind that it takes.
    """

    accuracy = None
    head = None

    def __init__(self, name: str, channels: int, device: torch.device, flag: str = "--features") -> None:
        others = OTHERS if flag == "--features" else "give a model's local folder"
        _check_channels(f"{flag} {name}", channels)
        try:
            settings = BaseImageProcessor.get_image_processor_dict(name)[0]
            self.net, report = AutoModel.from_pretrained(name, output_loading_info=True)
            self._mean, self._std = (
                torch.tensor(settings[key]).view(3, 1, 1).to(device) for key in ("image_mean", "image_std")
            )
            self._size = _side(settings)
        except Exception as error:  # whatever transformers raises at files that anybody may have written
            reason = one_line(error)[:500]
            raise UserError(f"{flag} {name}: transformers can't load such a model ({reason}); {others}") from error
        missing = set(report["missing_keys"])
        # Classifiers are often saved without the pooling layer, which would be made anew at random.
        self._pooled = not missing
        if any("pooler" not in key for key in missing):
            raise UserError(f"{flag} {name}: {len(missing)} weights are missing from it, such as {min(missing)}")
        self._device = device
        self.net.to(device).eval()
        self.fingerprint = digest(self.net, missing)
        short = Path(name).name if Path(name).is_dir() else name  # reports are published, and paths are not
        self.name = f"{short} ({type(self.net).__name__}, weights {self.fingerprint[:8]})"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = (resized(as_rgb(images.to(self._device)), self._size) - self._mean) / self._std
        if hasattr(self.net, "get_image_features"):
            output = self.net.get_image_features(pixel_values=pixels)
            return getattr(output, "pooler_output", output).float().cpu()
        output = self.net(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None) if self._pooled else None
        return (output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)).float().cpu()


class InceptionFeatures:
    """InceptionV3 as in the papers' FID: the 2048 pooled features of TensorFlow's weights of 2015, by torch-fidelity.

    Images are resized as clean-fid does it, then rounded to 8 bits, which torch-fidelity's network takes.

    Args:
        channels: of the images.
        device: where it computes.

    Raises:
        UserError: if torch-fidelity isn't installed, its weights can't be reached, or it takes no such
            images.
    """

    accuracy = None

    def __init__(self, channels: int, device: torch.device) -> None:
        _check_channels("--features inception", channels)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                f"--features inception: {error}; pip install 'snowmelt[inception]', which brings torchvision and so "
                f"needs a torch that torchvision was built for; {OTHERS}"
            ) from error
        try:
            self._net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
        except OSError as error:
            raise UserError(f"--features inception: can't fetch its weights ({error}); {OTHERS}") from error
        self._device = device
        self.fingerprint = digest(self._net)
        self.name = f"InceptionV3 (torch-fidelity, weights {self.fingerprint[:8]})"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = resized(as_rgb(images.to(self._device)), self._net.INPUT_IMAGE_SIZE)
        return self._net((pixels * 255).round().byte())[0].float().cpu()

    @torch.no_grad()
    def head(self, features: Tensor) -> Tensor:
        """Features (B, 2048) to logits (B, 1008) of ImageNet's classes, without the bias, as the papers have it."""
        return (features.to(self._device) @ self._net.fc.weight.T).cpu()


class NoFeatures:
    """In place of others where no metric compares features: none of any image."""

    accuracy = None
    head = None
    name = fingerprint = "none"

    def __call__(self, images: Tensor) -> Tensor:
        return torch.empty(len(images), 0)


def make_features(name: str, train: RealImages, held_out: RealImages | None, device: torch.device) -> FeatureExtractor:
    """The extractor that `--features` names: classifier, inception, or a vision model of transformers.

    Args:
        name: what `--features` says.
        train: the images of the data set, on which a classifier is trained.
        held_out: others of it, which tell how good that classifier is.
        device: where it computes.

    Raises:
        UserError: if it can't be had, or not for this data.
    """
    channels = train.cache.channels
    made: dict[str, Callable[[], FeatureExtractor]] = {
        "classifier": lambda: ClassifierFeatures(train, held_out, device),
        "inception": lambda: InceptionFeatures(channels, device),
    }
    return made[name]() if name in made else HubFeatures(name, channels, device)


def resized(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) in [0, 1] as (B, C, side, side), as clean-fid does it (Parmar et al. 2022).

    That is Pillow's bicubic filter, which widens with the reduction so that nothing aliases, on float channels.
    """
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def as_rgb(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] with 3 channels: gray repeated, transparent ones laid on white."""
    channels = images.shape[1]
    if channels == 4:
        return images[:, :3] * images[:, 3:] + 1 - images[:, 3:]
    return images.expand(-1, 3, -1, -1) if channels == 1 else images


def digest(net: nn.Module, without: Collection[str] = ()) -> str:
    """A hash of a network's weights, but for those named."""
    sha = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        if name not in without:
            sha.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:32]


def _side(settings: dict[str, Any]) -> int:
    """Side of the square that an image processor makes: that of its crop, if it crops."""
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size or 224)


def _check_channels(option: str, channels: int) -> None:
    if channels not in IMAGE_CHANNELS:
        raise UserError(
            f"{option}: takes gray, RGB and RGBA; these images have {channels} channels"
            + ("; take classifier" if option.startswith("--features") else "")
        )
