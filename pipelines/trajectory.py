"""Grids of images, and denoising trajectories as strips and GIFs."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from pipelines.arguments import brief, whole
from pipelines.base import IMAGE_CHANNELS
from pipelines.sampling import Trajectory


def image_grid(pixels: np.ndarray, columns: int | None = None, gap: int = 2) -> PIL.Image.Image:
    """A grid of images, row by row, apart by a gray line; where there is transparency, by a transparent one.

    Args:
        pixels: uint8 (N, H, W, C), C being 1, 3 or 4.
        columns: images per row; as many as make the grid square by default.
        gap: width of the lines in pixels.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for another shape or number of channels.
    """
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise TypeError(f"pixels: must be an array of uint8, got {getattr(pixels, 'dtype', type(pixels).__name__)}")
    if pixels.ndim != 4 or not pixels.size:
        raise ValueError(f"pixels: must be (N, H, W, C), is of shape {pixels.shape}")
    n, height, width, channels = pixels.shape
    if channels not in IMAGE_CHANNELS:
        raise ValueError(f"pixels: PIL has no image of {channels} channels; 1, 3 and 4 can be shown")
    columns = int(np.ceil(n**0.5)) if columns is None else whole("columns", columns)
    gap = whole("gap", gap, 0)
    rows = -(-n // columns)
    cells = np.full((rows * columns, height + gap, width + gap, channels), 0 if channels == 4 else 128, np.uint8)
    cells[:n, :height, :width] = pixels
    grid = cells.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + gap), columns * (width + gap), channels)
    grid = grid[: len(grid) - gap, : grid.shape[1] - gap]
    return PIL.Image.fromarray(grid[..., 0] if channels == 1 else grid)


def save_strip(trajectory: Trajectory, path: str | Path, columns: int = 10) -> None:
    """Save a strip of evenly spread steps: two rows per image, x_t above and the predicted x0 below it.

    Args:
        trajectory: of an output, which `return_trajectory=True` asks for.
        path: of an image file.
        columns: steps that are shown at most, at least 1.

    Raises:
        TypeError: for what is no trajectory, or an argument of another type.
        ValueError: for a path whose suffix PIL doesn't know, or too few columns.
    """
    _check_trajectory(trajectory, path)
    whole("columns", columns)
    columns = min(columns, len(trajectory.timesteps))
    steps = np.linspace(0, len(trajectory.timesteps) - 1, columns).round().astype(int)
    pairs = torch.stack([trajectory.noisy[steps], trajectory.denoised[steps]])  # (2, columns, B, C, H, W)
    image_grid(_pixels(pairs.permute(2, 0, 1, 3, 4, 5).flatten(0, 2)), columns, gap=0).save(path)


def save_gif(trajectory: Trajectory, path: str | Path, milliseconds: int = 80) -> None:
    """Save a film of the predicted x0 of all images, which rests on the last step for 1.5 seconds.

    Args:
        trajectory: of an output, which `return_trajectory=True` asks for.
        path: of a .gif.
        milliseconds: duration of a frame, at least 1.

    Raises:
        TypeError: for what is no trajectory, or an argument of another type.
        ValueError: for a path whose suffix PIL doesn't know, or too short a duration.
    """
    _check_trajectory(trajectory, path)
    whole("milliseconds", milliseconds)
    frames = [image_grid(_pixels(x0), gap=0) for x0 in trajectory.denoised]
    rest = 1500
    durations = [milliseconds] * (len(frames) - 1) + [rest]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=2)


def _check_trajectory(trajectory: Trajectory, path: str | Path) -> None:
    # By its fields: one that a published pipeline made is of a class of its own.
    if not all(isinstance(getattr(trajectory, name, None), Tensor) for name in ("timesteps", "noisy", "denoised")):
        kind = type(trajectory).__name__
        raise TypeError(f"trajectory: must be that of an output, which return_trajectory=True asks for, got {kind}")
    if not isinstance(path, str | Path):
        raise TypeError(f"path: must be a text or a Path, got {brief(path)}")
    if Path(path).suffix.lower() not in PIL.Image.registered_extensions():
        raise ValueError(f"path: PIL writes no files like {Path(path).name!r}; name a .png or .gif")


def _pixels(x: Tensor) -> np.ndarray:
    """Data (N, C, H, W) in [-1, 1] as uint8 (N, H, W, C)."""
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
