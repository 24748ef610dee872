"""Pictures of a text-to-image run's progress."""

from pathlib import Path

import numpy as np

from pipelines import TextToImagePipeline, image_generators, image_grid
from snowmelt.data.captions import Captions
from snowmelt.samples import few_steps
from snowmelt.text.options import TextToImageConfig

PROMPTS_FILE = "prompts.txt"


def grid_prompts(config: TextToImageConfig, captions: Captions) -> list[str]:
    """The prompts of the sample grids: those given, or the first captions, as many as a grid has images."""
    return config.validation_prompts or [
        captions.of(i % len(captions))[0] for i in range(min(config.eval_batch_size, len(captions)))
    ]


def prompt_grid(pipeline: TextToImagePipeline, path: Path, config: TextToImageConfig, prompts: list[str]) -> np.ndarray:
    """Sample an image of each prompt, the same noise every time, and save them as one picture and the prompts beside.

    Returns:
        The images, uint8 (N, H, W, C).
    """
    pipeline = few_steps(pipeline)
    output = pipeline(
        prompts,
        num_inference_steps=config.ddpm_num_inference_steps,
        generator=image_generators(config.seed, range(len(prompts))),
        output_type="np",
        return_dict=False,
    )
    pixels: np.ndarray = (output[0] * 255).round().astype(np.uint8)
    image_grid(pixels).save(path)
    (path.parent / PROMPTS_FILE).write_text("\n".join(prompts) + "\n")
    return pixels
