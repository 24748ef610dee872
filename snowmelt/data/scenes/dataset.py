"""The scenes as a data set."""

import datasets
import numpy as np

from snowmelt.data.scenes.drawing import draw
from snowmelt.data.scenes.wording import describe
from snowmelt.data.scenes.world import TRAINING_KINDS, draw_scene

SCENES = 20_000


def scenes(count: int = SCENES, seed: int = 0, side: int = 64) -> datasets.Dataset:
    """Scenes without the held-out combinations: columns `image`, RGB, and `text`, its caption.

    Args:
        count: number of rows.
        seed: of the scenes and their wordings.
        side: of the images in pixels.
    """
    rng = np.random.default_rng([0, seed])
    drawn = [draw_scene(rng, False, TRAINING_KINDS) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    columns = {"image": [draw(scene, side) for scene in drawn], "text": [describe(s, rng).text for s in drawn]}
    return datasets.Dataset.from_dict(columns, features=features)
