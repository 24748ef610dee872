"""Images that a network is conditioned on in training: made of the clean ones, or read beside them."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipelines.denoiser import CONCATENATED
from pipelines.image_conditions import LUMA, Column, ImageCondition, make_condition, network_condition
from snowmelt.data.agreement import Like
from snowmelt.data.cache import ImageCache
from snowmelt.data.columns import image_column
from snowmelt.data.images import header
from snowmelt.data.loader import Cache
from snowmelt.data.places import Source
from snowmelt.data.rows import readable
from snowmelt.data.sources import images_of, open_dataset
from snowmelt.data.splits import Split
from snowmelt.errors import UserError
from snowmelt.options import DataOptions, UnconditionalConfig
from snowmelt.spaces import LatentSpace, PixelSpace
from snowmelt.text.options import TextToImageConfig
from snowmelt.values import to_size

Config = UnconditionalConfig | TextToImageConfig

CLEAN, GIVEN = "pixels", "condition"
"""Fields of a batch: the clean images of what are latents there, and those of the data set's column."""


@dataclass(frozen=True)
class ConditionImages:
    """What of a batch joins the input of the network.

    Attributes:
        name: of the condition, as networks and `Predictor` take it.
        condition: what images are made of.
        space: that the network works in.
        channels: of what joins the input.
        given: of the data set's column, where they are read.
        dropout: fraction of them that is replaced by zeros, for guidance.
        max_noise_level: of noise that is added to them; None for a network that doesn't know its level.
    """

    name: ClassVar[str] = CONCATENATED
    condition: ImageCondition
    space: PixelSpace | LatentSpace
    channels: int
    given: ImageCache | None = None
    dropout: float = 0.0
    max_noise_level: float | None = None

    def fields(self, images: ImageCache) -> dict[str, Cache]:
        """What a batch must have besides the data that are denoised."""
        if self.given is not None:
            return {GIVEN: self.given}
        return {CLEAN: images} if isinstance(self.space, LatentSpace) else {}

    def inputs(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Images in [-1, 1] that the network is to make those of a batch of, (B, k, h, w)."""
        if self.given is not None:
            return PixelSpace(self.given.value_range).from_cache(batch[GIVEN])
        if isinstance(self.space, LatentSpace):
            return self.condition.degrade(self.space.pixels.from_cache(batch[CLEAN]), generator)
        return self.condition.degrade(self.space.from_cache(batch["image"]), generator)

    def pairs(self, images: ImageCache, rows: np.ndarray, seed: int) -> tuple[dict[str, Any], Tensor]:
        """What a pipeline's call takes of some images, and these, (n, C, H, W) in [0, 1].

        Args:
            images: the decoded images.
            rows: which of them, (n,).
            seed: of what is random in their conditions, each of which depends on its row alone.
        """
        fields = {CLEAN: images, "image": images} | ({} if self.given is None else {GIVEN: self.given})
        pixels = self.space.pixels if isinstance(self.space, LatentSpace) else self.space
        inputs, originals = [], []
        for row in rows.tolist():
            one = np.array([row])
            batch = {name: torch.from_numpy(field.gather(one, None)) for name, field in fields.items()}
            own = int(np.random.SeedSequence((seed, row)).generate_state(1)[0])
            inputs.append(self.inputs(batch, torch.Generator().manual_seed(own)))
            originals.append(pixels.from_cache(batch[CLEAN]) / 2 + 0.5)
        return call_arguments(self.condition, torch.cat(inputs)), torch.cat(originals)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """What joins the network's input, (B, K, h, w), some of it dropped."""
        inputs = self.inputs(batch, generator)
        device, count = inputs.device, len(inputs)

        def noise(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        level = None
        if self.max_noise_level is not None:
            level = self.max_noise_level * torch.rand(count, generator=generator, device=device)
        joined = network_condition(self.condition, inputs, self._encode, level, None if level is None else noise)
        if not self.dropout:
            return joined
        dropped = torch.rand(count, generator=generator, device=device) < self.dropout
        return joined.masked_fill(dropped.view(-1, 1, 1, 1), 0)

    def _encode(self, images: Tensor) -> Tensor:
        """The network's data of images in [-1, 1]: themselves, or their latents."""
        if isinstance(self.space, PixelSpace):
            return images
        space = self.space
        encoded = space.vae.encode(images.expand(-1, space.vae.config["in_channels"], -1, -1), return_dict=False)[0]
        latents = encoded if isinstance(encoded, Tensor) else encoded.mode()
        return (latents.float() - space.shift) * space.scale

    def of_held_out(self, config: Config, images: ImageCache) -> "ConditionImages":
        """The same of held-out images, of which none is dropped.

        Raises:
            UserError: as `load_column`.
        """
        own = replace(self, dropout=0.0)
        if self.given is None or not isinstance(self.condition, Column):
            return own
        split = Split(str(config.validation_split), "validation_split")  # a share is refused
        like = Like(self.given.channels, self.given.dtype, self.given.value_range, f"column {self.condition.column}")
        latent = isinstance(self.space, LatentSpace)
        return replace(own, given=load_column(config, self.condition, images, latent, split, like))

    def settings(self) -> dict[str, Any]:
        """Of the pipeline that samples the network."""
        found: dict[str, Any] = {"condition": self.condition.spec, "condition_channels": self.channels}
        if self.max_noise_level is not None:
            found["max_noise_level"] = self.max_noise_level
        if self.given is not None and self.given.dtype.kind == "f":
            found["condition_range"] = self.given.value_range
        return found | ({"image_guidance": True} if self.dropout else {})


def call_arguments(condition: ImageCondition, inputs: Tensor) -> dict[str, Any]:
    """What a pipeline's call takes for inputs (B, k, h, w) in [-1, 1], as `degrade` makes them."""
    images, masks = inputs.tensor_split([inputs.shape[1] - condition.mask_channels], 1)
    given = {"image": (images / 2 + 0.5).clamp(0, 1)}
    return given | ({"mask_image": masks > 0} if condition.mask_channels else {})


def drawn_inputs(given: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
    """Images that are given to a pipeline as (B, C, H, W) in [0, 1] of a shape (C, H, W), gray where a mask is."""
    channels, *size = shape
    images = given["image"]
    if "mask_image" in given:
        images = torch.where(given["mask_image"], torch.full_like(images, 0.5), images)
    images = torch.nn.functional.interpolate(images, size, mode="nearest")
    return images if images.shape[1] == channels else images.mean(1, keepdim=True).expand(-1, channels, -1, -1)


def example_arguments(spec: str | None) -> str:
    """What a line of Python gives a pipeline with this condition, with a comma after it; nothing for None."""
    mask = 'mask_image=Image.open("mask.png"), ' if spec == "mask" else ""
    return f'image=Image.open("input.png"), {mask}' if spec else ""


def read_condition(config: Config) -> ImageCondition | None:
    """The condition that the options name, before any data are read.

    Raises:
        UserError: if there is no such, or other options aren't for it.
    """
    if config.condition is None:
        return None
    unfit = ["augment_p", "self_condition", "reflow_from", "aspect_ratio_buckets"]
    if config.condition.startswith("column:"):
        unfit += ["max_train_samples", "skip_empty_captions"]  # which leave out rows that the column has
    for name in unfit:
        if getattr(config, name, None):
            raise UserError(f"--condition: isn't for --{name}; drop one of the two")
    if config.backbone != "unet":
        raise UserError(f"--backbone {config.backbone}: takes no --condition; take unet")
    if config.eval_metrics:
        raise UserError("--eval_metrics: draws samples without the images of --condition; evaluate held-out losses")
    try:
        condition = make_condition(config.condition)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    _check_fits(condition, len(LUMA), config)  # of RGB images, if need be
    if isinstance(condition, Column) and config.validation_share:
        raise UserError("--validation_share: not with images of a column; give --validation_split")
    return condition


def _check_fits(condition: ImageCondition, channels: int, config: Config) -> None:
    try:
        condition.check(channels, to_size(config.resolution))
    except ValueError as error:
        raise UserError(f"--condition {condition.spec}: {error}") from error


def make_condition_images(
    config: Config, images: ImageCache, space: PixelSpace | LatentSpace
) -> ConditionImages | None:
    """What the options ask for; None without a `condition`.

    Args:
        config: the options.
        images: that are trained on, decoded.
        space: that the network works in.

    Raises:
        UserError: for a condition that there isn't, that doesn't fit the images, or other options.
    """
    condition = read_condition(config)
    if condition is None:
        return None
    _check_fits(condition, images.channels, config)
    latent = isinstance(space, LatentSpace)
    given = load_column(config, condition, images, latent) if isinstance(condition, Column) else None
    channels = condition.input_channels(images.channels) if given is None else given.channels
    if latent:
        channels = space.channels(images) + condition.mask_channels
    return ConditionImages(
        condition=condition,
        space=space,
        channels=channels + (config.max_noise_level is not None),
        given=given,
        dropout=config.conditioning_dropout_prob,
        max_noise_level=config.max_noise_level,
    )


def load_column(
    config: DataOptions,
    condition: Column,
    images: ImageCache,
    latent: bool,
    split: Split | None = None,
    like: Like | None = None,
) -> ImageCache:
    """The images that the data set has beside those that are trained on, or those of a split.

    Args:
        config: where they are.
        condition: which column.
        images: beside them.
        latent: whether an autoencoder of as many channels as theirs is to encode them.
        split: that of training by default.
        like: take the channels, the type and the range of values of these.

    Raises:
        UserError: if there is no such column, or not an image of one shape beside each.
    """
    own = replace(config, image_column=condition.column, channels=images.channels if latent else None)
    try:
        source = open_dataset(own, split)
        given = images_of(source, own, like=like)
    except UserError as error:
        raise UserError(str(error).replace("--image_column ", "--condition column:")) from error
    theirs = image_column(source.dataset.features, config.image_column)
    alike = len(given) == len(images) and (given.rows == images.rows).all() and (given.sizes == images.sizes).all()
    if not alike or (config.center_crop and not _same_aspects(source, theirs, condition.column, own)):
        raise UserError(
            f"--condition {condition.spec}: its images don't have the shapes of those that they belong to; a pair must "
            "have one aspect ratio, and none may be missing"
        )
    return given


def _same_aspects(source: Source, column: str, other: str, options: DataOptions) -> bool:
    """Whether the images of two columns have the same ratio of height and width, up to a pixel, before they are cut."""
    shapes = []
    for name in (column, other):
        found = [h for _, h in readable(source, name, header, options, f"shapes of {name}", skipped=[])]
        shapes.append(np.array([(h.height, h.width) for h in found]))
    first, second = shapes
    difference = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    return bool((difference <= np.maximum(first.max(1), second.max(1))).all())
