"""Images that are kept from training, to judge it by."""

import numpy as np

from snowmelt.data.agreement import Like
from snowmelt.data.cache import ImageCache
from snowmelt.data.loader import HELD_OUT
from snowmelt.data.sources import images_of, open_dataset
from snowmelt.data.splits import Split
from snowmelt.errors import UserError
from snowmelt.options import HeldOutOptions


def load_splits(config: HeldOutOptions, *, labels: bool = False) -> tuple[ImageCache, ImageCache | None]:
    """Images to train on, and those of `validation_split` or, drawn by the seed, the `validation_share` of them.

    Those held out are what the model makes of the world: they have the channels, the type and the range of values of
    those that are trained on.

    Args:
        config: the options.
        labels: whether their classes matter, and so must be the same.

    Raises:
        UserError: as `load_images`; or if the two have rows in common, other classes or channels that can't be
            converted, or either would be empty.
    """
    source = open_dataset(config)
    if config.validation_share:
        ours, theirs = _split(len(source.dataset), config.validation_share, config.seed)
        train = images_of(source, config, ours)
        like = Like(train.channels, train.dtype, train.value_range, "the rest of the data")
        return train, images_of(source, config, theirs, like)
    if config.validation_split is None:
        return images_of(source, config), None
    wanted = Split(config.validation_split, "validation_split")
    other = open_dataset(config, wanted)
    for name, first, last in other.pieces:
        if any(ours == name and start < last and first < stop for ours, start, stop in source.pieces):
            raise UserError(
                f"{wanted}: is trained on, or some of it, by --split {config.split}; give another, or "
                "--validation_share 0.05"
            )
    train = images_of(source, config)
    held_out = images_of(other, config, like=Like(train.channels, train.dtype, train.value_range, "--split"))
    if labels and train.class_names != held_out.class_names:
        raise UserError(
            f"{wanted}: its class_names are {held_out.class_names}, but those of --split {config.split} are "
            f"{train.class_names}"
        )
    return train, held_out


def _split(rows: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, ascending."""
    count = round(fraction * rows)
    if not 0 < count < rows:
        raise UserError(
            f"--validation_share {fraction}: of {rows} images that is {count}; there must be some on each side"
        )
    held_out = np.zeros(rows, bool)
    held_out[np.random.default_rng([HELD_OUT, seed]).permutation(rows)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
