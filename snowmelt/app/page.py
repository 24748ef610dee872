"""The page of one model: its controls, those alone that mean something to it, and its actions in tabs."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import gradio
import PIL.Image

from snowmelt.app.actions import Actions, refused
from snowmelt.app.card import Card
from snowmelt.app.model import OWN, Model, Settings
from snowmelt.app.style import CSS, HEAD, THEME

WAITING = 32
"""Calls in the queue; whoever comes after them is refused with a line."""
KEPT = 600
"""Seconds after which files of users are removed."""
LARGEST_FILE = "8mb"
LARGEST_IMAGE = 4096 * 4096
"""Pixels of a file that is decoded."""
CANVAS = 512
"""Pixels, the longer side of what is painted on."""
MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}


def make_page(model: Model, card: Card) -> gradio.Blocks:
    """The page, its queue set up; `launch` it with `launch_options`."""
    actions = Actions(model)
    with gradio.Blocks(title=card.title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gradio.Markdown(f"# {card.title}\n{card.summary}", elem_id="title")
        with gradio.Row(elem_id="columns"):
            with gradio.Column(scale=2, min_width=280):
                settings = _controls(model, actions, card)
            with gradio.Column(scale=5, min_width=320), gradio.Tabs():
                given = _sample_tab(model, actions, settings)
                if model.edits:
                    _edit_tab(model, actions, settings)
                if model.between:
                    with gradio.Tab("Interpolate"):
                        gradio.Markdown("Images on the way from the seed to another, by a deterministic sampler.")
                        other = gradio.Number(1, label="Other seed", precision=0)
                        _action(actions.interpolate, settings, {"other_seed": other}, "Interpolate")
                with gradio.Tab("Denoising"):
                    gradio.Markdown("How images come about: x_t above, the predicted x0 below it.")
                    _action(actions.strip, settings, given, "Show the steps", columns=1)
                _compare_tab(model, actions, settings, given)
                with gradio.Tab("Model card"):
                    gradio.Markdown(card.text, elem_id="card")
                    if card.images:
                        gradio.Gallery(
                            card.images,
                            format="png",
                            columns=2,
                            object_fit="contain",
                            show_label=False,
                            elem_classes="images",
                        )
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def launch_options() -> dict[str, Any]:
    """Arguments of `launch`."""
    return {
        "css": CSS,
        "head": HEAD,
        "theme": THEME,
        "max_file_size": LARGEST_FILE,
        "footer_links": ["api", "settings"],
        "ssr_mode": False,
        "share": False,
        "enable_monitoring": False,
    }


def _controls(model: Model, actions: Actions, card: Card) -> dict[str, Any]:
    """The settings, by name; those that mean nothing to the model are there for the API alone, and aren't shown."""
    limits = model.limits
    controls: dict[str, Any] = {
        "prompt": gradio.Textbox("", label="Prompt", visible=model.by_text, lines=2, max_length=1000),
        "negative_prompt": gradio.Textbox("", label="Negative prompt", visible=model.by_text, max_length=1000),
        "class_label": gradio.Dropdown(
            [("all in turn", ""), *((name, name) for name in model.classes)],
            value="",
            label="Class",
            visible=bool(model.classes),
        ),
        "num_images": _slider(1, limits.images, 4, step=1, label="Images"),
    }
    with gradio.Row(elem_classes="seed"):
        controls["seed"] = gradio.Number(0, label="Seed", precision=0, scale=3, min_width=120)
        another = gradio.Button("Another", scale=1, min_width=80, size="md")
    controls["num_inference_steps"] = _slider(
        1, limits.steps, min(model.usual_steps, limits.steps), step=1, label="Steps"
    )
    guidance = model.usual_guidance if card.guidance is None else card.guidance
    controls["guidance_scale"] = _slider(
        0, 15, guidance, step=0.05, label="Guidance", info="1 for none", visible=model.is_guided
    )
    with gradio.Accordion("Sampler", open=False):
        controls["scheduler"] = gradio.Dropdown(
            _samplers(model, actions), value=OWN, label="Predictor" if model.by_score else "Scheduler"
        )
        controls["eta"] = _slider(
            0, 1, 0, step=0.05, label="Eta", info="noise of DDIM; 1 as DDPM", visible=model.takes_eta(OWN)
        )
        with gradio.Row(visible=model.takes_size):
            for name, side in (("height", model.height), ("width", model.width)):
                controls[name] = gradio.Number(side, label=name.title(), precision=0, min_width=100)
    controls["scheduler"].change(
        lambda name: gradio.update(value=0, visible=model.takes_eta(name)),
        controls["scheduler"],
        controls["eta"],
        api_visibility="private",
        queue=False,
    )
    another.click(None, None, controls["seed"], js="() => Math.floor(Math.random() * 2 ** 31)")
    return {field.name: controls[field.name] for field in fields(Settings)}


def _slider(*args: Any, **kwargs: Any) -> Any:
    """A slider whose range is checked with all other settings, where the error names it."""
    slider: Any = gradio.Slider(*args, **kwargs)
    slider.preprocess = lambda payload: payload
    return slider


def _samplers(model: Model, actions: Actions) -> list[tuple[str, str]]:
    return [(actions.sampler_name(name), name) for name in model.samplers]


def _sample_tab(model: Model, actions: Actions, settings: dict[str, Any]) -> dict[str, Any]:
    """The first tab; the image that is given to a model that makes images of others, for other tabs."""
    with gradio.Tab("Sample"):
        given = {}
        if model.condition is not None:
            said = "paint over what is missing" if model.condition.mask_channels else model.condition.spec
            given["image"] = _editor(model, f"Image to start from ({said})")
        _action(actions.sample, settings, given, "Sample")
    return given


def _edit_tab(model: Model, actions: Actions, settings: dict[str, Any]) -> None:
    with gradio.Tab("From an image"):
        gradio.Markdown("Varies the image; where you paint over it, that alone is made anew and the rest is kept.")
        extra = {
            "image": _editor(model, "Image"),
            "strength": _slider(0, 1, 0.8, step=0.05, label="Strength", info="1 forgets what was there"),
        }
        take = gradio.Button("Take a sample of the model", size="sm")
        _action(actions.edit, settings, extra, "Make variations")

        def taken(*values: Any) -> Any:
            one = Settings(**dict(zip(settings, values, strict=True)) | {"num_images": 1})
            *_, (images, _, _) = _stopped_by_errors(actions.sample, one)
            image = images[0][0].convert("RGBA")
            factor = max(1, CANVAS // max(image.size))
            enlarged = image.resize((factor * image.width, factor * image.height), PIL.Image.Resampling.NEAREST)
            return {"background": enlarged, "layers": [], "composite": None}

        take.click(taken, [*settings.values()], extra["image"], api_visibility="private", **MODEL_QUEUE)


def _compare_tab(model: Model, actions: Actions, settings: dict[str, Any], given: dict[str, Any]) -> None:
    with gradio.Tab("Compare"):
        what = "predictors" if model.by_score else "schedulers"
        gradio.Markdown(f"The same seed by several {what}, each with several numbers of steps.")
        few = model.usual_steps < 10
        usual = [name for name in (OWN, "ddim", "dpmsolver++", "unipc", "edm-heun") if name in model.samplers][:3]
        extra = {
            "schedulers": gradio.Dropdown(
                _samplers(model, actions),
                value=usual if len(usual) > 1 else model.samplers[:3],
                multiselect=True,
                label=what.title(),
            ),
            "step_counts": gradio.Textbox("1, 2, 4" if few else "5, 10, 20", label="Numbers of steps", max_length=100),
        }
        _action(actions.compare, settings, extra | given, "Compare", columns=3)


def _editor(model: Model, label: str) -> Any:
    height, width = (round(CANVAS * side / max(model.height, model.width)) for side in (model.height, model.width))
    paints = model.condition is None or model.condition.mask_channels
    editor: Any = gradio.ImageEditor(
        label=label,
        type="pil",
        format="png",
        sources=["upload", "clipboard"],
        transforms=(),
        layers=False,
        canvas_size=(width, height),
        fixed_canvas=True,
        brush=gradio.Brush(CANVAS // 12, colors=["#ff2d78"], color_mode="fixed") if paints else False,
        eraser=None if paints else False,
        buttons=["fullscreen"],
        elem_classes="editor",
    )
    decoded = editor.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return decoded(payload)
        except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise gradio.Error("image: can't be read; give a PNG or JPEG file", print_exception=False) from error

    editor.preprocess = preprocess
    return editor


def _action(
    function: Callable[..., Iterator[Any]],
    settings: dict[str, Any],
    extra: dict[str, Any],
    label: str,
    columns: int = 4,
) -> None:
    """The button of an action, one that stops it, and what it shows. In the API it has the function's name."""
    with gradio.Row():
        start = gradio.Button(label, variant="primary", scale=4, min_width=140)
        stop = gradio.Button("Stop", scale=1, min_width=80)
    status = gradio.HTML("", label="Status", elem_classes="status", padding=False)
    gallery = gradio.Gallery(
        format="png",
        columns=columns,
        object_fit="contain",
        label="Images",
        show_label=False,
        interactive=False,
        elem_classes=["pixels"] + ["one"] * (columns == 1),
        buttons=["download", "fullscreen"],
    )
    download = gradio.DownloadButton("Zip of all", interactive=False, size="sm")
    names = [*settings, *extra]

    def stream(*values: Any) -> Iterator[Any]:
        given = dict(zip(names, values, strict=True))
        own = Settings(**{name: given.pop(name) for name in settings})
        for images, line, path in _stopped_by_errors(function, own, **given):
            yield images, line, path or gradio.skip()

    # The API calls arguments by these names.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    stream.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    stream.__doc__ = function.__doc__
    running = start.click(
        stream,
        [*settings.values(), *extra.values()],
        [gallery, status, download],
        api_name=function.__name__,
        show_progress="minimal",
        show_progress_on=status,
        **MODEL_QUEUE,
    )
    hidden: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    running.success(lambda: gradio.update(interactive=True), None, download, **hidden)
    # What has begun ends at its next step, since nobody takes its images any more.
    stopped = stop.click(None, cancels=[running], **hidden)
    stopped.then(lambda: "<p>stopped</p>", None, status, **hidden)


def _stopped_by_errors(function: Callable[..., Iterator[Any]], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """What an action shows; what it refuses is a line on the page."""
    try:
        yield from function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        raise gradio.Error(refused(error), print_exception=False) from error
