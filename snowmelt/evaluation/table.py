"""The metrics by name: a row says what it needs and computes its results."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from snowmelt.condition_options import PAIR_METRICS
from snowmelt.errors import UserError
from snowmelt.evaluation import metrics
from snowmelt.evaluation.clip import clip_score
from snowmelt.evaluation.features import FeatureExtractor
from snowmelt.evaluation.metrics import Estimate
from snowmelt.evaluation.reference import Reference
from snowmelt.text.options import TEXT_METRICS

UNCONDITIONAL = ("likelihood", "bound")
"""Metrics of models that take neither text nor images."""
HEADS = ("classifier", "inception")
"""Features, as `--features` names them, whose network is a classifier."""
PRDC_IMAGES = 10_000
"""At most so many of both sets go into precision, recall, density and coverage, as in the papers."""


@dataclass(frozen=True)
class Result:
    """A line of a report. Its fields are those of `report.json`."""

    metric: str
    name: str
    value: float
    error: float | None
    lower_is_better: bool


@dataclass(frozen=True)
class Images:
    """Images that are judged, by their features.

    Attributes:
        features: (N, D).
        labels: (N,) the classes that they should be of, where that is known.
        clip_scores: (N,) by their captions, where they were scored.
        clip: the name of the model that scored them.
        closeness: PSNR and SSIM to the images that they belong to, (N, 2), of a model of given images.
    """

    features: Tensor
    labels: Tensor | None = None
    clip_scores: Tensor | None = None
    clip: str = ""
    closeness: Tensor | None = None

    def of(self, rows: Tensor) -> "Images":
        """The images of these rows."""
        given = self.labels, self.clip_scores, self.closeness
        labels, scores, close = (None if values is None else values[rows] for values in given)
        return Images(self.features[rows], labels, scores, self.clip, close)


@dataclass(frozen=True)
class Metric:
    """A row.

    Attributes:
        compute: (images, reference, extractor, seed) -> its results.
        minimum: the fewest images, on either side.
        head: whether the extractor must have one.
        labels: whether the model must have classes, and the extractor know them.
        per_feature: the fewest images per dimension of the features.
        features: whether it is of features at all.
    """

    compute: Callable[[Images, Reference, FeatureExtractor, int], list[Result]]
    minimum: int = 2
    head: bool = False
    labels: bool = False
    per_feature: int = 0
    features: bool = True


def _frechet(images: Images, reference: Reference, extractor: FeatureExtractor, seed: int) -> list[Result]:
    value = reference.frechet(images.features)
    title = "Frechet inception distance (FID)" if extractor.name.startswith("InceptionV3") else "Frechet distance"
    return [_result("fd", title, Estimate(value), True, extractor)]


def _frechet_at_infinity(images: Images, reference: Reference, extractor: FeatureExtractor, seed: int) -> list[Result]:
    value = reference.frechet.at_infinity(images.features, seed)
    return [_result("fd_inf", "Frechet distance extrapolated to infinitely many", value, True, extractor)]


def _kernel(images: Images, reference: Reference, extractor: FeatureExtractor, seed: int) -> list[Result]:
    value = metrics.kernel_distance(images.features, reference.features, seed)
    return [_result("kid", "Kernel distance (KID)", value, True, extractor)]


def _inception_score(images: Images, reference: Reference, extractor: FeatureExtractor, seed: int) -> list[Result]:
    value = metrics.inception_score(_logits(images, extractor), seed)
    return [_result("is", "Inception score", value, False, extractor)]


def _prdc(images: Images, reference: Reference, extractor: FeatureExtractor, seed: int) -> list[Result]:
    """Of as many images of each set: coverage depends on their ratio."""
    rng = np.random.default_rng(seed)
    count = min(len(images.features), len(reference), PRDC_IMAGES)
    ours, theirs = (x[np.sort(rng.permutation(len(x))[:count])] for x in (images.features, reference.features))
    names = ("precision", "recall", "density", "coverage")
    values = (*metrics.precision_recall(ours, theirs), *metrics.density_coverage(ours, theirs))
    return [
        _result(name, f"{name.title()} of {count}", Estimate(value), False, extractor)
        for name, value in zip(names, values, strict=True)
    ]


def _accuracy(images: Images, reference: Reference, extractor: FeatureExtractor, seed: int) -> list[Result]:
    if images.labels is None:
        return []
    value = metrics.accuracy(_logits(images, extractor), images.labels)
    return [_result("accuracy", "Recognised as their class", value, False, extractor)]


def _closeness(
    metric: str, column: int, images: Images, reference: Reference, extractor: FeatureExtractor, seed: int
) -> list[Result]:
    if images.closeness is None:
        return []
    values = images.closeness[:, column].double()
    error = (values.std() / len(values) ** 0.5).item()
    found = Result(metric, f"{metric.upper()} to the originals", values.mean().item(), error, False)
    return [] if values.isnan().all() else [found]  # SSIM of images smaller than its window


def _clip_score(images: Images, reference: Reference, extractor: FeatureExtractor, seed: int) -> list[Result]:
    if images.clip_scores is None:
        return []
    value = clip_score(images.clip_scores)
    return [Result("clip_score", f"CLIP score ({images.clip})", value.value, value.error, False)]


COMPARISONS: dict[str, Metric] = {
    "fd": Metric(_frechet),
    "fd_inf": Metric(_frechet_at_infinity, per_feature=5),
    "kid": Metric(_kernel, minimum=20),
    "is": Metric(_inception_score, minimum=20, head=True),
    "prdc": Metric(_prdc, minimum=6),
    "accuracy": Metric(_accuracy, head=True, labels=True),
    "clip_score": Metric(_clip_score, features=False),
    "psnr": Metric(partial(_closeness, "psnr", 0), features=False),
    "ssim": Metric(partial(_closeness, "ssim", 1), features=False),
}
"""What compares any images with the reference, or their captions: the model's, and for the baseline real ones."""


def compares_features(names: list[str]) -> bool:
    """Whether a metric is of features."""
    return any(name in COMPARISONS and COMPARISONS[name].features for name in names)


def check_kind(names: list[str], by_text: bool, by_image: bool) -> None:
    """Refuse metrics of texts and of given images where the model takes none, and of likelihood where it does.

    Args:
        names: of the metrics.
        by_text: whether it makes images from texts.
        by_image: whether it makes images of others.

    Raises:
        UserError: naming the first such metric.
    """
    for name in names:
        if name in UNCONDITIONAL and (by_text or by_image):
            raise UserError(f"--metrics {name}: is of models without a condition or by class; leave it out")
        if name in TEXT_METRICS and not by_text:
            raise UserError(f"--metrics {name}: is of images made from texts, and the model takes none; leave it out")
        if name in PAIR_METRICS and not by_image:
            raise UserError(f"--metrics {name}: is of images made of others, and the model takes none; leave it out")


def check_counts(names: list[str], num_images: int, reference: int, dimensions: int = 0) -> None:
    """Refuse metrics that need more images, of samples or of the reference.

    Args:
        names: of the metrics.
        num_images: to be sampled.
        reference: number of its images.
        dimensions: of the features, where these are known already.

    Raises:
        UserError: if one does.
    """
    for name in names:
        row = COMPARISONS.get(name, Metric(lambda *_: []))
        least = max(row.minimum, row.per_feature * dimensions)
        for what, count in (("--num_images", num_images), ("the reference", reference)):
            if count < least:
                raise UserError(f"--metrics {name}: needs {least} images or more; {what} has {count}")


def check_features(names: list[str], features: str, classes: int) -> None:
    """Refuse metrics that can't be had with these features, or of this model, whatever the data.

    Args:
        names: of the metrics.
        features: what `--features` names.
        classes: of the model, 0 for an unconditional one.

    Raises:
        UserError: if one needs a classifier or labels.
    """
    for name in names:
        row = COMPARISONS.get(name, Metric(lambda *_: []))
        if row.head and features not in HEADS:
            raise UserError(f"--metrics {name}: needs a classifier, which {features} isn't; --features classifier is")
        if row.labels and features != "classifier":
            raise UserError(
                f"--metrics {name}: needs --features classifier, which is trained on the data set's classes"
            )
        if row.labels and not classes:
            raise UserError(f"--metrics {name}: the model has no classes; leave {name} out")


def check_classes(names: list[str], classes: int, known: int) -> None:
    """Refuse metrics of labels where the model and the data set don't have the same number of classes.

    Args:
        names: of the metrics.
        classes: number of the model's; 0 for an unconditional one.
        known: number of the data set's; 0 without labels.

    Raises:
        UserError: if the numbers differ, and a metric needs labels.
    """
    labelled = [name for name in names if name in COMPARISONS and COMPARISONS[name].labels]
    if labelled and not known:
        raise UserError(
            f"--metrics {labelled[0]}: the data set has no labels; name their column with --label_column, or leave "
            f"{labelled[0]} out"
        )
    if labelled and classes != known:
        raise UserError(
            f"--metrics {labelled[0]}: the model has {classes or 'no'} classes and the data set {known}; leave "
            f"{labelled[0]} out, or give the data set that the model was trained on"
        )


def compare(
    names: list[str], images: Images, reference: Reference, extractor: FeatureExtractor, seed: int
) -> list[Result]:
    """The results of these metrics.

    Args:
        names: of the metrics; those that aren't in `COMPARISONS` are left out.
        images: those to be judged.
        reference: what they are compared with.
        extractor: of the features of both.
        seed: of random choices among images.

    Raises:
        UserError: for too few images.
    """
    found = [COMPARISONS[name].compute(images, reference, extractor, seed) for name in names if name in COMPARISONS]
    return [result for results in found for result in results]


def baseline(
    names: list[str], count: int, real: Images, reference: Reference, extractor: FeatureExtractor, seed: int
) -> tuple[str, list[Result]]:
    """What the reference's own images get: as many as are sampled, at most half of them, against the others.

    A model can't be expected to do better: distances below these are reached by copying.

    Args:
        names: of the metrics.
        count: of the model's samples.
        real: all images of the reference.
        reference: the same.
        extractor: of the features.
        seed: of the choice.

    Returns:
        Which images these are, and their results.
    """
    rows = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(len(reference)))
    part, rest = rows.tensor_split([min(count, len(reference) // 2)])
    others = Reference(reference.features[rest], reference.title)
    title = f"{len(part):,} images of {reference.title} against its others"
    return title, compare(names, real.of(part), others, extractor, seed)


def _logits(images: Images, extractor: FeatureExtractor) -> Tensor:
    assert extractor.head is not None  # check() refused
    return extractor.head(images.features)


def _result(metric: str, title: str, value: Estimate, lower_is_better: bool, extractor: FeatureExtractor) -> Result:
    return Result(metric, f"{title} ({extractor.name})", value.value, value.error, lower_is_better)
