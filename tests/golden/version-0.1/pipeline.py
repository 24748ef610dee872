"""Downloads that are checked: a byte that changed on its way is an error, not a model that is a little wrong."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name


class VerifiedDownloadMixin:
    """Base of pipelines whose files, when they have just been downloaded, are compared with the Hub's checksums.

    The Hub's client compares lengths. The checksums of a revision are one request more, and a look at each file, paid
    when something new came.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As diffusers does it.

        Raises:
            TypeError: for what is neither a folder nor a name.
            ValueError: for an empty name, or settings that the pipeline refuses.
            OSError: if there is no such pipeline, or a part of it can't be read.
        """
        source = pretrained_model_name_or_path
        if not isinstance(source, str | os.PathLike):
            raise TypeError(
                f"pretrained_model_name_or_path: must be a folder or a name on the Hub, got {type(source).__name__}"
            )
        if not str(source):
            raise ValueError("pretrained_model_name_or_path: is empty; give a folder or a name on the Hub")
        return super().from_pretrained(source, **kwargs)  # type: ignore[misc]

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """As diffusers does it, and verified.

        Raises:
            OSError: if a file isn't what the Hub holds. It is removed, so that the next call fetches it again.
        """
        cache = Path(kwargs.get("cache_dir") or constants.HF_HUB_CACHE)
        snapshots = cache / repo_folder_name(repo_id=pretrained_model_name, repo_type="model") / "snapshots"
        before = set(snapshots.glob("*/**/*"))
        folder = Path(super().download(pretrained_model_name, **kwargs))  # type: ignore[misc]
        if not set(folder.glob("**/*")) - before:
            return str(folder)
        try:
            mismatches = (
                HfApi()
                .verify_repo_checksums(
                    pretrained_model_name, revision=folder.name, cache_dir=cache, token=kwargs.get("token")
                )
                .mismatches
            )
        except BaseException:
            shutil.rmtree(folder)  # links to the files, which stay: the next call verifies them
            raise
        for mismatch in mismatches:
            path = folder / mismatch["path"]
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        if mismatches:
            names = ", ".join(mismatch["path"] for mismatch in mismatches)
            raise OSError(f"{pretrained_model_name}: {names} arrived damaged and was removed; load it again")
        return str(folder)


"""Pipelines that bring their own code: one file beside the weights, for machines that have diffusers alone."""

import ast
import inspect
import json
from pathlib import Path
from typing import Any, ClassVar


class SelfContainedMixin:
    """Base of pipelines whose folders anybody can load, with `DiffusionPipeline.from_pretrained` of diffusers.

    `save_pretrained` of diffusers writes the class's bare name and no source, which only code that knows the class can
    load. What is saved here has the list form, ["pipeline", class], with `pipeline.py` beside it: diffusers loads code
    and weights from one revision, with `trust_remote_code=True`. What a pipeline of diffusers samples just as well is
    saved as that pipeline, and needs no trust.
    """

    STOCK: ClassVar[dict[str, str]] = {}
    """Names of schedulers' classes, and of the pipelines of diffusers that sample plain networks with them."""

    # Read as the classes are made. Diffusers keeps the code of all repositories at one path, where the last one lies;
    # and whoever edits ours while a model is in training must not change what is saved with it.
    _OWN_FILE = Path(__file__).read_text()
    _PACKAGE = __name__.split(".")[0]
    _texts: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls._is_ours() and not cls._is_published():
            for base in cls._bases():
                if base.__module__ not in cls._texts:
                    cls._texts[base.__module__] = Path(inspect.getfile(base)).read_text()

    @classmethod
    def source(cls) -> str:
        """The modules of this class and its bases as one, base first, without the imports of each other.

        Raises:
            ValueError: if one of them imports a module of the package that holds none of the bases.
        """
        if cls._is_published():
            return cls._OWN_FILE
        package = cls.__module__.split(".")[0]
        modules = {base.__module__: cls._texts[base.__module__] for base in cls._bases()}
        parts = []
        for name, text in modules.items():
            lines = text.splitlines(keepends=True)
            for node in ast.parse(text).body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                    if node.module not in modules:
                        raise ValueError(f"{name} imports {node.module}, which a published {cls.__name__} won't have")
                    lines[node.lineno - 1 : node.end_lineno] = [""] * len(lines[node.lineno - 1 : node.end_lineno])
            parts.append("".join(lines).strip() + "\n")
        return "\n\n".join(parts)

    @classmethod
    def stock_class(cls, folder: str | Path, *, alike: bool = True) -> str | None:
        """The pipeline of diffusers that samples what a folder of `save_pretrained` holds, if there is one.

        Args:
            folder: of this pipeline, or of diffusers'.
            alike: None too where its default samples differ from this one's: `DDIMPipeline` steps with the noise of
                the x0 before clipping.
        """
        index = cls._read(Path(folder) / "model_index.json")
        scheduler = index.get("scheduler", ("", ""))[1]
        settings = {name for name in index if name[0] != "_"} - {"unet", "scheduler"}
        network = cls._read(Path(folder) / "unet/config.json")
        if settings or network.get("num_class_embeds") or network.get("class_embed_type"):
            return None
        clips = cls._read(Path(folder) / "scheduler/scheduler_config.json").get("clip_sample", True)
        return None if alike and scheduler == "DDIMScheduler" and clips else cls.STOCK.get(scheduler)

    @classmethod
    def complete(cls, folder: str | Path, *, stock: bool | None = None) -> None:
        """Turn a folder of diffusers' `save_pretrained` into one that diffusers loads: add pipeline.py, and name it.

        The paths that the parts were loaded from, which diffusers notes in their configurations, are left out.

        Args:
            folder: of the pipeline.
            stock: True for the pipeline of diffusers in place of this one, False for this one; None for that of
                diffusers where it samples alike.

        Raises:
            ValueError: if there is no pipeline of diffusers, and `stock` is True.
        """
        folder = Path(folder)
        cls.forget_paths(folder)
        index = cls._read(folder / "model_index.json")
        name = None if stock is False or not cls.STOCK else cls.stock_class(folder, alike=not stock)
        if stock and name is None:
            raise ValueError(f"stock: no pipeline of diffusers samples what {folder} holds")
        cls._write(folder / "model_index.json", index | {"_class_name": name or ["pipeline", cls.__name__]})
        if name is None:
            (folder / "pipeline.py").write_text(cls.source())
        else:
            (folder / "pipeline.py").unlink(missing_ok=True)  # what was saved here before

    @classmethod
    def forget_paths(cls, folder: Path) -> None:
        """Leave out, in a folder of `save_pretrained`, the paths that the parts were loaded from."""
        index = cls._read(folder / "model_index.json")
        paths = [path for name in index for path in sorted((folder / name).glob("*config.json"))]
        for path in [folder / "model_index.json", *paths]:
            values = cls._read(path)
            if values.pop("_name_or_path", None) is not None:
                cls._write(path, values)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values

    @staticmethod
    def _write(path: Path, values: dict[str, Any]) -> None:
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def _bases(cls) -> list[type]:
        """This class and its bases in the same package, base first."""
        package = cls.__module__.split(".")[0]
        return [base for base in reversed(cls.__mro__) if base.__module__.split(".")[0] == package]

    @classmethod
    def _is_ours(cls) -> bool:
        """Whether it is of this package: a class that somebody made of it elsewhere may need all that is there."""
        return cls.__module__.split(".")[0] == cls._PACKAGE

    @classmethod
    def _is_published(cls) -> bool:
        """Whether diffusers loaded this class from a published folder."""
        return cls.__module__.startswith("diffusers_modules.")

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As diffusers does it, and so that diffusers loads it."""
        super().save_pretrained(str(save_directory), *args, **kwargs)  # type: ignore[misc]
        if self._is_ours():
            self.complete(save_directory)

    def _upload_folder(self, working_dir: str | Path, *args: Any, **kwargs: Any) -> Any:
        """What diffusers' `push_to_hub` calls with what it has saved."""
        if self._is_ours():
            self.complete(working_dir)
        return super()._upload_folder(working_dir, *args, **kwargs)  # type: ignore[misc]


"""What a scheduler's x, and a network's output at it, say of the data: the algebra that all samplers share."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import KDPM2AncestralDiscreteScheduler
from torch import Tensor

Row = Callable[[Any, Tensor, Tensor], tuple[Any, Any]]
"""(scheduler, alpha, sigma) -> (a, b) of a prediction F = a x0 + b eps."""


class NoiseLevelsMixin:
    """Noise levels of any stock scheduler, and the conversion of predictions.

    Every network's output F = a x0 + b eps at x_t = alpha x0 + sigma eps is one row (a, b), so
    x0 = (b x_t - sigma F) / (alpha b - sigma a), and any prediction converts to the one a scheduler expects.
    """

    scheduler: Any
    config: Any

    @staticmethod
    def _edm_row(scheduler: Any, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """F = (x0 - c_skip x_t) / c_out (Karras et al. 2022, eq. 8)."""
        c_skip = scheduler.precondition_outputs(1.0, 0.0, sigma)
        c_out = scheduler.precondition_outputs(0.0, 1.0, sigma)
        return (1 - c_skip) / c_out, -c_skip * sigma / c_out

    ROWS: dict[str, Row] = {
        "epsilon": lambda scheduler, alpha, sigma: (0.0, 1.0),
        "sample": lambda scheduler, alpha, sigma: (1.0, 0.0),
        "v_prediction": lambda scheduler, alpha, sigma: (-sigma, alpha),
        "flow_prediction": lambda scheduler, alpha, sigma: (-1.0, 1.0),
        "edm": _edm_row,
    }

    def _noise_level(self, x: Tensor, i: int, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t = alpha x0 + sigma eps on the path of training, alpha, sigma; from the scheduler's x at step i."""
        scheduler = self.scheduler
        if not hasattr(scheduler, "sigmas"):  # DDPM, DDIM, PNDM: the variance-preserving chain at whole timesteps
            alpha2 = scheduler.alphas_cumprod[t]
            return x, alpha2.sqrt(), (1 - alpha2).sqrt()
        sigma = scheduler.sigmas[i]
        if self._expected == "flow_prediction":
            return x, 1 - sigma, sigma
        if self._expected == "edm":
            return x, torch.ones_like(sigma), sigma
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # DPM-Solver, UniPC, DEIS
            return x, *scheduler._sigma_to_alpha_sigma_t(sigma)
        # Euler and its kin keep x0 + sigma eps, and show the network that times alpha = (1 + sigma^2)^-1/2.
        if not getattr(scheduler, "state_in_first_order", True) and hasattr(scheduler, "sigmas_interpol"):
            # The half step of DPM-Solver-2; the ancestral kind keeps its levels one place earlier.
            sigma = scheduler.sigmas_interpol[i - isinstance(scheduler, KDPM2AncestralDiscreteScheduler)]
        alpha = (1 + sigma**2) ** -0.5
        return x * alpha, alpha, sigma * alpha

    def _network_time(self, i: int, t: Tensor) -> Tensor:
        """The time that the network was trained to see at step i."""
        if not self.scheduler.config.get("use_flow_sigmas"):
            return t
        # DPM-Solver and UniPC round a flow's times down to integers, which biases what the network predicts.
        return self.scheduler.sigmas[i].to(t.device) * self.scheduler.config.num_train_timesteps

    @property
    def _expected(self) -> str:
        """The prediction that the scheduler takes a network's output for."""
        if hasattr(self.scheduler, "precondition_outputs"):
            return "edm"
        return self.scheduler.config.get("prediction_type", "flow_prediction")

    def _convert(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x0, and the output as the scheduler expects it."""
        expected = self._expected
        predicted = self.config.get("prediction_type") or expected
        a, b = self.ROWS[predicted](self.scheduler, alpha, sigma)
        det = alpha * b - sigma * a
        # Where alpha vanishes, a predicted epsilon says nothing of x0: take the middle of its range.
        x0 = (b * x_t - sigma * output) / det if abs(det) > 1e-5 else torch.zeros_like(x_t)
        if predicted == expected:
            return x0, output
        a, b = self.ROWS[expected](self.scheduler, alpha, sigma)
        return x0, a * x0 + b * (x_t - alpha * x0) / sigma


"""Arguments of pipelines: of the type and in the range that they are documented with, or an error that names them."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor


class ArgumentsMixin:
    """The checks, all in one place. Each returns the value as the code uses it.

    They raise a TypeError for a value of another type, and a ValueError for one out of its range.
    """

    MOST = 2**31 - 1
    """Of what is counted: more than any memory holds."""
    MOST_STEPS = 100_000
    """Of a scheduler whose times are no whole numbers: far more than any image is worth."""

    @classmethod
    def _brief(cls, value: Any) -> str:
        """A value for use in a message: on one line, and short."""
        if isinstance(value, Tensor | np.ndarray):
            return f"{type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
        text = " ".join(repr(value).split())
        return text if len(text) <= 60 else f"{text[:57]}..."

    @classmethod
    def _whole(cls, name: str, value: Any, least: int = 1, most: int | None = None) -> int:
        """A whole number; bool, which Python takes for one, isn't."""
        try:
            if isinstance(value, bool | Tensor):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name}: must be a whole number, got {cls._brief(value)}") from None
        if number < least or (most is not None and number > most):
            allowed = (
                f"at least {least}"
                if most is None or (most == cls.MOST and number < least)
                else f"from {least} to {most}"
            )
            raise ValueError(f"{name}: must be {allowed}, got {number}")
        return number

    @classmethod
    def _real(cls, name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number."""
        try:
            if isinstance(value, bool | str | bytes | Tensor):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name}: must be a number, got {cls._brief(value)}") from None
        if not math.isfinite(number) or not low <= number <= high:
            bounds = {math.inf: f" of {low:g} or more"}.get(high, f" from {low:g} to {high:g}")
            raise ValueError(
                f"{name}: must be a finite number{bounds if low > -math.inf else ''}, got {cls._brief(value)}"
            )
        return number

    @classmethod
    def _flag(cls, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name}: must be True or False, got {cls._brief(value)}")
        return value

    @classmethod
    def _text(cls, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{name}: must be a text, got {cls._brief(value)}")
        return value

    @classmethod
    def _sequence(cls, name: str, value: Any, what: str) -> list[Any]:
        """A list, tuple, array or tensor of one dimension; a text, which Python takes for one of letters, isn't."""
        values = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
            raise TypeError(f"{name}: must be a list of {what}, got {cls._brief(value)}")
        if not values:
            raise ValueError(f"{name}: is empty; give {what}, or leave it out")
        return list(values)

    @classmethod
    def _real_tensor(cls, name: str, value: Any, axes: str) -> Tensor:
        """A tensor of finite real numbers with so many dimensions, as "B, C, H, W"."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: must be a tensor ({axes}), got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name}: must hold real numbers in floating point, holds {value.dtype}")
        if value.dim() != axes.count(",") + 1 or 0 in value.shape:
            raise ValueError(f"{name}: must be ({axes}), is of shape {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name}: holds values that are not finite")
        return value

    @classmethod
    def _numbers(cls, name: str, value: Any) -> Tensor:
        """A finite number, or several, float32 (1,) or (N,)."""
        given = value if isinstance(value, list | tuple) else [value]
        return torch.tensor([cls._real(name, number) for number in given], dtype=torch.float32)

    @classmethod
    def _interval(cls, name: str, value: Any) -> tuple[float, float]:
        """Lowest and highest sigma / alpha, the highest of which may be infinite."""
        if value is None:
            return 0.0, math.inf
        numbers = cls._sequence(name, value, "two numbers")
        if len(numbers) != 2:
            raise ValueError(f"{name}: must be two numbers, the lowest and the highest, got {cls._brief(value)}")
        low = cls._real(f"{name}[0]", numbers[0], 0)
        high = math.inf if numbers[1] == math.inf else cls._real(f"{name}[1]", numbers[1], 0)
        if low >= high:
            raise ValueError(f"{name}: the lowest must be less than the highest, got {cls._brief(value)}")
        return low, high

    @classmethod
    def _value_range(cls, value: Any) -> tuple[float, float]:
        """The values that -1 and 1 stand for."""
        numbers = cls._sequence("value_range", value, "two numbers")
        if len(numbers) != 2:
            raise ValueError(f"value_range: must be two numbers, the lowest and the highest, got {cls._brief(value)}")
        low, high = (cls._real("value_range", number) for number in numbers)
        if low >= high:
            raise ValueError(f"value_range: the lowest must be less than the highest, got {cls._brief(value)}")
        return low, high

    @classmethod
    def _check_parts(cls, unet: Any, scheduler: Any) -> None:
        """What every pipeline has."""
        if not isinstance(unet, torch.nn.Module):
            raise TypeError(f"unet: must be a network of diffusers, got {type(unet).__name__}")
        if not isinstance(scheduler, SchedulerMixin):
            raise TypeError(f"scheduler: must be a scheduler of diffusers, got {type(scheduler).__name__}")

    @classmethod
    def _times(cls, value: Any, num_train_timesteps: int, continuous: bool) -> list[float]:
        """Timesteps from noise to data: whole ones below T, or for a continuous process any up to T."""
        name = "timesteps"
        times = [cls._real(name, t) for t in cls._sequence(name, value, "timesteps")]
        if not continuous and any(t != int(t) for t in times):
            raise ValueError(f"{name}: must be whole numbers for this scheduler, got {cls._brief(value)}")
        low, high = (0, num_train_timesteps) if continuous else (-1, num_train_timesteps - 1)
        if not all(low < t <= high for t in times):
            allowed = f"above 0 and at most {high}" if continuous else f"from 0 to {high}"
            raise ValueError(f"{name}: must be {allowed}, got {cls._brief(value)}")
        if any(after >= before for before, after in zip(times, times[1:], strict=False)):
            raise ValueError(f"{name}: must decrease, from noise to data, got {cls._brief(value)}")
        return times if continuous else [int(t) for t in times]

    @classmethod
    def _attention_mask(cls, name: str, mask: Any, embeds: Tensor) -> Tensor:
        """(prompts, L) for text embeddings (prompts, L, D): 1, and 0 at padding; all 1 where it isn't given."""
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

    @classmethod
    def _check_image(cls, value: Any, smallest: int) -> None:
        """Images to start from: PIL's, arrays or tensors in [0, 1], or a list of one kind; no side below `smallest`."""
        given = value if isinstance(value, list) else [value]
        kinds = {next((k for k in (PIL.Image.Image, np.ndarray, Tensor) if isinstance(v, k)), None) for v in given}
        if len(kinds) != 1 or None in kinds:
            raise TypeError("image: must be a PIL image, an array, a tensor, or a list of one of these")
        if kinds == {PIL.Image.Image}:
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

    @classmethod
    def _generators(cls, value: Any, batch: int) -> Any:
        """None, a generator, or one for each image."""
        given = value if isinstance(value, list) else [value]
        for generator in given if value is not None else []:
            if not isinstance(generator, torch.Generator):
                raise TypeError(f"generator: must be a torch.Generator or a list of them, got {cls._brief(value)}")
        if isinstance(value, list) and len(value) != batch:
            raise ValueError(f"generator: {len(value)} given for {batch} images; give one, or one per image")
        return value

    @classmethod
    def _callback(cls, value: Any) -> Any:
        if value is not None and not callable(value):
            raise TypeError(f"callback_on_step_end: must be a function, got {cls._brief(value)}")
        return value

    @classmethod
    def _callback_latents(cls, returned: Any, x: Tensor) -> Tensor:
        """What a callback puts in the place of x_t."""
        name = "callback_on_step_end"
        if not isinstance(returned, Mapping):
            kind = type(returned).__name__
            raise TypeError(f"{name}: must return a dict, as {{}} or {{'latents': x}}, returned {kind}")
        latents = returned.get("latents", x)
        if latents is x:
            return x
        cls._real_tensor(f"{name}: 'latents' that it returned", latents, "B, C, H, W")
        if latents.shape != x.shape:
            raise ValueError(
                f"{name}: 'latents' that it returned are of shape {tuple(latents.shape)}, not {tuple(x.shape)}"
            )
        return latents.to(x.device, x.dtype)


"""The reverse process: from noise to data with any stock scheduler, shared by all pipelines."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor



@dataclass
class Trajectory:
    """What a sampler saw and thought, network evaluation by network evaluation; float32 tensors on the CPU.

    Attributes:
        timesteps: the times that the network was shown, (N,).
        noisy: x_t scaled to alpha^2 + sigma^2 = 1, where all kinds of scheduler look alike, (N, B, C, H, W).
        denoised: the data x0 that the network expected at x_t, about [-1, 1], (N, B, C, H, W).
    """

    timesteps: Tensor
    noisy: Tensor
    denoised: Tensor


@dataclass
class SamplingOutput(BaseOutput):
    """Generated images, and how they came about where that was asked for.

    Attributes:
        images: B PIL images, or an array (B, H, W, C) or tensor (B, C, H, W) in [0, 1].
        trajectory: the evaluations, for `return_trajectory=True`.
    """

    images: list[PIL.Image.Image] | np.ndarray | Tensor
    trajectory: Trajectory | None = None


class ReverseProcessPipeline(
    ArgumentsMixin, NoiseLevelsMixin, SelfContainedMixin, VerifiedDownloadMixin, DiffusionPipeline
):
    """Base of pipelines: `denoise` runs the scheduler, `to_images` ends the way."""

    PICTURE_CHANNELS = (1, 3, 4)
    LIBRARIES = ("diffusers", "transformers")
    OUTPUT_TYPES: tuple[str, ...] = ("pil", "np", "pt")

    # Methods name nothing else of this module: diffusers runs the code of all published pipelines in one namespace.
    _output_class = SamplingOutput
    _trajectory_class = Trajectory

    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    @torch.no_grad()
    def denoise(
        self,
        network: Any,
        shape: tuple[int, int, int, int],
        condition: dict[str, Tensor],
        null_condition: dict[str, Tensor] | None = None,
        *,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        num_inference_steps: int = 50,
        timesteps: list[float] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        image: Tensor | None = None,
        strength: float = 1.0,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        return_trajectory: bool = False,
    ) -> tuple[Tensor, Trajectory | None]:
        """Run the scheduler from noise to data.

        Args:
            network: called as `network(x, t, **condition, return_dict=False)`; has a `dtype`.
            shape: (B, C, H, W) of the data.
            condition: keyword arguments of the network, tensors of B rows.
            null_condition: the same for no condition; needed unless `guidance_scale` is 1.
            image: data of that shape to start from instead of noise, with noise of the level at which `strength` of
                the steps are left.

        The other arguments are those of the pipelines' `__call__`.

        Returns:
            Data of that shape, float32, and the trajectory if asked for.

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that don't fit the scheduler or each other, or if the samples overflow.
        """
        scheduler = self.scheduler
        scale = self._real("guidance_scale", guidance_scale)
        rescale = self._real("guidance_rescale", guidance_rescale, 0, 1)
        lowest, highest = self._interval("guidance_interval", guidance_interval)
        generator = self._generators(generator, shape[0])
        step_arguments = self._step_arguments(self._real("eta", eta, 0, 1), generator)
        names = self._callback_names(callback_on_step_end_tensor_inputs)
        self._callback(callback_on_step_end)
        strength = self._real("strength", strength, 0, 1)
        self._set_timesteps(num_inference_steps, timesteps)
        noise = self._noise(shape, generator, latents)
        first, x = self._start(noise, image, strength)
        seen: list[tuple[Tensor, ...]] = []
        for i, t in enumerate(self.progress_bar(scheduler.timesteps[first:]), first):
            x_t, alpha, sigma = self._noise_level(x, i, t)
            guided = scale != 1 and lowest < sigma / alpha <= highest
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            time = self._network_time(i, t)
            null = null_condition if guided else None
            output = self._predict(network, scaled, time, condition, null, scale, rescale)
            x0, output = self._convert(output, x_t, alpha, sigma)
            x = scheduler.step(output, t, x, **step_arguments, return_dict=False)[0]
            if return_trajectory:
                seen.append((time.float().cpu(), (x_t / torch.hypot(alpha, sigma)).cpu(), x0.cpu()))
            if callback_on_step_end is not None:
                tensors = {"latents": x, "pred_original_sample": x0}
                x = self._callback_latents(callback_on_step_end(self, i - first, t, {k: tensors[k] for k in names}), x)
        self.maybe_free_model_hooks()
        if not x.isfinite().all():
            raise ValueError(
                f"samples: not finite after {len(scheduler.timesteps)} steps of {type(scheduler).__name__} with a "
                f"{network.dtype} network; take more steps, another scheduler or float32"
            )
        return x, self._trajectory_class(*map(torch.stack, zip(*seen, strict=True))) if return_trajectory else None

    def to_images(self, x0: Tensor, output_type: str) -> list[PIL.Image.Image] | np.ndarray | Tensor:
        """Data (B, C, H, W) in [-1, 1] as "pil" images, or as "np" (B, H, W, C) or "pt" tensor in [0, 1].

        Raises:
            ValueError: for another `output_type`, or for "pil" where PIL has no mode of that many channels.
        """
        self._real_tensor("x0", x0, "B, C, H, W")
        self._check_output_type(output_type, x0.shape[1])
        x0 = (x0 / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return x0
        array = x0.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "np":
            return array
        pixels = (array * 255).round().astype(np.uint8)
        return [PIL.Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]

    @classmethod
    def _dict_from_json_file(cls, json_file: str) -> dict[str, Any]:
        """A configuration; that of a published pipeline names its module too, whose place this class takes."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        for name, value in config.items():
            # diffusers would import whatever module is named there, one of the current folder for instance.
            named = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and name[0] != "_"
            if named and value[0] not in cls.LIBRARIES:
                raise ValueError(f"{name}: must be a class of {', '.join(cls.LIBRARIES)}, is {value}")
        return config

    def _check_output_type(self, output_type: str, channels: int) -> None:
        if self._text("output_type", output_type) not in self.OUTPUT_TYPES:
            raise ValueError(f"output_type: {self._brief(output_type)} is not one of {', '.join(self.OUTPUT_TYPES)}")
        if output_type == "pil" and channels not in self.PICTURE_CHANNELS:
            raise ValueError(f"output_type: no PIL image has {channels} channels; use output_type='np' or 'pt'")

    def _check_prediction_type(self, prediction_type: str | None) -> None:
        if prediction_type is not None and self._text("prediction_type", prediction_type) not in self.ROWS:
            raise ValueError(f"prediction_type: {prediction_type!r} is not one of {', '.join(self.ROWS)}")

    def _step_arguments(self, eta: float, generator: Any) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        if eta and "eta" not in accepted:
            raise ValueError(f"eta: {type(self.scheduler).__name__} takes none; DDIMScheduler does")
        # Where DDIM clips the predicted x0, it must step with the noise that fits the clipped one, as its authors' code
        # does; diffusers does so only if it is asked to.
        arguments = {"eta": eta, "generator": generator, "use_clipped_model_output": True}
        return {name: value for name, value in arguments.items() if name in accepted}

    def _callback_names(self, names: list[str] | None) -> list[str]:
        names = self._sequence("callback_on_step_end_tensor_inputs", ["latents"] if names is None else names, "names")
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            allowed = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs: {self._brief(unknown[0])} is not among {allowed}")
        return names

    def _set_timesteps(self, num_inference_steps: int, timesteps: list[float] | None) -> None:
        scheduler, device = self.scheduler, self._execution_device
        accepted = inspect.signature(scheduler.set_timesteps).parameters
        if self._expected not in self.ROWS:
            allowed = ", ".join(self.ROWS)
            raise ValueError(f"scheduler: its prediction_type {self._expected!r} is not one of {allowed}")
        continuous = self._expected in ("flow_prediction", "edm")
        trained = scheduler.config.num_train_timesteps
        if timesteps is None:
            most = self.MOST_STEPS if continuous else trained
            scheduler.set_timesteps(self._whole("num_inference_steps", num_inference_steps, 1, most), device=device)
        elif "timesteps" not in accepted:
            raise ValueError(
                f"timesteps: {type(scheduler).__name__} takes no list; DDPM, EulerDiscrete, HeunDiscrete, "
                "DPMSolverMultistep, DPMSolverSinglestep and FlowMatchEulerDiscrete do"
            )
        elif self._expected == "flow_prediction" and "sigmas" not in accepted:
            raise ValueError(
                f"timesteps: {type(scheduler).__name__} takes no list of a flow; FlowMatchEulerDiscrete does"
            )
        elif self._expected == "flow_prediction":
            # Given as times, the sigmas alone would go through the scheduler's shift, and the two disagree.
            sigmas = [t / trained for t in self._times(timesteps, trained, continuous)]
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            scheduler.set_timesteps(timesteps=self._times(timesteps, trained, continuous), device=device)
        if hasattr(scheduler, "set_begin_index"):
            # Else the first step searches its index by value, and may find a later step of the same timestep.
            scheduler.set_begin_index(0)

    def _noise(self, shape: tuple[int, ...], generator: Any, latents: Tensor | None) -> Tensor:
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        elif tuple(self._real_tensor("latents", latents, "B, C, H, W").shape) != tuple(shape):
            raise ValueError(f"latents: of shape {tuple(latents.shape)}, but {tuple(shape)} is to be generated")
        return latents.to(self._execution_device, torch.float32)

    def _start(self, noise: Tensor, image: Tensor | None, strength: float) -> tuple[int, Tensor]:
        """The number of the first step and the scheduler's x there: noise, or a noised image (Meng et al. 2022)."""
        scheduler = self.scheduler
        if image is None:
            return 0, noise * getattr(scheduler, "init_noise_sigma", 1.0)
        # Of second-order schedulers each step but the last has two timesteps; PNDM repeats the second of its own.
        repeats = hasattr(scheduler, "plms_timesteps")
        steps = -((len(scheduler.timesteps) - repeats) // -scheduler.order)
        left = int(steps * strength)
        if not 1 <= left <= steps:
            raise ValueError(f"strength: {strength} of {steps} steps is {left}; it must be from 1 / {steps} to 1")
        first = (steps - left) * scheduler.order
        # Two count the steps that they have taken, and so must be told that their schedule begins here.
        if repeats and first:
            rest, first = scheduler.timesteps[first + 1 :], 0
            scheduler.timesteps = torch.cat([rest[:2], rest[1:]])
        if hasattr(scheduler, "derivatives"):
            scheduler.timesteps, scheduler.sigmas, first = scheduler.timesteps[first:], scheduler.sigmas[first:], 0
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        factor, alpha, sigma = self._noise_level(torch.ones_like(noise), first, scheduler.timesteps[first])
        return first, (alpha * image + sigma * noise) / factor

    def _predict(
        self,
        network: Any,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor],
        null_condition: dict[str, Tensor] | None,
        scale: float,
        rescale: float = 0.0,
    ) -> Tensor:
        """The network's output, guided away from the null condition if given (Ho & Salimans 2022, eq. 6).

        `rescale` of the way, its deviation over each image is that of the output without guidance (Lin et al. 2024,
        eqs. 15 and 16).
        """
        x = x.to(network.dtype)
        if null_condition is None:
            return network(x, t, **condition, return_dict=False)[0].float()
        both = {k: torch.cat([null_condition[k], v]) for k, v in condition.items()}
        null, conditional = network(torch.cat([x, x]), t, **both, return_dict=False)[0].float().chunk(2)
        guided = null + scale * (conditional - null)
        if not rescale:
            return guided
        ratio = conditional.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
        return guided * (rescale * ratio + 1 - rescale)


"""Where a network works: in pixels, or in the latent space of an autoencoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor



class DataSpacePipeline(ReverseProcessPipeline):
    """Base of pipelines whose `unet` makes images, or what an autoencoder `vae` turns into images."""

    unet: Any
    vae: Any = None
    PIXELS_PER_PASS = 2**20  # of the autoencoder: 16 images of 256 x 256

    @classmethod
    def shift_and_scale(cls, vae: Any) -> tuple[Tensor, Tensor]:
        """(shift, scale), float32 (1, c or 1, 1, 1): an autoencoder's z is (z - shift) * scale to the network.

        They are what diffusers reads in the autoencoder's configuration: `scaling_factor` with `shift_factor`, or with
        `latents_mean` and `latents_std` for each channel.

        Raises:
            TypeError: for what are no numbers there.
            ValueError: for numbers that aren't finite, or a scale of 0.
        """
        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = config.get("shift_factor") or 0.0, 1.0
        shift, std = (cls._numbers("vae", v).reshape(1, -1, 1, 1) for v in (mean, std))
        scale = cls._numbers("vae: scaling_factor", config.get("scaling_factor", 1.0)) / std
        if not scale.isfinite().all() or not scale.all():
            raise ValueError(f"vae: its latents are scaled by {scale.flatten().tolist()}, which can't be undone")
        return shift, scale

    @staticmethod
    def downsampling(vae: Any) -> int:
        """Side of the square of pixels that one latent stands for."""
        blocks = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]
        return 2 ** (len(blocks) - 1)

    @property
    def channels(self) -> int:
        """Of the images."""
        if self.vae is None:
            return self.unet.config.in_channels
        return self.vae.config.get("out_channels") or self.vae.config["in_channels"]

    @property
    def pixels_per_cell(self) -> int:
        """Side of the square of pixels that one place in the network's data stands for."""
        return 1 if self.vae is None else self.downsampling(self.vae)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The network's data (B, c, h, w) of images (B, C, H, W) in [-1, 1]: the mean, where encoding is random.

        Raises:
            TypeError: for what is no tensor of real numbers.
            ValueError: for another shape, or if latents overflow in float32 too.
        """
        self._check_data("images", images, self.channels, self.pixels_per_cell)
        if self.vae is None:
            return images

        def encode(part: Tensor) -> Tensor:
            encoded = self.vae.encode(part, return_dict=False)[0]
            return encoded if isinstance(encoded, Tensor) else encoded.mode()

        shift, scale = (t.to(images.device) for t in self.shift_and_scale(self.vae))
        latents = self._in_passes(encode, images, images.shape[2] * images.shape[3])
        return (latents.to(images.device) - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), float32 in about [-1, 1], of the network's data (B, c, h, w).

        Raises:
            TypeError: for what is no tensor of real numbers.
            ValueError: for another shape, or if the images overflow in float32 too.
        """
        self._check_data("latents", latents, self.unet.config.in_channels, 1)
        if self.vae is None:
            return latents
        shift, scale = (t.to(latents.device) for t in self.shift_and_scale(self.vae))
        z = latents.float() / scale + shift
        pixels = z.shape[2] * z.shape[3] * self.pixels_per_cell**2
        return self._in_passes(lambda part: self.vae.decode(part, return_dict=False)[0], z, pixels)

    def _check_data(self, name: str, values: Any, channels: int, factor: int) -> None:
        """Of images and latents: that many channels, and sides of which the autoencoder makes whole cells."""
        shape = self._real_tensor(name, values, "B, C, H, W").shape
        if shape[1] != channels or shape[2] % factor or shape[3] % factor:
            sides = f" and sides that are multiples of {factor}" if factor > 1 else ""
            raise ValueError(f"{name}: of shape {tuple(shape)}; must have {channels} channels{sides}")

    def _in_passes(self, run: Callable[[Tensor], Tensor], values: Tensor, pixels: int) -> Tensor:
        """What the autoencoder makes of values (B, ...), float32, few enough of them at a time for its activations.

        It runs in its own precision, but in float32 where that overflows or is known to (`force_upcast`).

        Args:
            run: a pass of it.
            values: images or latents.
            pixels: of an image.

        Raises:
            ValueError: if the result overflows in float32 too.
        """
        vae, own = self.vae, self.vae.dtype
        parts = values.to(self._execution_device).split(max(1, self.PIXELS_PER_PASS // pixels))
        upcast = own == torch.float16 and vae.config.get("force_upcast")
        try:
            for dtype in [torch.float32] if upcast else dict.fromkeys([own, torch.float32]):
                torch.nn.Module.to(vae, dtype)  # its own `to` would warn of modules to keep in float32: it has none
                made = torch.cat([run(part.to(dtype)).float() for part in parts])
                if made.isfinite().all():
                    return made
        finally:
            torch.nn.Module.to(vae, own)
            self.maybe_free_model_hooks()
        raise ValueError(f"images: not finite when {type(vae).__name__} makes them or reads them; are they its own?")

    def _finish(self, x0: Tensor, trajectory: Trajectory | None, output_type: str) -> SamplingOutput:
        """What is returned for the network's data (B, c, h, w)."""
        if output_type == "latent":
            return self._output_class(x0, trajectory)
        if trajectory is not None and self.vae is not None:
            steps = (trajectory.noisy, trajectory.denoised)
            decoded = [torch.stack([self.decode(latents).cpu() for latents in step]) for step in steps]
            trajectory = self._trajectory_class(trajectory.timesteps, *decoded)
        return self._output_class(self.to_images(self.decode(x0), output_type), trajectory)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the network's data for those of images."""
        cell = self.pixels_per_cell
        trained = self.unet.config.sample_size
        default = (trained, trained) if isinstance(trained, int | None) else trained
        factor = cell * 2 ** (len(self.unet.config.block_out_channels) - 1)
        size = []
        for name, given, cells in zip(("height", "width"), (height, width), default, strict=True):
            if given is None and cells is None:
                raise ValueError(f"{name}: needed, since the network doesn't say which size it was trained for")
            side = cells * cell if given is None else self._whole(name, given, 1, self.MOST)
            if side % factor:
                raise ValueError(f"{name}: {side} is not a multiple of {factor}, by which the network divides it")
            size.append(side // cell)
        return size[0], size[1]


"""Class labels: numbers or names in, the network's keyword arguments out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


ClassLabels = int | str | Sequence[int] | Sequence[str] | Tensor
"""One label for all images or one for each, as numbers or as names."""


class ClassLabelsMixin(ArgumentsMixin):
    """What a pipeline knows of its classes: `config.id2label` and the rows of the network's label table.

    A network trained with dropped labels has a last row for the null class, the condition of no label.
    """

    config: Any

    @classmethod
    def _int_keys(cls, id2label: dict[Any, str] | None) -> dict[int, str] | None:
        """`id2label` as it was before JSON made its keys strings."""
        if id2label is None:
            return None
        if not isinstance(id2label, Mapping):
            raise TypeError(f"id2label: must map numbers to names, got {cls._brief(id2label)}")
        names = {}
        for key, name in id2label.items():
            number = int(key) if isinstance(key, str) and key.isdecimal() else key
            names[cls._whole("id2label", number, 0)] = cls._text("id2label", name)
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"id2label: must name the classes from 0 to {len(names) - 1}, names {sorted(names)}")
        return names

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes, where they are known."""
        return self.config.get("id2label")

    def _num_classes(self, num_embeds: int | None) -> int:
        """Classes that can be asked for; without names, the last row is taken for the null class."""
        if num_embeds is None:
            return 0
        return len(self.id2label) if self.id2label else num_embeds - 1

    def _label_conditions(
        self, class_labels: ClassLabels | None, num_embeds: int | None, batch_size: int, device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Keyword arguments of the network for the labels (B,) and for the null class, None if there is none.

        Raises:
            TypeError: for labels that are neither whole numbers nor names.
            ValueError: for labels that the network doesn't know, that don't match the batch, or are missing.
        """
        if num_embeds is None:
            if class_labels is not None:
                raise ValueError("class_labels: this model is unconditional; leave them out")
            return {}, None
        known = self._num_classes(num_embeds)
        has_null = num_embeds == known + 1
        null = {"class_labels": torch.full((batch_size,), known, device=device)} if has_null else None
        if class_labels is None:
            if null is None:
                raise ValueError(f"class_labels: this model needs them: {self._allowed(known)}")
            return null, null
        ids = self._label_ids(class_labels, known)
        if len(ids) not in (1, batch_size):
            raise ValueError(f"class_labels: {len(ids)} given for {batch_size} images; give one, or one per image")
        return {"class_labels": torch.tensor(ids, device=device).expand(batch_size)}, null

    def _label_ids(self, class_labels: ClassLabels, known: int) -> list[int]:
        given: Any = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
        by_name = {name: i for i, name in (self.id2label or {}).items()}
        one = isinstance(given, int | float | str)
        labels = [given] if one else self._sequence("class_labels", given, "numbers or names")
        ids = []
        for label in labels:
            number = by_name.get(label, -1) if isinstance(label, str) else self._whole("class_labels", label, -(2**63))
            if not 0 <= number < known:
                raise ValueError(f"class_labels: {self._brief(label)} is not among {self._allowed(known)}")
            ids.append(number)
        return ids

    def _allowed(self, known: int) -> str:
        names = list((self.id2label or {}).values())
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return f"0 to {known - 1}" + (f" ({shown})" if names else "")


"""What pipelines around a UNet2DModel share: labels, guidance, sizes and the call."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor



class UNetPipeline(ClassLabelsMixin, DataSpacePipeline):
    """Unconditional or class-conditional generation; what the network makes is the images, or stands for them.

    Args:
        unet: the network.
        scheduler: any stock scheduler of the family that the network was trained for; see `make_scheduler`.
        prediction_type: what the network predicts, where the scheduler can't be told: "epsilon", "sample" or
            "v_prediction" on the path of a flow-matching or EDM scheduler. None: what the scheduler expects.
        value_range: the values of float data that -1 and 1 stand for; in images of [0, 1] they are 0 and 1.
        id2label: names of the classes by number. A row of the network's label table beyond them is the null class.

    Raises:
        TypeError: for parts or settings of another type.
        ValueError: for an unknown `prediction_type`, or settings that don't fit the network.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self._check_parts(unet, scheduler)
        self._check_prediction_type(prediction_type)
        names = self._int_keys(id2label)
        embeds = unet.config.num_class_embeds
        if names and not len(names) <= (embeds or 0) <= len(names) + 1:
            raise ValueError(
                f"id2label: names {len(names)} classes, and the network has {embeds or 'no'} rows for them"
            )
        self.register_modules(unet=unet, scheduler=scheduler)
        optional = {
            "prediction_type": prediction_type,
            "id2label": names,
            "value_range": None if value_range is None else self._value_range(value_range),
        }
        # Only what is set: diffusers' own pipelines then load a plain model without a word.
        self.register_to_config(**{k: v for k, v in optional.items() if v is not None})

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for; 0 for an unconditional model."""
        return self._num_classes(self.unet.config.num_class_embeds)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: ClassLabels | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int = 50,
        timesteps: list[float] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        return_trajectory: bool = False,
    ) -> SamplingOutput | tuple:
        """Generate images.

        Args:
            batch_size: B, the number of images.
            class_labels: one label for all images or B of them, as numbers or names; None: the null class.
            guidance_scale: 1 for none; else null + scale * (conditional - null) (Ho & Salimans 2022, eq. 6).
            guidance_interval: guide only where lo < sigma / alpha <= hi (Kynkäänniemi et al. 2024).
            num_inference_steps: steps of the scheduler, of which some evaluate the network twice.
            timesteps: a list of times to use instead, where the scheduler takes one.
            eta: noise of DDIM, from 0 (none) to 1 (as DDPM) (Song et al. 2021, eq. 16).
            generator: one, or B of them, which makes an image independent of its batch.
            latents: the initial noise, unit normal, (B, c, h, w): the network's channels, and for each side that of the
                images, divided by an autoencoder's factor where there is one.
            height: of the images in pixels; the trained size by default.
            width: of the images in pixels; the trained size by default.
            output_type: "pil", or "np" for an array (B, H, W, C) or "pt" for a tensor (B, C, H, W) in [0, 1]; with an
                autoencoder also "latent", for what the network made (B, c, h, w).
            return_dict: False for a tuple of the output's fields.
            callback_on_step_end: called as f(pipeline, step, timestep, tensors); "latents" in the dict it
                returns replace x_t.
            callback_on_step_end_tensor_inputs: which it sees, of "latents" (the default) and
                "pred_original_sample".
            return_trajectory: also return x_t and the predicted x0 of every evaluation, decoded as the images are.

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that fit neither the model nor the scheduler.
        """
        config = self.unet.config
        self._whole("batch_size", batch_size, 1, self.MOST)
        self._real("guidance_scale", guidance_scale)
        self._flag("return_dict", return_dict)
        self._flag("return_trajectory", return_trajectory)
        self._check_output_type(output_type, self.channels)
        shape = (batch_size, config.in_channels, *self._size(height, width))
        condition, null = self._label_conditions(
            class_labels, config.num_class_embeds, batch_size, self._execution_device
        )
        if guidance_scale != 1 and null is None:
            raise ValueError("guidance_scale: must be 1, since this model was not trained with dropped labels")
        x0, trajectory = self.denoise(
            self.unet,
            shape,
            condition,
            null,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            eta=eta,
            generator=generator,
            latents=latents,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            return_trajectory=return_trajectory,
        )
        output = self._finish(x0, trajectory, output_type)
        return output if return_dict else output.to_tuple()


"""Pictures straight from a UNet2DModel."""



class PixelDiffusionPipeline(UNetPipeline):
    """Unconditional or class-conditional generation in pixel space: what the network makes are the images."""

    STOCK = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}
