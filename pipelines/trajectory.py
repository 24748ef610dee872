"""Pictures of many images at once: grids, and how samples come about."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from pipelines.base import Trajectory


def image_grid(pixels: np.ndarray, columns: int | None = None, gap: int = 2) -> PIL.Image.Image:
    """One picture of many, row by row, apart by a gray line; where there is transparency, by a transparent one.

    Args:
        pixels: uint8 (N, H, W, C), C being 1, 3 or 4.
        columns: images per row; as many as make the grid square by default.
        gap: width of the lines in pixels.

    Raises:
        ValueError: for another number of channels.
    """
    n, height, width, channels = pixels.shape
    if channels not in (1, 3, 4):
        raise ValueError(f"pixels: no picture has {channels} channels; 1, 3 and 4 can be shown")
    columns = columns or int(np.ceil(n**0.5))
    rows = -(-n // columns)
    cells = np.full((rows * columns, height + gap, width + gap, channels), 0 if channels == 4 else 128, np.uint8)
    cells[:n, :height, :width] = pixels
    grid = cells.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + gap), columns * (width + gap), channels)
    grid = grid[: len(grid) - gap, : grid.shape[1] - gap]
    return PIL.Image.fromarray(grid[..., 0] if channels == 1 else grid)


def save_strip(trajectory: Trajectory, path: str | Path, columns: int = 10) -> None:
    """Save a picture of evenly spread steps: two rows per image, x_t above and the predicted x0 below it."""
    steps = np.linspace(0, len(trajectory.timesteps) - 1, columns).round().astype(int)
    pairs = torch.stack([trajectory.noisy[steps], trajectory.denoised[steps]])  # (2, columns, B, C, H, W)
    image_grid(_pixels(pairs.permute(2, 0, 1, 3, 4, 5).flatten(0, 2)), columns, gap=0).save(path)


def save_gif(trajectory: Trajectory, path: str | Path, milliseconds: int = 80) -> None:
    """Save a film of the predicted x0 of all images, which rests on the last step."""
    frames = [image_grid(_pixels(x0), gap=0) for x0 in trajectory.denoised]
    rest = 1500
    durations = [milliseconds] * (len(frames) - 1) + [rest]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=2)


def _pixels(x: Tensor) -> np.ndarray:
    """Data (N, C, H, W) in [-1, 1] as uint8 (N, H, W, C)."""
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
