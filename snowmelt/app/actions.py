"""What the buttons of the page do: settings in; images, a line on them and a zip of them out, step by step."""

import html
import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from pipelines import image_generators, save_strip, slerp
from snowmelt.app.model import OWN, Model, Preview, Settings
from snowmelt.app.watched import Report, watched
from snowmelt.errors import UserError, one_line

Captioned = tuple[PIL.Image.Image, str]
Shown = tuple[list[Captioned], str, str | None]
"""Images with captions, a line of HTML on them, and the path of a zip; None while they are made."""

PAINTED = 0.25
"""Fraction of a pixel of the model that must be painted over for it to be made anew."""
STRIP_IMAGES = 4


class Actions:
    """The actions of one model, each of which is given the page's settings first.

    Args:
        model: the model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def sample(self, settings: Settings, image: Any = None) -> Iterator[Shown]:
        """Images of noise, or those that the model makes of a given one.

        Args:
            settings: of the images.
            image: as `gradio.ImageEditor` gives it, for a model that makes images of others.
        """
        return self._run(settings, lambda report: self._sampled(settings, report, **self._given(image)))

    def edit(self, settings: Settings, image: Any = None, strength: float = 0.8) -> Iterator[Shown]:
        """Variations of an image, or of what is painted over.

        Args:
            settings: of the images.
            image: as `gradio.ImageEditor` gives it.
            strength: the fraction of the steps that are left to the image.
        """

        def work(report: Report) -> list[Captioned]:
            picture, mask = self._read(image)
            painted = {} if mask is None else {"mask_image": mask}
            return self._sampled(settings, report, image=picture, strength=strength, **painted)

        return self._run(settings, work)

    def interpolate(self, settings: Settings, other_seed: int) -> Iterator[Shown]:
        """Images on the way from the first image of one seed to that of another.

        Args:
            settings: of the images, and the first seed.
            other_seed: the second.
        """

        def work(report: Report) -> list[Captioned]:
            self.model.limits.check(replace(settings, seed=other_seed))
            if self.model.classes and not settings.class_label:
                raise UserError("class_label: choose a class; all images between two seeds are of one")
            if settings.num_images < 2:
                raise UserError("num_images: 1 is no way from one seed to another; take 2 or more")
            first, second = (self._noise(settings, seed) for seed in (settings.seed, other_seed))
            count = int(settings.num_images)
            latents = torch.stack([slerp(first, second, i / (count - 1)) for i in range(count)])
            straight = replace(settings, scheduler=self.model.between or OWN, eta=0.0)
            images = self.model.sample(straight, self._previews(report), latents=latents).images
            return [(image, f"{i / (count - 1):.0%}") for i, image in enumerate(images)]

        return self._run(settings, work)

    def strip(self, settings: Settings, image: Any = None) -> Iterator[Shown]:
        """How images come about: for each of the first, x_t above and the predicted x0 below.

        Args:
            settings: of the images.
            image: as `sample` takes it.
        """
        few = replace(settings, num_images=min(settings.num_images, STRIP_IMAGES))

        def work(report: Report) -> list[Captioned]:
            given = self._given(image)
            output = self.model.sample(few, self._previews(report), return_trajectory=True, **given)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "strip.png"
                save_strip(output.trajectory, path, columns=min(10, len(output.trajectory.timesteps)))
                with PIL.Image.open(path) as strip:
                    strip.load()
            return [(strip, "noise on the left; x_t above, the predicted x0 below")]

        return self._run(few, work)

    def compare(
        self, settings: Settings, schedulers: list[str], step_counts: str, image: Any = None
    ) -> Iterator[Shown]:
        """The first image of the seed by several samplers, with several numbers of steps each.

        Args:
            settings: of the image, but for these two.
            schedulers: names of samplers.
            step_counts: numbers, apart by commas.
            image: as `sample` takes it.
        """

        def work(report: Report) -> list[Captioned]:
            pairs = [(name, steps) for name in schedulers for steps in read_counts(step_counts)]
            most = self.model.limits.columns
            if not 1 <= len(pairs) <= most:
                raise UserError(
                    f"schedulers, step_counts: are {len(pairs)} images; take 1 to {most}, schedulers times step counts"
                )
            given = self._given(image)
            found: list[Captioned] = []
            for name, steps in pairs:
                eta = settings.eta if self.model.takes_eta(name) else 0.0
                one = replace(settings, num_images=1, scheduler=name, num_inference_steps=steps, eta=eta)
                (image_of_it,) = self.model.sample(one, self._previews(report, found), **given).images
                found.append((image_of_it, f"{name}, {steps} step{'s' * (steps > 1)}"))
            return found

        return self._run(settings, work)

    def sampler_name(self, name: str) -> str:
        """A sampler as it is shown."""
        own = type(self.model.scheduler).__name__.removesuffix("Scheduler")
        return f"its own ({own})" if name == OWN else name

    def _run(self, settings: Settings, work: Callable[[Report], list[Captioned]]) -> Iterator[Shown]:
        start = time.monotonic()
        for result in watched(work, self.model.lock):
            if isinstance(result, tuple):  # a report
                yield *result, None
                continue
            seconds = time.monotonic() - start
            line = f"{len(result)} image{'s' * (len(result) > 1)} in {seconds:.1f} s"
            with tempfile.TemporaryDirectory() as folder:  # gradio has copied the file when it asks for more
                yield result, f"<p>{line}</p>", str(_zipped(result, Path(folder), settings))

    def _sampled(self, settings: Settings, report: Report, **arguments: Any) -> list[Captioned]:
        images = self.model.sample(settings, self._previews(report), **arguments).images
        return [(image, "") for image in images]

    def _previews(self, report: Report, before: list[Captioned] | None = None) -> Report:
        """What reports previews as they are shown, after images that are done."""
        start = time.monotonic()

        def shown(preview: Preview | None) -> None:
            if preview is None:
                report(None)
                return
            left = (time.monotonic() - start) / preview.step * (preview.steps - preview.step)
            line = f"step {preview.step} of {preview.steps}, {left:.0f} s left"
            bar = f'<progress value="{preview.step}" max="{preview.steps}"></progress>'
            report(([*(before or []), *((image, "") for image in preview.images)], f"<p>{bar} {line}</p>"))

        return shown

    def _given(self, image: Any) -> dict[str, Any]:
        """Arguments of a model that makes images of others."""
        condition = self.model.condition
        if condition is None:
            return {}
        picture, mask = self._read(image)
        if condition.mask_channels and mask is None:
            raise UserError("image: paint over what is to be made anew")
        return {"image": picture} | ({"mask_image": mask} if condition.mask_channels else {})

    def _read(self, editor: Any) -> tuple[PIL.Image.Image, PIL.Image.Image | None]:
        """The image of an editor as the model knows images, and what of it is painted over, white; None for nothing."""
        background = editor and editor.get("background")
        if background is None or background.getchannel("A").getbbox() is None:
            raise UserError("image: needed; give one")
        box = background.getchannel("A").getbbox()  # of a canvas that the image doesn't fill
        picture = self.model.fitted(background.crop(box))
        mask = np.zeros((picture.height, picture.width), bool)
        for layer in editor["layers"]:
            painted = layer.convert("RGBA").getchannel("A").crop(box)
            fitted = PIL.ImageOps.fit(painted, picture.size, PIL.Image.Resampling.BOX)
            mask |= np.asarray(fitted) >= 255 * PAINTED
        return picture, PIL.Image.fromarray(mask) if mask.any() else None

    def _noise(self, settings: Settings, seed: int) -> torch.Tensor:
        """Of the first image of a seed, (c, h, w)."""
        pipeline = self.model.pipeline
        (generator,) = image_generators(int(seed), [0])
        height, width = (int(side) // pipeline.vae_scale_factor for side in (settings.height, settings.width))
        return torch.randn((pipeline.data_channels, height, width), generator=generator)


def read_counts(text: str) -> list[int]:
    """Numbers that are apart by commas or spaces.

    Raises:
        UserError: for anything else.
    """
    words = str(text).replace(",", " ").split()
    if not all(word.isdecimal() and word.isascii() and len(word) < 10 for word in words):
        raise UserError(f"step_counts: must be numbers apart by commas, such as 5, 10, 20, is {str(text)[:80]!r}")
    return [int(word) for word in words]


def refused(error: Exception) -> str:
    """What is said of settings that were refused, for HTML: names of flags are names of settings here."""
    return html.escape(one_line(error).removeprefix("--"), quote=False)


def _zipped(images: list[Captioned], folder: Path, settings: Settings) -> Path:
    """A zip of the images as numbered PNGs, and of the settings."""
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, (image, caption) in enumerate(images):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            name = "".join(c if c.isalnum() or c in "+-. " else "_" for c in caption).replace(" ", "-")
            archive.writestr(f"{i:06d}{'-' * bool(name)}{name}.png", buffer.getvalue())
        archive.writestr("settings.txt", "".join(f"{name}: {value}\n" for name, value in vars(settings).items()))
    return path
