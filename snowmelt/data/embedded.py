"""Data sets that install with the project's dependencies, or that it makes."""

from collections.abc import Callable

import datasets
import numpy as np

from snowmelt.data.scenes.dataset import scenes


def digits() -> datasets.Dataset:
    """1,797 handwritten digits of 8 x 8 pixels, gray, labelled '0' to '9' (Alpaydin & Kaynak 1998, UCI).

    Their values 0..16 are scaled to 0..255.
    """
    from sklearn.datasets import load_digits  # a second to import, and needed for this set only

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    return datasets.Dataset.from_dict({"image": list(images), "label": bunch.target}, features=features)


EMBEDDED: dict[str, Callable[[], datasets.Dataset]] = {"digits": digits, "scenes": scenes}
