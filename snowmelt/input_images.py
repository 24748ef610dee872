"""Images from files, as pipelines start from them and generate.py and its relatives read them."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from pipelines import GivenImagePipeline, ScoreSdePipeline, estimate_noise_std
from pipelines.backbones import trained_size
from snowmelt.data.folders import IMAGE_SUFFIXES
from snowmelt.errors import UserError, one_line
from snowmelt.files import shown
from snowmelt.image_conditions import drawn_inputs

ESTIMATED = 16
"""Images by which the standard deviation of noise is estimated."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_size(pipeline: Any) -> tuple[int, int]:
    """Height and width of the images that the pipeline's network was trained for.

    Raises:
        UserError: if it doesn't say.
    """
    size = trained_size(pipeline.network)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        given = shown(pipeline.network.config.sample_size)
        raise UserError(f"--model: its network doesn't say which size it was trained for; its sample_size is {given}")
    height, width = (side * pipeline.vae_scale_factor for side in size)
    return height, width


def image_files(flag: str, path: str) -> list[Path]:
    """The file, or the images below the folder in the order of their paths.

    Raises:
        UserError: if there are none.
    """
    where = Path(path)
    if where.is_dir():
        found = sorted(file for file in where.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if not found:
            raise UserError(f"{flag} {path}: no images in this folder")
        return found
    if not where.is_file():
        raise UserError(f"{flag} {path}: no such file or folder")
    return [where]


def read_image(pipeline: Any, path: Path, flag: str) -> Tensor:
    """An image file as the pipeline knows images, (1, C, H, W) in [-1, 1]: its middle, resized; an array as it is.

    For a pipeline that makes images of others, an image of the size that it has.

    Args:
        pipeline: the pipeline.
        path: of the file.
        flag: what named it, for messages.

    Raises:
        UserError: if it can't be read, or isn't of the model's channels.
    """
    given = isinstance(pipeline, GivenImagePipeline)
    channels = pipeline.input_channels if given else pipeline.channels
    if path.suffix.lower() == ".npy":
        return _read_array(pipeline, path, flag, channels)
    if channels not in MODES:
        raise UserError(f"{flag} {path}: the model's images have {channels} channels; give an .npy file")
    try:
        with PIL.Image.open(path) as file:
            image = _of_8_bits(PIL.ImageOps.exif_transpose(file)).convert(MODES[channels])
            if not given:
                height, width = image_size(pipeline)
                image = PIL.ImageOps.fit(image, (width, height))
    except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{flag} {path}: {one_line(error)}; give an image file") from error
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, channels)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def _of_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image of 16 bits by its upper ones, for PIL's conversions cut off what is above 255; others as they are."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64) / 65535
    if values.min() < 0 or values.max() > 1:
        raise ValueError("32-bit integers outside 0..65535")
    return PIL.Image.fromarray((255 * values).round().astype(np.uint8))


def _read_array(pipeline: Any, path: Path, flag: str, channels: int) -> Tensor:
    low, high = pipeline.config.get("condition_range") or pipeline.config.get("value_range") or (0.0, 1.0)
    try:
        array = np.load(path, allow_pickle=False)
        values = torch.from_numpy(np.asarray(array, dtype=np.float32))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{flag} {path}: {one_line(error)}; give an array (H, W, C)") from error
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] != channels:
        raise UserError(f"{flag} {path}: of shape {tuple(array.shape)}; must be (H, W, {channels})")
    if not values.isfinite().all() or not low <= values.min() <= values.max() <= high:
        raise UserError(f"{flag} {path}: holds values outside [{low:g}, {high:g}], the model's range")
    return (2 * (values - low) / (high - low) - 1).permute(2, 0, 1)[None]


class InputImages:
    """What generated images start from: image i from number i of the files, in turn.

    Args:
        pipeline: the pipeline.
        image: file or folder.
        mask: file or folder of as many masks, or one for all; white is made anew. None: no mask.
        count: images to be generated; few more files are decoded.
        noise_std: as pipelines take it, or "auto" for what is estimated.
        arguments: further ones of the pipeline; None is left out.

    Raises:
        UserError: for files that can't be read or don't fit each other, or a mask that is black.
    """

    def __init__(
        self,
        pipeline: Any,
        image: str,
        mask: str | None,
        count: int,
        noise_std: str | None,
        arguments: dict[str, Any],
    ) -> None:
        if isinstance(pipeline, ScoreSdePipeline) and (arguments["jump_length"] or arguments["jump_n_sample"]):
            raise UserError("--jump_n_sample: a score-based SDE repeats no steps; take --num_corrector_steps instead")
        self.condition = pipeline.condition if isinstance(pipeline, GivenImagePipeline) else None
        unfit = [name for name, value in {**arguments, "noise_std": noise_std}.items() if value is not None]
        if self.condition is not None and unfit:
            raise UserError(
                f"--{unfit[0]}: is for images to start from, and this model makes images of others "
                f"({self.condition.spec}); leave it out"
            )
        if self.condition is not None and (mask is None) == (self.condition.mask_channels > 0):
            why = "leave it out" if mask else "give it, white where the image is missing"
            raise UserError(f"--mask: this model makes images of others ({self.condition.spec}); {why}")
        files, masks = image_files("--image", image), image_files("--mask", mask) if mask else []
        if mask and len(masks) not in (1, len(files)):
            raise UserError(f"--mask {mask}: {len(masks)} masks for {len(files)} images; give one, or one per image")
        self.files = files, masks
        read = max(count, ESTIMATED)  # so that an estimate doesn't depend on how many images are asked for
        files, masks = files[:read], masks[:read]
        parts = [read_image(pipeline, file, "--image") for file in files]
        if len({part.shape for part in parts}) > 1:
            raise UserError(f"--image {image}: holds images of several shapes; make them one")
        self.images = torch.cat(parts) / 2 + 0.5
        self.masks = self._masks(files, masks) if masks else None
        self.given = {name: value for name, value in arguments.items() if value is not None}
        if noise_std is not None:
            self.given["noise_std"] = self._noise_std(noise_std)

    def arguments(self, indices: Sequence[int]) -> dict[str, Any]:
        """Of the pipeline's call for the images of these numbers."""
        masks = self.masks
        mask = {} if masks is None else {"mask_image": masks[[index % len(masks) for index in indices]]}
        return {"image": self.images[self.rows(indices)], **mask, **self.given}

    def rows(self, indices: Sequence[int]) -> list[int]:
        """Which files the images of these numbers start from."""
        return [index % len(self.images) for index in indices]

    def shown(self, indices: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
        """What they start from, (B, H, W, C) in [0, 1] of a shape (H, W, C), gray where it is made anew."""
        return drawn_inputs(self.arguments(indices), (shape[2], *shape[:2])).movedim(1, -1).numpy()

    def digest(self) -> str:
        """SHA-256 of the images' files and the masks'."""
        parts = [[hashlib.sha256(file.read_bytes()).hexdigest() for file in files] for files in self.files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _masks(self, files: list[Path], masks: list[Path]) -> Tensor:
        """(1 or N, 1, H, W), True where pixels are made."""
        found = []
        for file, path in zip(files, masks, strict=False):
            try:
                with PIL.Image.open(path) as opened:
                    mask = opened.convert("L")
            except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
                raise UserError(f"--mask {path}: {one_line(error)}; give a black and white image") from error
            size, own = self._size(file), (self.images.shape[3], self.images.shape[2])
            if mask.size != size:
                ours, theirs = ("{} x {}".format(*pixels) for pixels in (mask.size, size))
                raise UserError(f"--mask {path}: of {ours} pixels, and {file} of {theirs}; make them one size")
            fitted = np.array(PIL.ImageOps.fit(mask, own, PIL.Image.Resampling.BOX))
            found.append(torch.from_numpy(fitted)[None, None] > 127)
            if not found[-1].any():
                raise UserError(f"--mask {path}: is black, so nothing would be made; paint what is to change white")
        return torch.cat(found)

    def _size(self, file: Path) -> tuple[int, int]:
        """Width and height of an image file, which has been read before."""
        if file.suffix.lower() == ".npy":
            return self.images.shape[3], self.images.shape[2]
        with PIL.Image.open(file) as opened:
            width, height = PIL.ImageOps.exif_transpose(opened).size
            return width, height

    def _noise_std(self, given: str) -> float:
        if given == "auto":
            estimate = float(estimate_noise_std(self.images[:ESTIMATED]).mean())
            print(f"noise_std {estimate:.4f}, as estimated")
            return estimate
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not 0 < value <= 100:
            raise UserError(f"--noise_std: must be a number above 0, or auto, got {given!r}")
        return value
