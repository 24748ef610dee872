"""What the images of a set have in common: channels and the type of their values."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from snowmelt.data.images import PIL_MODES, Header
from snowmelt.errors import UserError
from snowmelt.options import DataOptions


@dataclass(frozen=True)
class Like:
    """What images have in common with others, those that are trained on."""

    channels: int
    dtype: np.dtype
    value_range: tuple[float, float]
    where: str  # they are, as messages call it


def common_channels(headers: list[Header], options: DataOptions, like: Like | None) -> int:
    """The channels that are asked for, or of `like`, or that all images have; PIL images that differ become RGB.

    Args:
        headers: of the images.
        options: `channels`.
        like: other images.

    Raises:
        UserError: if images can't be given them.
    """
    counts = Counter((h.channels, h.is_pil) for h in headers)
    channels = options.channels or (like.channels if like else None)
    if channels is None:
        if len({c for c, _ in counts}) == 1:
            return headers[0].channels
        if any(not is_pil for _, is_pil in counts):
            found = ", ".join(f"{n} with {c} ({PIL_MODES[c] if p else 'array'})" for (c, p), n in counts.most_common())
            raise UserError(f"images differ in their channels: {found}; arrays aren't converted, so separate them")
        channels = 3
    for count, is_pil in counts:
        if channels not in ((1, 3, 4) if is_pil else (1, 3) if count == 1 else (count,)):
            kind = "PIL images can be given 1, 3 or 4" if is_pil else f"an array here has {count}"
            if options.channels is None and like:
                raise UserError(f"{like.where} has {channels} channels: {kind}")
            raise UserError(f"--channels {channels}: {kind}")
    return channels


def common_dtype(headers: list[Header], options: DataOptions, like: Like | None) -> np.dtype:
    """The type of `like`, or the one that holds the values of all images.

    Args:
        headers: of the images.
        options: whether 16 bits are kept.
        like: other images.

    Raises:
        UserError: if float images are among others.
    """
    depths = Counter(h.depth for h in headers)
    found = ", ".join(f"{n} {depth}" for depth, n in depths.most_common())
    if like and (like.dtype == np.float32) != ("float32" in depths):
        raise UserError(f"{like.where} has {like.dtype} images, and here are {found}; float images can't be mixed")
    if "float32" in depths and len(depths) > 1:
        raise UserError(f"images differ in their values: {found}; float images can't be mixed with others")
    if like or "float32" in depths:
        return like.dtype if like else np.dtype(np.float32)
    return np.dtype(np.uint16 if options.preserve_input_precision and "uint16" in depths else np.uint8)
