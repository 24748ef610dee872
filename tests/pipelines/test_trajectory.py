from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from pipelines import Trajectory, image_grid, save_gif, save_strip


def ramp(channels: int) -> Trajectory:
    """4 steps of 3 images: x_t is -1, and x0 climbs from -1 to 1 by thirds."""
    denoised = torch.linspace(-1, 1, 4).view(4, 1, 1, 1, 1).expand(4, 3, channels, 2, 5)
    return Trajectory(torch.arange(4.0), -torch.ones_like(denoised), denoised)


def test_grid() -> None:
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 2, 3, 1), np.uint8)
    grid = np.asarray(image_grid(pixels, gap=1))
    assert grid.shape == (5, 11)
    assert grid[::3, ::4].tolist() == [[0, 1, 2], [3, 4, 128]]
    assert set(grid[2].tolist() + grid[:, 3].tolist()) == {128}
    assert image_grid(pixels, columns=5, gap=0).size == (15, 2)
    assert np.asarray(image_grid(np.full((4, 1, 1, 4), 255, np.uint8), gap=1))[1].max() == 0
    with pytest.raises(ValueError, match="2 channels"):
        image_grid(np.zeros((1, 2, 2, 2), np.uint8))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_strip(tmp_path: Path, channels: int, mode: str) -> None:
    save_strip(ramp(channels), tmp_path / "strip.png", columns=9)  # more than there are steps
    strip = PIL.Image.open(tmp_path / "strip.png")
    assert strip.mode == mode
    cells = np.asarray(strip).reshape(6, 2, 4, 5, channels)[:, 0, :, 0, 0]
    assert cells.tolist() == [[0, 0, 0, 0], [0, 85, 170, 255]] * 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gif(tmp_path: Path, channels: int) -> None:
    save_gif(ramp(channels), tmp_path / "film.gif")
    film = PIL.Image.open(tmp_path / "film.gif")
    assert film.n_frames == 4
    assert film.size == (10, 4)
    frames = []
    for i in range(4):
        film.seek(i)
        frames.append(film.convert("RGB").getpixel((0, 0))[0])
    assert frames[-1] == 255
    assert frames == sorted(frames)
    assert film.info["duration"] == 1500
