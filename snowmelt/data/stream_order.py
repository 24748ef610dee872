"""The order of a stream: which row stands at a position, as a function of the seed, the epoch and the position alone.

A data set is a sequence of units, each of which is read at once: row groups of parquet files, stretches of tars. An
epoch is a permutation of the units, whose rows are then cut into `LANES` lanes of one length, and each lane into
blocks, in which rows are permuted. Position p of an epoch is the row at p // LANES of lane p % LANES, so that whoever
takes each second, fourth or eighth position needs but so many of the lanes, and of the units.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np

LANES = 8
"""That a single process reads from side by side, and the most processes that read nothing twice."""


class Numbered(NamedTuple):
    """A part of an optimizer step, and its number in it."""

    step: int
    number: int


def strided(
    batch_size: int, start_step: int, rank: int, world_size: int, accumulation: int
) -> Iterator[tuple[Numbered, np.ndarray]]:
    """Positions (batch_size,) of the micro-steps of a process, without end.

    A step takes as many positions as it has images, whatever the number of processes, and of these each of its S parts
    takes every S-th, so that a process needs but some of the lanes.

    Args:
        batch_size: images of a process and micro-step.
        start_step: optimizer step to begin with.
        rank: of this process.
        world_size: processes.
        accumulation: micro-steps in an optimizer step.
    """
    parts = world_size * accumulation
    for step in count(start_step):
        for number in range(rank, parts, world_size):
            yield Numbered(step, number), step * parts * batch_size + number + parts * np.arange(batch_size)


class StreamOrder:
    """An endless order of N rows, each once in an epoch.

    Args:
        lengths: (U,) rows of each unit; N in all.
        seed: a key of the permutations: any integers that are at least 0.
        buffer_size: rows that are permuted among each other, in all lanes together.
    """

    def __init__(self, lengths: np.ndarray, seed: tuple[int, ...], buffer_size: int) -> None:
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.count = int(self.starts[-1])
        self.seed = seed
        self.block = -(-buffer_size // LANES)
        self._in_lane = (self.count - np.arange(LANES) + LANES - 1) // LANES
        self._lane_starts = np.cumsum(self._in_lane) - self._in_lane
        self._units = lru_cache(maxsize=2)(self._permuted_units)
        self._rows = lru_cache(maxsize=4 * LANES)(self._permuted_rows)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Rows (B,) int64 at positions (B,) of the endless stream."""
        rows = np.empty(len(positions), np.int64)
        for epoch, lane, block, chosen, within in self._blocks(positions):
            first, _ = self._span(lane, block)
            units, ends = self._units(epoch)
            virtual = first + self._rows(epoch, lane, block)[within]
            unit = np.searchsorted(ends, virtual, side="right")
            rows[chosen] = self.starts[units[unit] + 1] - (ends[unit] - virtual)
        return rows

    def unit_of(self, rows: np.ndarray) -> np.ndarray:
        """Units (B,) of rows (B,)."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def soon(self, positions: np.ndarray) -> set[int]:
        """Units of the blocks that positions (B,) are in, and of as much of the next ones as is behind in these.

        To have these, and no others, at hand spreads reading evenly over time, and bounds what is held.
        """
        found: set[int] = set()
        for epoch, lane, block, _, within in self._blocks(positions):
            found |= self._overlapping(epoch, *self._span(lane, block))
            behind = int(within.max())
            then, position = divmod(lane + LANES * ((block + 1) * self.block + behind), self.count)
            lane, block = position % LANES, position // LANES // self.block
            first, stop = self._span(lane, block)
            found |= self._overlapping(epoch + then, first, min(stop, first + 1 + behind))
        return found

    def _blocks(self, positions: np.ndarray) -> Iterator[tuple[int, int, int, np.ndarray, np.ndarray]]:
        """Epoch, lane and block of positions, with the numbers of those that are in it, and where in it these are."""
        epochs, position = np.divmod(positions, self.count)
        lanes, places = position % LANES, position // LANES
        blocks = self.count // self.block + 1
        keys = (epochs * LANES + lanes) * blocks + places // self.block
        order = np.argsort(keys, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            one = chosen[0]
            yield int(epochs[one]), int(lanes[one]), int(places[one]) // self.block, chosen, places[chosen] % self.block

    def _span(self, lane: int, block: int) -> tuple[int, int]:
        """Where a block begins and ends, as the permuted units' rows are counted."""
        first, length = int(self._lane_starts[lane]), int(self._in_lane[lane])
        return first + block * self.block, first + min(length, (block + 1) * self.block)

    def _overlapping(self, epoch: int, first: int, stop: int) -> set[int]:
        units, ends = self._units(epoch)
        low, high = np.searchsorted(ends, [first, stop - 1], side="right")
        return set(units[low : high + 1].tolist())

    def _permuted_units(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Units in the order of an epoch, and where each of them ends."""
        units = np.random.default_rng([*self.seed, epoch]).permutation(len(self.lengths))
        return units, np.cumsum(self.lengths[units])

    def _permuted_rows(self, epoch: int, lane: int, block: int) -> np.ndarray:
        first, stop = self._span(lane, block)
        return np.random.default_rng([*self.seed, epoch, lane, block]).permutation(stop - first)


class RowOrder(StreamOrder):
    """The order that N rows stand in, once.

    Args:
        lengths: (U,) rows of each unit; N in all.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        super().__init__(lengths, (), 1)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Rows (B,) at positions (B,): the same."""
        return positions

    def soon(self, positions: np.ndarray) -> set[int]:
        """The unit after those of positions (B,)."""
        return {min(int(self.unit_of(positions).max()) + 1, len(self.lengths) - 1)}
