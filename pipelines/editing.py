"""Images to start from and to keep: SDEdit (Meng et al. 2022), restoration, and inpainting without training."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.arguments import MOST_STEPS, brief, real, real_tensor, whole
from pipelines.denoiser import Denoiser
from pipelines.prediction import NoiseLevel, Prediction
from pipelines.sampler import Sampler
from pipelines.sampling import OnStep


def estimate_noise_std(images: Tensor) -> Tensor:
    """Standard deviation (B,) of the white noise of images (B, C, H, W), in their units.

    The median of the absolute values of the finest diagonal Haar coefficients, over 0.6745 (Donoho & Johnstone 1994):
    edges are few among them. Noise that was cut off at the ends of the range is underestimated.

    Raises:
        TypeError: for what is no tensor of real numbers.
        ValueError: for another shape, or a side of 1 pixel.
    """
    real_tensor("images", images, "B, C, H, W")
    height, width = images.shape[2] // 2 * 2, images.shape[3] // 2 * 2
    if not height or not width:
        raise ValueError(f"images: of shape {tuple(images.shape)}; their noise shows in 2 x 2 pixels or more")
    x = images[..., :height, :width]
    diagonal = (x[..., ::2, ::2] - x[..., ::2, 1::2] - x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 2
    return diagonal.abs().flatten(1).quantile(0.5, dim=1) / 0.6745


def masked(denoiser: Denoiser, data: Tensor, mask: Tensor) -> Denoiser:
    """The denoiser, which knows the data where the mask is False.

    There its prediction is that they are what x_t was made of, so that any sampler takes x_t to them: with fresh noise
    where it adds some, as the replacement of Song et al. 2021 (score-based SDEs, appendix I.2) and of RePaint does.

    Args:
        denoiser: the network, with its conditions and guidance.
        data: (B, C, H, W).
        mask: bool (B, 1, H, W).
    """

    def denoise(x_t: Tensor, level: NoiseLevel) -> Prediction:
        prediction = denoiser(x_t, level)
        known = prediction.output_of(data, prediction.prediction_type)
        return prediction.with_output(torch.where(mask, prediction.output, known))

    return denoise


def repaint_evaluations(evaluations: range, jump_length: int, jump_n_sample: int) -> list[int]:
    """Numbers of the evaluations in RePaint's order (Lugmayr et al. 2022, appendix B): where they fall, x is noised.

    After every `jump_length` steps as many are undone and made again, until all but the first few were made
    `jump_n_sample` times.

    Args:
        evaluations: in their order.
        jump_length: at least 1.
        jump_n_sample: at least 1.
    """
    n, order = len(evaluations), []
    jumps = dict.fromkeys(range(0, n - jump_length, jump_length), jump_n_sample - 1)
    left = n  # steps to data
    while left:
        order.append(evaluations[n - left])
        left -= 1
        if jumps.get(left):
            jumps[left] -= 1
            left += jump_length
    return order


@torch.no_grad()
def repaint(
    denoiser: Denoiser,
    sampler: Sampler,
    x: Tensor,
    evaluations: list[int],
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: OnStep | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """The reverse process, with steps that are undone by noise and made again (Lugmayr et al. 2022, algorithm 1).

    What was made beside known pixels doesn't know them all yet; a second time it does.

    Args:
        denoiser: a masked one.
        sampler: whose steps depend on x alone.
        x: what it starts with, float32 (B, C, H, W); see `Sampler.start`.
        evaluations: their numbers, as `repaint_evaluations` orders them.
        generator: of the noise: one, or one per image.
        on_step: sees each step, and may change x.
        progress: wraps the numbers of the evaluations.

    Returns:
        Data, float32 (B, C, H, W).
    """
    following = evaluations[0]
    for i in progress(evaluations):
        if i < following:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = sampler.back(x, following, i, noise)
        prediction = denoiser(sampler.x_t(x, i), sampler.level(i))
        x = sampler.step(prediction, i, x)
        following = i + 1
        if on_step is not None:
            x = on_step(i, x, prediction)
    return x


def check_jumps(jump_length: Any, jump_n_sample: Any) -> tuple[int, int]:
    """The arguments of a pipeline as whole numbers, at least 1."""
    return whole("jump_length", jump_length, 1, MOST_STEPS), whole("jump_n_sample", jump_n_sample, 1, 1000)


def check_noise_std(value: Any, has_vae: bool) -> float:
    """The argument of a pipeline in units of data in [-1, 1]; None is 0.

    Args:
        value: in those of images in [0, 1].
        has_vae: whether an autoencoder stands between, which makes something else of noise.
    """
    if value is None:
        return 0.0
    if has_vae:
        raise ValueError("noise_std: is for models of pixels; an autoencoder makes something else of noise")
    return 2 * real("noise_std", value, 0, 1000)


def image_shape(image: Any) -> tuple[int, int]:
    """(H, W) of an `image`, which has been checked."""
    one = image[0] if isinstance(image, list) else image
    if isinstance(one, PIL.Image.Image):
        width, height = one.size
    else:
        height, width = one.shape[-2:] if isinstance(one, Tensor) or one.ndim == 2 else one.shape[-3:-1]
    return height, width


def read_mask(value: Any, shape: tuple[int, ...], batch: int) -> Tensor:
    """A `mask_image`, True where pixels are to be made: white, or 0.5 or more; bool (1 or B, 1, H, W).

    Args:
        value: PIL images, arrays (H, W), (H, W, 1) or (B, H, W, 1), tensors (H, W), (1, H, W) or (B, 1, H, W), or lists
            of them; of numbers in [0, 1] or bool.
        shape: (H, W), that of the images.
        batch: B.

    Raises:
        TypeError: for anything else.
        ValueError: for another size or number, or values out of range.
    """
    parts = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, PIL.Image.Image):
            one = np.asarray(one.convert("L"), dtype=np.float32)[..., None] / 255
        if not isinstance(one, np.ndarray | Tensor):
            raise TypeError(f"mask_image: must be PIL images, arrays or tensors, got {brief(one)}")
        numbers = torch.as_tensor(one)
        if numbers.ndim == 2:
            numbers = numbers[None, None]
        elif isinstance(one, np.ndarray) and numbers.ndim in (3, 4):
            numbers = numbers.movedim(-1, -3)
        numbers = numbers[None] if numbers.ndim == 3 else numbers
        if numbers.ndim != 4 or numbers.shape[1] != 1:
            raise ValueError(f"mask_image: of shape {tuple(one.shape)}; a mask has one channel")
        if tuple(numbers.shape[2:]) != shape:
            size, expected = ("{} x {}".format(*s) for s in (numbers.shape[2:], shape))
            raise ValueError(f"mask_image: of {size} pixels, and the image of {expected}; make them one size")
        if numbers.dtype != torch.bool:
            if not numbers.is_floating_point():
                raise TypeError(f"mask_image: must be bool or in [0, 1] in floating point, holds {numbers.dtype}")
            if not numbers.isfinite().all() or not 0 <= numbers.min() <= numbers.max() <= 1:
                raise ValueError("mask_image: holds values outside [0, 1]")
            numbers = numbers >= 0.5
        parts.append(numbers)
    mask = torch.cat(parts) if parts else torch.empty(0)
    if len(mask) not in (1, batch):
        raise ValueError(f"mask_image: {len(mask)} given for {batch} images; give one, or one per image")
    return mask
