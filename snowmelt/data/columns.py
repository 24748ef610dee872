"""Which columns of a data set hold the images and the labels."""

from typing import Any

import datasets
import numpy as np

from snowmelt.data.reading import values_of
from snowmelt.errors import UserError

LABEL_NAMES = ("label", "labels")


def image_column(features: datasets.Features, name: str | None) -> str:
    """The column of images: `name`, or the only one whose type is that of images.

    Raises:
        UserError: if it doesn't exist, has another type, or several could be meant.
    """
    if name is not None:
        _check_exists("image_column", name, features)
        if not _is_image(features[name]) and not _may_be_image(features[name]):
            raise UserError(
                f"--image_column {name}: {_type_name(features[name])} is no type of images; {_listing(features)}"
            )
        return name
    for test in (_is_image, _may_be_image):
        found = [column for column, feature in features.items() if test(feature)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"several columns hold images: {', '.join(found)}; choose one with --image_column")
    raise UserError(f"no column holds images; {_listing(features)}; name one with --image_column")


def read_labels(dataset: datasets.Dataset, name: str | None) -> tuple[np.ndarray | None, list[str] | None]:
    """Classes of all rows, (rows,) int64 in 0..K-1, and the names of the K classes; (None, None) without any.

    When no column is named it is the only ClassLabel, or else the only integer or string column called
    `label` or `labels`, provided that each row has a class: sets on the Hub often mark hidden labels by -1.
    Integers and strings are numbered in sorted order.

    Raises:
        UserError: if the column doesn't exist, has another type, or a row's label is missing or negative.
    """
    column = label_column(dataset.features, name)
    if column is None:
        return None, None
    values = values_of(dataset, column)
    for row, value in enumerate(values):
        if not is_class(value):
            if name is None:
                return None, None
            raise UserError(f"--label_column {name}: row {row} has {value}; every row needs a class, from 0 up")
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        labels = np.array(values, np.int64)
        if len(outside := np.flatnonzero(labels >= len(feature.names))):
            raise UserError(
                f"column {column}: row {outside[0]} has label {labels[outside[0]]}, but there are {len(feature.names)} "
                f"classes, from 0 to {len(feature.names) - 1}; correct the rows or the list of names"
            )
        return labels, list(feature.names)
    classes, labels = np.unique(values, return_inverse=True)
    return labels.astype(np.int64), [str(c) for c in classes.tolist()]


def label_column(features: datasets.Features, name: str | None) -> str | None:
    """The column of labels: `name`, or the one that `read_labels` takes; None where there is none.

    Raises:
        UserError: if it doesn't exist or has another type.
    """
    column = name or _label_column(features)
    if column is not None:
        _check_exists("label_column", column, features)
        if not _is_discrete(features[column]):
            raise UserError(
                f"--label_column {column}: {_type_name(features[column])} is no class; give a ClassLabel, integer or "
                "string column"
            )
    return column


def is_class(value: Any) -> bool:
    """Whether a label is one, and not missing or a mark of such."""
    return value is not None and (isinstance(value, str) or value >= 0)


def _label_column(features: datasets.Features) -> str | None:
    found = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    found = found or [column for column in LABEL_NAMES if column in features and _is_discrete(features[column])]
    return found[0] if len(found) == 1 else None


def _is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image)


def _may_be_image(feature: Any) -> bool:
    """Encoded bytes that aren't marked as images, and arrays of two or three axes."""
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return True
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    axes = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, axes = feature.feature, axes + 1
    return axes in (2, 3) and isinstance(feature, datasets.Value) and _is_number(feature)


def _is_number(feature: datasets.Value) -> bool:
    return feature.dtype.startswith(("bool", "int", "uint", "float"))


def _is_discrete(feature: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(
        ("bool", "int", "uint", "string", "large_str")
    )


def _check_exists(flag: str, name: str, features: datasets.Features) -> None:
    if name not in features:
        raise UserError(f"--{flag} {name}: no such column; {_listing(features)}")


def _listing(features: datasets.Features) -> str:
    return "columns: " + ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())


def _type_name(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
