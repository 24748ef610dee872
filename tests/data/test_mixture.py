from itertools import islice

import numpy as np
import pytest
import torch

from snowmelt.data.loader import batches
from snowmelt.data.mixture import Mixture, Prior
from tests.data.test_loader import USUAL


@pytest.fixture
def sets(load):
    """The digits of which there are 1797, and 5 of them."""
    digits = load(dataset_name="digits", resolution=8)
    return {"image": digits}, {"image": load(dataset_name="digits", resolution=8, split="train[:5]")}


def take(mixture: Mixture, count: int, **changes: object) -> list:
    return list(islice(mixture.batches(**USUAL | changes), count))


def test_one_set_alone_is_as_it_is(sets):
    alone = take(Mixture(sets[0], None), 3)
    for mine, plain in zip(alone, islice(batches(sets[0], **USUAL), 3), strict=True):
        assert mine.keys() == plain.keys()
        assert all(torch.equal(mine[name], plain[name]) for name in plain)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_is_of_both_in_turn(sets, num_workers, monkeypatch):
    few, many = sets[1], sets[0]
    if num_workers:
        monkeypatch.setattr("snowmelt.data.loader._resident", lambda *_: None)
    mixture = Mixture(few, Prior(many, 0.25))
    plain = list(islice(batches(few, **USUAL), 4))
    seen = []
    for batch, own in zip(take(mixture, 4, num_workers=num_workers), plain, strict=True):
        assert torch.equal(batch["indices"][::2], own["indices"])  # prior or not, the same order and mirrors
        assert torch.equal(batch["image"][::2], own["image"])
        assert (batch["indices"][1::2] >= len(few["image"])).all()
        assert batch["loss_weight"].tolist() == [2.0, 0.5] * 10
        seen += batch["indices"][1::2].tolist()
    assert len(set(seen)) == 40
    rows = mixture.rows[seen]
    assert rows.tolist() == [index - 5 for index in seen]
    flipped = batch["image"][1::2].flip(-1), torch.from_numpy(many["image"].gather(rows[-10:], None))
    assert all(torch.equal(a, c) or torch.equal(b, c) for a, b, c in zip(batch["image"][1::2], *flipped, strict=True))


def test_it_resumes_and_is_shared_out(sets):
    mixture = Mixture(sets[1], Prior(sets[0], 1.0))
    whole = take(mixture, 4, batch_size=4)
    later = take(mixture, 2, batch_size=4, start_step=2)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(whole[2:], later, strict=True))
    halves = [take(mixture, 4, batch_size=2, world_size=2, rank=rank, random_flip=False) for rank in (0, 1)]
    for batch, *parts in zip(take(mixture, 4, batch_size=4, random_flip=False), *halves, strict=True):
        assert torch.equal(batch["image"], torch.cat([part["image"] for part in parts]))
    assert mixture.fingerprint.split("+") == [s["image"].fingerprint for s in (sets[1], sets[0])]
    assert np.array_equal(mixture.rows, np.concatenate([np.arange(5), np.arange(1797)]))
