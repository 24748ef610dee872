"""Which rows each step shows: a function of the seed alone.

The order is one infinite stream: position p belongs to epoch p // N and shows row perm(seed, epoch)[p % N].
Optimizer step k takes positions k*G to (k+1)*G, where G = batch_size * world_size * accumulation, and its
micro-step m on process r takes shard m * world_size + r of them. So the global batches don't depend on how they are
shared out, none is ragged, and a run resumes at any step with no stored state.

Images in buckets have such a stream for each bucket, and a step takes the next positions of one. Which one follows from
the seed and k, and so does how many steps before k took theirs from it.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np

# Purposes of random numbers, so that no two draw the same.
ORDER, CROP, FLIP, NOISE, HELD_OUT, VALIDATION, PAIRS, BUCKET = range(8)

GOLDEN = (5**0.5 - 1) / 2


class Shard(NamedTuple):
    """What one process shows in one micro-step."""

    step: int
    number: int  # of the step's shards
    bucket: int
    indices: np.ndarray  # (B,) int64, of the bucket's images


def shards_of(
    lengths: list[int], batch_size: int, seed: int, start_step: int, rank: int, world_size: int, accumulation: int
) -> Iterator[Shard]:
    """What a process shows, without end; the arguments are those of `snowmelt.data.loader.batches`.

    Args:
        lengths: images of each bucket.
        batch_size: images of a process and micro-step.
        seed: of the order.
        start_step: optimizer step to begin with.
        rank: of this process.
        world_size: processes.
        accumulation: micro-steps in an optimizer step.
    """

    @lru_cache(maxsize=2 * len(lengths))
    def permutation(bucket: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([ORDER, seed, epoch]).permutation(lengths[bucket])

    def stretch(bucket: int, position: int) -> np.ndarray:
        parts, missing = [], batch_size
        while missing:
            epoch, first = divmod(position, lengths[bucket])
            part = permutation(bucket, epoch)[first : first + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return np.concatenate(parts)

    for step, (bucket, before) in enumerate(_buckets(lengths, seed, start_step), start_step):
        for micro_step in range(accumulation):
            number = micro_step * world_size + rank
            position = (before * world_size * accumulation + number) * batch_size
            yield Shard(step, number, bucket, stretch(bucket, position))


def _buckets(lengths: list[int], seed: int, start_step: int) -> Iterator[tuple[int, int]]:
    """The bucket of each step from `start_step` on, and how many earlier steps were of it.

    Steps are points of [0, 1), on which each bucket has an interval as long as its fraction of the images. The points
    are multiples of the golden ratio, modulo 1: of any number of them in a row an interval gets its share, but for a
    few (Kuipers & Niederreiter 1974, chapter 2, theorem 3.4).
    """
    edges = np.cumsum(lengths[:-1]) / sum(lengths)
    first = np.random.default_rng([BUCKET, seed]).random()

    def of(steps: np.ndarray) -> np.ndarray:
        return np.searchsorted(edges, (first + GOLDEN * steps) % 1, side="right")

    counts = np.bincount(of(np.arange(start_step)), minlength=len(lengths))
    for step in count(start_step):
        bucket = int(of(np.array(step)))
        yield bucket, int(counts[bucket])
        counts[bucket] += 1
