import numpy as np
import pytest

from snowmelt.data.stream_order import LANES, StreamOrder, strided

RAGGED = np.random.default_rng(0).integers(1, 50, 97)


@pytest.mark.parametrize("lengths", [[1], [3], [7, 1, 1], [100] * 37, RAGGED])
@pytest.mark.parametrize("buffer_size", [1, 64, 10_000])
def test_each_epoch_has_each_row_once_in_its_own_order(lengths, buffer_size):
    order = StreamOrder(np.array(lengths), (0,), buffer_size)
    count = sum(lengths)
    epochs = [order(np.arange(n * count, (n + 1) * count)) for n in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(count)) for epoch in epochs)
    if count > 10:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_a_row_follows_from_seed_and_position_alone():
    whole = StreamOrder(RAGGED, (5,), 64)(np.arange(9000))
    chosen = np.random.default_rng(1).permutation(9000)[:100]
    assert (StreamOrder(RAGGED, (5,), 64)(chosen) == whole[chosen]).all()
    assert (StreamOrder(RAGGED, (6,), 64)(np.arange(9000)) != whole).any()
    # Whatever a change of the code makes of it, runs that were begun would go on with other rows.
    assert StreamOrder(np.full(5, 4), (0,), 16)(np.arange(6)).tolist() == PINNED


PINNED = [8, 16, 19, 14, 0, 3]


def test_rows_far_apart_meet():
    """Neighbours in the order are of many units, and not neighbours in the data."""
    order = StreamOrder(np.full(1000, 100), (0,), 4096)
    rows = order(np.arange(1000))
    assert len(set((rows // 100).tolist())) > 35
    assert (np.abs(np.diff(rows)) == 1).mean() < 0.01


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_take_the_same_positions_whatever_the_processes(processes, accumulation):
    whole = np.arange(6 * 48).reshape(6, 48)
    streams = [strided(48 // processes // accumulation, 1, r, processes, accumulation) for r in range(processes)]
    for step in range(1, 6):
        parts = [next(stream) for _ in range(accumulation) for stream in streams]
        assert sorted(p.number for p, _ in parts) == list(range(processes * accumulation))
        assert {p.step for p, _ in parts} == {step}
        assert sorted(np.concatenate([positions for _, positions in parts]).tolist()) == whole[step].tolist()


def read_by(processes: int, count: int = 64_000) -> list[set[int]]:
    """The units that each process needs in an epoch, which are 640."""
    order = StreamOrder(np.full(count // 100, 100), (0,), 800)
    every = []
    for rank in range(processes):
        stream, units = strided(64 // processes, 0, rank, processes, 1), set()
        for _ in range(count // 64):
            units |= set(order.unit_of(order(next(stream)[1])).tolist())
        every.append(units)
    return every


def test_processes_share_the_reading():
    for processes in (2, 4, 8):
        needed = read_by(processes)
        assert set.union(*needed) == set(range(640))
        assert sum(map(len, needed)) <= 640 + 2 * LANES  # units where a lane ends are read by two


def test_what_is_needed_soon_is_bounded_and_spread_over_time():
    order, held, fetched = StreamOrder(np.full(1000, 100), (0,), 4096), set(), []
    for step in range(1500):
        positions = 64 * step + np.arange(64)
        needed, soon = set(order.unit_of(order(positions)).tolist()), order.soon(positions)
        assert needed <= soon
        assert len(soon) <= 2 * 4096 / 100 + 4 * LANES
        if step > 0:
            assert needed <= held, "all that a step needs was called for a step before"
            fetched.append(len(soon - held))
        held = soon
    assert max(fetched) <= 4 * LANES
    assert np.mean(fetched) < 1
