"""Grids of images over their captions."""

import numpy as np
import pytest

from snowmelt.text.prompt_grids import CELL, GAP, LINE_HEIGHT, captioned_grid

RED, GREEN = (255, 0, 0), (0, 255, 0)


def photos(*colours: tuple[int, ...], side: int = 8) -> np.ndarray:
    return np.stack([np.full((side, side, len(colour)), colour, np.uint8) for colour in colours])


def black(grid: np.ndarray, y: slice, x: slice) -> int:
    return int((grid[y, x].max(-1) < 100).sum())


def test_images_stand_enlarged_over_their_captions():
    grid = np.asarray(captioned_grid(photos(RED, GREEN), ["red", ""], columns=2))
    assert grid.shape == (GAP + CELL + LINE_HEIGHT + GAP, GAP + 2 * (CELL + GAP), 3)
    left, right = slice(GAP, GAP + CELL), slice(2 * GAP + CELL, 2 * (GAP + CELL))
    assert (grid[left, left] == RED).all()
    assert (grid[left, right] == GREEN).all()
    below = slice(GAP + CELL, None)
    assert black(grid, below, left) > 20
    assert black(grid, below, right) == 0


def test_large_images_keep_their_size():
    assert captioned_grid(photos(RED, side=300), ["x"]).size == (300 + 2 * GAP, 300 + LINE_HEIGHT + 2 * GAP)


def test_long_captions_and_those_of_two_lines_are_seen_whole():
    words = "a large red circle to the left of a small blue cross"
    one, two, long = (captioned_grid(photos(RED), [text]) for text in ("red", "red\nred", words))
    assert two.height == one.height + LINE_HEIGHT
    assert long.width == one.width
    rows = np.flatnonzero((np.asarray(long).max(-1) < 100).any(1))
    assert rows.max() < long.height - 1
    columns = np.flatnonzero((np.asarray(long).max(-1) < 100).any(0))
    assert columns.max() < GAP + CELL


@pytest.mark.parametrize(("colour", "seen"), [((7,), (7, 7, 7)), ((9, 9, 9, 0), (255, 255, 255))])
def test_gray_and_transparent_images(colour, seen):
    grid = np.asarray(captioned_grid(photos(colour), [""]))
    assert (grid[GAP : GAP + CELL, GAP : GAP + CELL] == seen).all()
