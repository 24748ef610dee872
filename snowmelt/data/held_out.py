"""Images that are kept from training, to judge it by."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from snowmelt.data.agreement import Like
from snowmelt.data.cache import ImageCache
from snowmelt.data.captions import CaptionedSource, open_captioned
from snowmelt.data.encoded import Encoded
from snowmelt.data.encoded_captions import AnyCaptions
from snowmelt.data.order import HELD_OUT
from snowmelt.data.places import Source
from snowmelt.data.sources import images_of, open_dataset
from snowmelt.data.splits import Piece, Split
from snowmelt.data.stream import StreamedImages, open_stream
from snowmelt.data.stream_index import Index, build_index, divided
from snowmelt.errors import UserError
from snowmelt.options import HeldOutOptions

S = TypeVar("S", bound=Source)
Captioned = tuple[ImageCache, AnyCaptions]
"""Images, and their captions."""


def load_splits(
    config: HeldOutOptions, *, labels: bool = False, encoded: Encoded | None = None
) -> tuple[ImageCache, ImageCache | None]:
    """Images to train on, and those of `validation_split` or, drawn by the seed, the `validation_share` of them.

    Those held out are what the model makes of the world: they have the channels, the type and the range of values of
    those that are trained on.

    Args:
        config: the options.
        labels: whether their classes matter, and so must be the same.
        encoded: latents that the options name, instead of images.

    Raises:
        UserError: as `load_images`; or if the two have rows in common, other classes or channels that can't be
            converted, or either would be empty.
    """
    train: ImageCache
    held_out: ImageCache | None
    if config.streaming or encoded is not None:
        train, held_out = _streamed(config, labels, encoded)
    else:
        (_, train), others = _decoded(config, partial(open_dataset, config))
        held_out = others and others[1]
    if held_out is not None and labels and train.class_names != held_out.class_names:
        raise UserError(
            f"--validation_split {config.validation_split}: its class_names are {held_out.class_names}, but those "
            f"of --split {config.split} are {train.class_names}"
        )
    return train, held_out


def load_captioned_splits(
    config: HeldOutOptions,
    column: str | None,
    *,
    skip_empty: bool,
    most: int | None = None,
    shared: list[str] | None = None,
    encoded: Encoded | None = None,
) -> tuple[Captioned, Captioned | None]:
    """What `load_splits` gives, with captions.

    Args:
        config: the options.
        column: of the captions; found by name or type when None.
        skip_empty: leave out images without a caption instead of refusing them.
        most: train on, or divide, no more than the first so many rows.
        shared: captions that all images have, instead of those of a column.
        encoded: latents with captions that the options name, instead of images; the arguments above aren't for them.

    Raises:
        UserError: as `load_splits` and `load_captioned`.
    """
    if encoded is not None:
        ours, theirs = _streamed(config, False, encoded, captions=True)
        return (ours, encoded.captions_of(ours)), theirs and (theirs, encoded.captions_of(theirs))

    def opened(split: Split | None = None) -> CaptionedSource:
        rows = most if split is None else None
        return open_captioned(config, column, skip_empty=skip_empty, most=rows, split=split, shared=shared)

    (source, train), held_out = _decoded(config, opened)
    return (train, source.of(train)), held_out and (held_out[1], held_out[0].of(held_out[1]))


def _decoded(
    config: HeldOutOptions, opened: Callable[..., S]
) -> tuple[tuple[S, ImageCache], tuple[S, ImageCache] | None]:
    """Sources and decoded images to train on and, where there are any, held out.

    Args:
        config: the options.
        opened: opens the rows to train on, or those of the `Split` that it is given.
    """
    source = opened()
    if config.validation_share:
        ours, theirs = _split(len(source.dataset), config.validation_share, config.seed)
        train = images_of(source, config, ours)
        like = Like(train.channels, train.dtype, train.value_range, "the rest of the data")
        return (source, train), (source, images_of(source, config, theirs, like))
    if config.validation_split is None:
        return (source, images_of(source, config)), None
    wanted = Split(config.validation_split, "validation_split")
    other = opened(wanted)
    _check_apart(source.pieces, other.pieces, config)
    train = images_of(source, config)
    like = Like(train.channels, train.dtype, train.value_range, "--split")
    return (source, train), (other, images_of(other, config, like=like))


def _streamed(
    config: HeldOutOptions, labels: bool, encoded: Encoded | None, *, captions: bool = False
) -> tuple[Any, Any]:
    """Images to train on and, where there are any, held out, in their shards; a share of them is of whole units."""

    def opened(index: Index, like: Like | None = None) -> StreamedImages:
        return open_stream(config, index, like) if encoded is None else encoded.open(config, index, captions=captions)

    shards = None if encoded is None else encoded.shards
    index = build_index(config, Split(config.split), labels=labels, shards=shards)
    if config.validation_share:
        index, other = divided(index, config.validation_share, (HELD_OUT, config.seed))
        where = "the rest of the data"
    elif config.validation_split:
        wanted, where = Split(config.validation_split, "validation_split"), "--split"
        other = build_index(config, wanted, labels=labels, shards=shards)
        _check_apart(index.pieces, other.pieces, config)
    else:
        return opened(index), None
    train = opened(index)
    return train, opened(other, Like(train.channels, train.dtype, train.value_range, where))


def _check_apart(ours: list[Piece], theirs: list[Piece], config: HeldOutOptions) -> None:
    for name, first, last in theirs:
        if any(own == name and start < last and first < stop for own, start, stop in ours):
            raise UserError(
                f"--validation_split {config.validation_split}: is trained on, or some of it, by --split "
                f"{config.split}; give another, or --validation_share 0.05"
            )


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
