"""Images of a text-to-image run's progress."""

import math
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines import image_generators, image_grid
from pipelines.text2img import TextPipeline
from snowmelt.data.encoded_captions import AnyCaptions
from snowmelt.sample_grids import few_steps
from snowmelt.text.options import TextToImageConfig

PROMPTS_FILE, CAPTIONED_FILE = "prompts.txt", "prompts.png"
"""Beside the grids: their prompts, and the newest images, each over its prompt."""

CELL = 112
"""Pixels that an image in a captioned grid is wide at least; smaller ones are enlarged."""

FONT_SIZE, LINE_HEIGHT, GAP = 11, 14, 8


def grid_prompts(config: TextToImageConfig, captions: AnyCaptions) -> list[str]:
    """The prompts of the images of a sample grid: those given, or the first captions."""
    if config.validation_prompts:
        return [prompt for prompt in config.validation_prompts for _ in range(config.num_validation_images)]
    return [captions.of(i % len(captions))[0] for i in range(min(config.eval_batch_size, len(captions)))]


def prompt_grid(pipeline: TextPipeline, path: Path | None, config: TextToImageConfig, prompts: list[str]) -> np.ndarray:
    """Sample an image of each prompt, the same noise every time, and save them as one.

    Args:
        pipeline: the pipeline; of discrete time, it samples by DDIM from then on.
        path: of the image file; the prompts, and the images over them, are saved beside it. None to save nothing.
        config: number of steps and seed.
        prompts: N texts.

    Returns:
        The images, uint8 (N, H, W, C).
    """
    pipeline = few_steps(pipeline)
    output = pipeline(
        prompts,
        num_inference_steps=config.ddpm_num_inference_steps or pipeline.default_steps,
        generator=image_generators(config.seed, range(len(prompts))),
        output_type="np",
        return_dict=False,
    )
    pixels: np.ndarray = (output[0] * 255).round().astype(np.uint8)
    if path is None:
        return pixels
    image_grid(pixels).save(path)
    (path.parent / PROMPTS_FILE).write_text("\n".join(prompts) + "\n")
    captioned_grid(pixels, prompts).save(path.parent / CAPTIONED_FILE)
    return pixels


def captioned_grid(pixels: np.ndarray, captions: list[str], columns: int | None = None) -> Image.Image:
    """A grid of images, each over its caption, on white.

    Args:
        pixels: uint8 (N, H, W, C), C being 1, 3 or 4.
        captions: N of them; a line break begins a new line, and so does what is too long.
        columns: images per row; as many as make the grid square by default.
    """
    n, height, width, channels = pixels.shape
    scale = math.ceil(CELL / width)
    columns = columns or math.ceil(n**0.5)
    font = ImageFont.load_default(FONT_SIZE)
    letters = int(scale * width / font.getlength("n"))
    texts = ["\n".join(textwrap.fill(line, letters) for line in caption.splitlines()) for caption in captions]
    lines = max(text.count("\n") for text in texts) + 1
    place = (scale * width + GAP, scale * height + lines * LINE_HEIGHT + GAP)
    grid = Image.new("RGB", (columns * place[0] + GAP, math.ceil(n / columns) * place[1] + GAP), "white")
    pen = ImageDraw.Draw(grid)
    for i, (image, text) in enumerate(zip(pixels, texts, strict=True)):
        x, y = GAP + i % columns * place[0], GAP + i // columns * place[1]
        enlarged = Image.fromarray(image[..., 0] if channels == 1 else image).convert("RGBA")
        enlarged = enlarged.resize((scale * width, scale * height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (x, y), enlarged)
        pen.multiline_text((x, y + scale * height + 2), text, "black", font, spacing=2)
    return grid
