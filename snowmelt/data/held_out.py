"""Images that are kept from training, to judge it by."""

from dataclasses import replace
from functools import partial

import numpy as np

from snowmelt.data.cache import ImageCache
from snowmelt.data.loader import HELD_OUT
from snowmelt.data.sources import load_images
from snowmelt.errors import UserError
from snowmelt.options import HeldOutOptions


def load_splits(config: HeldOutOptions, *, labels: bool = False) -> tuple[ImageCache, ImageCache | None]:
    """Images to train on, and those of `validation_split` or, drawn by the seed, the `validation_share` of them.

    Args:
        config: the options.
        labels: whether their classes matter, and so must be the same.

    Raises:
        UserError: as `load_images`; or if the two have other classes or channels, or either would be empty.
    """
    if config.validation_share:
        split = partial(_split, share=config.validation_share, seed=config.seed)
        return load_images(config, lambda rows: split(rows)[0]), load_images(config, lambda rows: split(rows)[1])
    train = load_images(config)
    if config.validation_split is None:
        return train, None
    if config.validation_split == config.split:
        raise UserError(
            f"--validation_split {config.split}: is trained on; give another, or --validation_share 0.05 of it"
        )
    held_out = load_images(replace(config, split=config.validation_split))
    for what in ("channels", "value_range", "class_names"):
        ours, theirs = getattr(train, what), getattr(held_out, what)
        if ours != theirs and (what != "class_names" or labels):
            raise UserError(
                f"--validation_split {config.validation_split}: its {what} are {theirs}, but those of "
                f"--split {config.split} are {ours}"
            )
    return train, held_out


def _split(rows: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, ascending."""
    count = round(share * rows)
    if not 0 < count < rows:
        raise UserError(
            f"--validation_share {share}: of {rows} images that is {count}; there must be some on each side"
        )
    held_out = np.zeros(rows, bool)
    held_out[np.random.default_rng([HELD_OUT, seed]).permutation(rows)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
