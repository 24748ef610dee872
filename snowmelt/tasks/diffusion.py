"""What trainings of diffusion models share: the loss."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.backbones import backbone_of, size_multiple
from pipelines.denoiser import CONCATENATED
from snowmelt.augmentation import Augmentation
from snowmelt.conditioning import Conditioning
from snowmelt.data.buckets import check_buckets, parts_of
from snowmelt.data.cache import ImageCache
from snowmelt.data.loader import Cache
from snowmelt.data.mixture import Prior
from snowmelt.image_conditions import ConditionImages
from snowmelt.objectives import Losses, Objective, StepContext
from snowmelt.options import TrainingConfig
from snowmelt.spaces import LatentSpace, PixelSpace
from snowmelt.stateful import Stateful, TensorState
from snowmelt.tasks.task import Networks


def encode_images(
    space: PixelSpace | LatentSpace, images: ImageCache, config: TrainingConfig, accelerator: Accelerator
) -> Cache:
    """What is trained on, of decoded images: themselves or their latents; a line says what it is like.

    Args:
        space: that the network works in.
        images: the decoded images.
        config: flips and precision.
        accelerator: prints in the main process.

    Raises:
        UserError: if the images can't be encoded.
    """
    data = space.encode(images, random_flip=config.random_flip, mixed_precision=config.mixed_precision)
    for part in parts_of(data):
        accelerator.print(space.describe(part))
    return data


class HeldOut(NamedTuple):
    """Images that a network in training is judged by."""

    images: ImageCache
    """Decoded."""
    data: Cache
    """As the network sees them."""
    conditioning: Conditioning | None = None
    """Where the task's own knows the images of training alone: that of these."""
    given: ConditionImages | None = None
    """What these are made of, by a model of given images."""


def hold_out(
    space: PixelSpace | LatentSpace,
    images: ImageCache,
    conditioning: Conditioning | None,
    config: TrainingConfig,
    given: ConditionImages | None = None,
) -> HeldOut:
    """Images to judge by, as the network sees them.

    Args:
        space: that the network works in.
        images: the decoded images.
        conditioning: of these images, where they need one of their own.
        config: flips and precision.
        given: what the images are made of, by a model of given images.

    Raises:
        UserError: if the images can't be encoded.
    """
    data = space.encode(images, random_flip=config.random_flip, mixed_precision=config.mixed_precision)
    return HeldOut(images, data, conditioning, given)


def check_shapes(network: Any, images: ImageCache, space: PixelSpace | LatentSpace) -> None:
    """Refuse buckets of images that the network doesn't take.

    Args:
        network: the network.
        images: the decoded images, in buckets or not.
        space: that the network works in.

    Raises:
        UserError: naming the first such bucket.
    """
    backbone = backbone_of(network)
    check_buckets(images, size_multiple(network) * space.vae_scale_factor, backbone is not None and backbone.square)


@dataclass(frozen=True)
class DiffusionTask:
    """A network that learns an objective on images or their latents.

    Attributes:
        objective: the loss, and the scheduler that fits it.
        space: cached values to x0.
        conditioning: batches to the network's conditions.
        data: the decoded images, or their latents.
        augmentation: of images, on which the network is conditioned by input channels of its own; None without such.
        given: images that the network is conditioned on, in the same way or by a ControlNet; None without such.
        prior: another data set, by whose losses the network is to stay as it is; None without such.
    """

    objective: Objective
    space: PixelSpace | LatentSpace
    conditioning: Conditioning
    data: Cache
    augmentation: Augmentation | None = field(default=None, kw_only=True)
    given: ConditionImages | None = field(default=None, kw_only=True)
    prior: Prior | None = field(default=None, kw_only=True)

    @property
    def component(self) -> str:
        """The name of the network that denoises."""
        return "unet"

    @property
    def fields(self) -> dict[str, Cache]:
        """`image`: the decoded images or their latents."""
        return {"image": self.data}

    @property
    def states(self) -> dict[str, Stateful]:
        """`timesteps`: the losses that these are drawn by, where they are."""
        return {} if self.objective.history is None else {"timesteps": TensorState(self.objective.history)}

    @property
    def labels(self) -> bool:
        """Whether the network has a label table."""
        return self.conditioning.num_class_embeds is not None

    def module(self, networks: Networks) -> nn.Module:
        """The network that denoises."""
        network: nn.Module = networks[self.component]
        return network

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> Losses:
        """The objective's loss on a batch, with conditions of which some are dropped.

        A batch that has `noise` is one of pairs, whose samples are x0 as they are. One that has `loss_weight` is of two
        data sets, whose mean losses are added (Ruiz et al. 2023, eq. 2).
        """
        noise = batch.get("noise")
        x0 = batch["image"] if noise is not None else self.space.from_cache(batch["image"], context.generator)
        conditions: dict[str, Any] = self.conditioning.embed(batch, context.generator)
        if self.augmentation is not None:
            x0, conditions[CONCATENATED] = self.augmentation(x0, context.generator)
        if self.given is not None:
            conditions[self.given.name] = self.given(batch, context.generator)
        losses = self.objective.loss(x0, conditions, context, noise)
        if (weight := batch.get("loss_weight")) is None:
            return losses
        return losses._replace(loss=weight * losses.loss)
