"""Arguments of pipelines: of the type and in the range that they are documented with, or an error that names them.

Each check returns the value as the code uses it. It raises a TypeError for a value of another type, and a ValueError
for one out of its range.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from pipelines.backbones import backbone_of

MOST = 2**31 - 1
"""Of what is counted: more than any memory holds."""
MOST_STEPS = 100_000
"""Of a scheduler whose times are no whole numbers: far more than any image is worth."""


def brief(value: Any) -> str:
    """A value for use in a message: on one line, and short."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """The value as an int; bool, which Python takes for a whole number, isn't one.

    Args:
        name: of the argument, for messages.
        value: of any type with `__index__`, such as numpy's integers.
        least: the smallest allowed.
        most: the largest allowed; None for no limit.
    """
    try:
        if isinstance(value, bool | Tensor):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: must be a whole number, got {brief(value)}") from None
    if number < least or (most is not None and number > most):
        allowed = (
            f"at least {least}" if most is None or (most == MOST and number < least) else f"from {least} to {most}"
        )
        raise ValueError(f"{name}: must be {allowed}, got {number}")
    return number


def real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """The value as a finite float.

    Args:
        name: of the argument, for messages.
        value: of any type that float() converts, but for bool, texts and tensors.
        low: the smallest allowed.
        high: the largest allowed.
    """
    try:
        if isinstance(value, bool | str | bytes | Tensor):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: must be a number, got {brief(value)}") from None
    if not math.isfinite(number) or not low <= number <= high:
        bounds = {math.inf: f" of {low:g} or more"}.get(high, f" from {low:g} to {high:g}")
        raise ValueError(f"{name}: must be a finite number{bounds if low > -math.inf else ''}, got {brief(value)}")
    return number


def boolean(name: str, value: Any) -> bool:
    """The value, True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: must be True or False, got {brief(value)}")
    return value


def string(name: str, value: Any) -> str:
    """The value, a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: must be a text, got {brief(value)}")
    return value


def sequence(name: str, value: Any, what: str) -> list[Any]:
    """The values of a list, tuple, array or tensor of one dimension, at least one; a text isn't a list of letters.

    Args:
        name: of the argument, for messages.
        value: to be checked.
        what: its elements in the plural, for messages.
    """
    values = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise TypeError(f"{name}: must be a list of {what}, got {brief(value)}")
    if not values:
        raise ValueError(f"{name}: is empty; give {what}, or leave it out")
    return list(values)


def real_tensor(name: str, value: Any, axes: str) -> Tensor:
    """The value, a tensor of finite floating-point numbers and no empty dimension.

    Args:
        name: of the argument, for messages.
        value: to be checked.
        axes: its dimensions, as "B, C, H, W".
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: must be a tensor ({axes}), got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: must hold real numbers in floating point, holds {value.dtype}")
    if value.dim() != axes.count(",") + 1 or 0 in value.shape:
        raise ValueError(f"{name}: must be ({axes}), is of shape {tuple(value.shape)}")
    if not value.isfinite().all():
        raise ValueError(f"{name}: holds values that are not finite")
    return value


def real_numbers(name: str, value: Any) -> Tensor:
    """A finite number, or a list of them, as float32 (1,) or (N,)."""
    given = value if isinstance(value, list | tuple) else [value]
    return torch.tensor([real(name, number) for number in given], dtype=torch.float32)


def check_interval(name: str, value: Any) -> tuple[float, float]:
    """The lowest and the highest sigma / alpha, at least 0; the highest may be infinite. None: 0 and infinity."""
    if value is None:
        return 0.0, math.inf
    numbers = sequence(name, value, "two numbers")
    if len(numbers) != 2:
        raise ValueError(f"{name}: must be two numbers, the lowest and the highest, got {brief(value)}")
    low = real(f"{name}[0]", numbers[0], 0)
    high = math.inf if numbers[1] == math.inf else real(f"{name}[1]", numbers[1], 0)
    if low >= high:
        raise ValueError(f"{name}: the lowest must be less than the highest, got {brief(value)}")
    return low, high


def check_value_range(value: Any) -> tuple[float, float]:
    """The two values that -1 and 1 stand for, ascending."""
    numbers = sequence("value_range", value, "two numbers")
    if len(numbers) != 2:
        raise ValueError(f"value_range: must be two numbers, the lowest and the highest, got {brief(value)}")
    low, high = (real("value_range", number) for number in numbers)
    if low >= high:
        raise ValueError(f"value_range: the lowest must be less than the highest, got {brief(value)}")
    return low, high


def check_parts(network: Any, scheduler: Any, component: str = "unet") -> None:
    """Refuse parts of a pipeline that are no network, one of another kind, or no scheduler of diffusers.

    Args:
        network: the network.
        scheduler: the scheduler.
        component: the pipeline's name for the network.
    """
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"{component}: must be a network of diffusers, got {type(network).__name__}")
    backbone = backbone_of(network)
    if backbone is not None and backbone.component != component:
        raise TypeError(
            f"{component}: a {type(network).__name__} goes into pipelines that call it `{backbone.component}`"
        )
    if not isinstance(scheduler, SchedulerMixin):
        raise TypeError(f"scheduler: must be a scheduler of diffusers, got {type(scheduler).__name__}")


def check_timesteps(value: Any, num_train_timesteps: int, continuous: bool) -> list[float]:
    """Decreasing timesteps, from noise to data.

    Args:
        value: a list of them.
        num_train_timesteps: T.
        continuous: whether they are real numbers in (0, T]; else they are whole ones in [0, T - 1].
    """
    name = "timesteps"
    times = [real(name, t) for t in sequence(name, value, "timesteps")]
    if not continuous and any(t != int(t) for t in times):
        raise ValueError(f"{name}: must be whole numbers for this scheduler, got {brief(value)}")
    low, high = (0, num_train_timesteps) if continuous else (-1, num_train_timesteps - 1)
    if not all(low < t <= high for t in times):
        allowed = f"above 0 and at most {high}" if continuous else f"from 0 to {high}"
        raise ValueError(f"{name}: must be {allowed}, got {brief(value)}")
    if any(after >= before for before, after in zip(times, times[1:], strict=False)):
        raise ValueError(f"{name}: must decrease, from noise to data, got {brief(value)}")
    return times if continuous else [int(t) for t in times]


def check_attention_mask(name: str, mask: Any, embeds: Tensor) -> Tensor:
    """The mask (prompts, L) of text embeddings: 1, and 0 at padding, with a 1 in each row.

    Args:
        name: of the argument, for messages.
        mask: of that shape; None for 1 everywhere.
        embeds: the text embeddings, (prompts, L, D).
    """
    shape = embeds.shape[:2]
    if mask is None:
        return torch.ones(shape, dtype=torch.long, device=embeds.device)
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: must be a tensor of 0 and 1, got {type(mask).__name__}")
    if mask.shape != shape or not ((mask == 0) | (mask == 1)).all() or not mask.any(1).all():
        raise ValueError(
            f"{name}: of shape {tuple(mask.shape)}; must be {tuple(shape)} as the embeddings, of 0 and 1, with "
            "a token in each row"
        )
    return mask


def check_image(value: Any, smallest: int) -> None:
    """Refuse all but PIL images, arrays and tensors in [0, 1], and lists of a kind; and sides below `smallest`."""
    given = value if isinstance(value, list) else [value]
    kinds = {next((k for k in (PIL.Image.Image, np.ndarray, Tensor) if isinstance(v, k)), None) for v in given}
    if len(kinds) != 1 or None in kinds:
        raise TypeError("image: must be a PIL image, an array, a tensor, or a list of one of these")
    if kinds == {PIL.Image.Image}:
        deep = next((image.mode for image in given if image.mode[0] in "IF"), None)
        if deep is not None:  # PIL's conversions would cut off what is above 255
            raise ValueError(f"image: a PIL image of mode {deep}, which isn't of 8 bits; give an array in [0, 1]")
        sides = [side for image in given for side in image.size]
    else:
        shapes = {tuple(image.shape) for image in given}
        if len(shapes) > 1:
            raise ValueError(f"image: of different shapes, {' and '.join(map(str, sorted(shapes)))}; make them one")
        (shape,) = shapes
        if not (2 if kinds == {np.ndarray} else 3) <= len(shape) <= 4:
            raise ValueError(f"image: of shape {shape}, which is no image")
        sides = list(shape[-2:] if kinds == {Tensor} or len(shape) == 2 else shape[-3:-1])
    if min(sides) < smallest:
        raise ValueError(f"image: has a side of {min(sides)} pixels; the network divides by {smallest}")
    for image in given if kinds != {PIL.Image.Image} else []:
        numbers = torch.as_tensor(image)
        if not numbers.is_floating_point():
            raise TypeError(f"image: must be in [0, 1] in floating point, holds {numbers.dtype}; divide it")
        if not numbers.isfinite().all() or not 0 <= numbers.min() <= numbers.max() <= 1:
            raise ValueError("image: holds values outside [0, 1]")


def check_generators(value: Any, batch: int) -> Any:
    """The value: None, a generator, or a list of one for each of `batch` images."""
    given = value if isinstance(value, list) else [value]
    for generator in given if value is not None else []:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: must be a torch.Generator or a list of them, got {brief(value)}")
    if isinstance(value, list) and len(value) != batch:
        raise ValueError(f"generator: {len(value)} given for {batch} images; give one, or one per image")
    return value


def check_callback(value: Any) -> Any:
    """The value: None, or something that can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"callback_on_step_end: must be a function, got {brief(value)}")
    return value


def check_callback_latents(returned: Any, x: Tensor) -> Tensor:
    """The x_t to continue with, (B, C, H, W): the "latents" that a callback returned, or else x."""
    name = "callback_on_step_end"
    if not isinstance(returned, Mapping):
        kind = type(returned).__name__
        raise TypeError(f"{name}: must return a dict, as {{}} or {{'latents': x}}, returned {kind}")
    latents = returned.get("latents", x)
    if latents is x:
        return x
    real_tensor(f"{name}: 'latents' that it returned", latents, "B, C, H, W")
    if latents.shape != x.shape:
        raise ValueError(
            f"{name}: 'latents' that it returned are of shape {tuple(latents.shape)}, not {tuple(x.shape)}"
        )
    return latents.to(x.device, x.dtype)
