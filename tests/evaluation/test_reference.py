"""Real images in the model's units, their features, and what they get themselves."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from snowmelt.errors import UserError
from snowmelt.evaluation import table
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.reference import Reference, features_of
from snowmelt.evaluation.table import Images


class Means:
    """An extractor of the mean colour, that counts what it has seen."""

    accuracy = None
    head = None

    def __init__(self, name: str = "means") -> None:
        self.name = self.fingerprint = name
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        assert 0 <= images.min() <= images.max() <= 1
        self.seen += len(images)
        return images.mean((2, 3))


class Cache(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.values)

    def gather(self, rows: np.ndarray, rng: object) -> np.ndarray:
        assert rng is None  # the centre, not a random crop
        return self.values[rows]


def real(path: Path, values: np.ndarray, value_range: tuple[float, float], **others: object) -> RealImages:
    cache = Cache(path=path / "cache", fingerprint="a", labels=None, values=values)
    return RealImages(Cache(**vars(cache) | others), "train", value_range)


def test_units(tmp_path: Path) -> None:
    values = np.array([-2.0, 0.0, 6.0, 7.0], np.float32).reshape(4, 1, 1, 1)
    found = real(tmp_path, values, (-2.0, 6.0)).batch(np.arange(4)).flatten()
    assert found.tolist() == [0, 0.25, 1, 1]  # a held-out value beyond those of training is cut
    whole = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    found = real(tmp_path, whole, (0, 255)).batch(np.arange(256)).flatten()
    assert torch.equal(found, (found * 255).round() / 255)  # as samples are rounded


def test_features_are_computed_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (25, 3, 4, 4), np.uint8)
    data, extractor = real(tmp_path, values, (0, 255)), Means()
    features = features_of(data, extractor, 10)
    torch.testing.assert_close(features, torch.from_numpy(values).float().div(255).mean((2, 3)))
    assert torch.equal(features_of(data, extractor, 4), features)
    assert extractor.seen == 25
    others = [
        (real(tmp_path, values, (0, 255), fingerprint="b"), extractor),
        (real(tmp_path, values, (0, 510)), extractor),
        (data, Means("other")),
    ]
    for number, (other, seeing) in enumerate(others):
        features_of(other, seeing, 10)
        assert seeing.seen == (25 * (number + 2) if seeing is extractor else 25)


@pytest.mark.parametrize("damage", [b"", b"<html>", None])
def test_damaged_features_are_computed_anew(
    tmp_path: Path, damage: bytes | None, capsys: pytest.CaptureFixture
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (25, 3, 4, 4), np.uint8)
    data, extractor = real(tmp_path, values, (0, 255)), Means()
    features = features_of(data, extractor, 10)
    (path,) = tmp_path.glob("features-*.safetensors")
    path.write_bytes(path.read_bytes()[:-8] if damage is None else damage)
    assert torch.equal(features_of(data, extractor, 10), features)
    assert extractor.seen == 50
    assert "is damaged: its features are computed anew" in capsys.readouterr().out
    features_of(data, extractor, 10)
    assert extractor.seen == 50


def test_baseline_compares_images_with_others() -> None:
    """As many as there are samples and no more than half, all different, against the rest."""
    features = torch.arange(100.0)[:, None] * torch.tensor([[1.0, -2.0]])
    reference = Reference(features, "train")
    for count, expected in ((10, 10), (80, 50)):
        seen: list[tuple[Images, Reference]] = []
        row = table.Metric(lambda images, rest, *_: seen.append((images, rest)) or [])  # noqa: B023
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(table.COMPARISONS, "seen", row)
            images = Images(features, torch.arange(100))
            title, _ = table.baseline(["seen"], count, images, reference, Means(), 0)
        part, rest = seen[0]
        assert title == f"{expected} images of train against its others"
        assert torch.equal(part.features[:, 0].long(), part.labels)
        assert sorted([*part.labels.tolist(), *rest.features[:, 0].long().tolist()]) == list(range(100))
        assert len(part.labels) == expected


def test_prdc_takes_as_many_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = Images(torch.randn(40, 3, generator=generator), None)
    reference = Reference(torch.randn(300, 3, generator=generator), "train")
    results = table.compare(["prdc"], images, reference, Means(), 0)
    assert [r.name for r in results] == [f"{n} of 40 (means)" for n in ("Precision", "Recall", "Density", "Coverage")]
    assert all(0.4 < r.value < 1.3 for r in results)  # against all 300 the coverage would be at most 0.13 x 5
    monkeypatch.setattr(table, "PRDC_IMAGES", 20)
    assert table.compare(["prdc"], images, reference, Means(), 0)[0].name == "Precision of 20 (means)"


def test_fid_is_the_name_of_inceptions_alone() -> None:
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    images, reference = Images(features[:20], None), Reference(features[20:], "train")
    names = [table.compare(["fd"], images, reference, Means(n), 0)[0] for n in ("InceptionV3 (x)", "DINO (x)")]
    assert [r.name for r in names] == [
        "Frechet inception distance (FID) (InceptionV3 (x))",
        "Frechet distance (DINO (x))",
    ]
    assert names[0].value == names[1].value == FrechetDistance(features[20:])(features[:20])


def test_metrics_of_a_head_are_refused_without_one() -> None:
    for name in ("is", "accuracy"):
        with pytest.raises(UserError, match=f"--metrics {name}: needs a classifier, which some/dino isn't"):
            table.check_features(["fd", name], "some/dino", 10)
