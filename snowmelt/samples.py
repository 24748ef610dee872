"""Pictures of a run's progress."""

from pathlib import Path

import numpy as np
from diffusers import DDPMScheduler
from diffusers.utils import make_image_grid

from pipelines import PixelDiffusionPipeline, image_generators, make_scheduler


def sample_grid(
    pipeline: PixelDiffusionPipeline, *, num_images: int, num_inference_steps: int, seed: int, path: Path
) -> np.ndarray:
    """Sample images 0 to num_images - 1 of a seed, classes in turn, and save them as one picture.

    Discrete-time models are sampled by DDIM, which needs few steps. Images with neither 1, 3 nor 4 channels are
    saved as `.npy` instead.

    Returns:
        The images, float32 (N, H, W, C) in [0, 1].
    """
    pipeline.set_progress_bar_config(disable=True)
    if isinstance(pipeline.scheduler, DDPMScheduler):
        pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler)
    classes = len(pipeline.id2label or {})
    output = pipeline(
        batch_size=num_images,
        class_labels=[i % classes for i in range(num_images)] if classes else None,
        num_inference_steps=num_inference_steps,
        generator=image_generators(seed, range(num_images)),
        output_type="np",
        return_dict=False,
    )
    images: np.ndarray = output[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    if images.shape[-1] not in (1, 3, 4):
        np.save(path.with_suffix(".npy"), images)
        return images
    columns = classes if classes and num_images % classes == 0 else int(np.ceil(num_images**0.5))
    blank = np.zeros_like(images[:1]).repeat(-num_images % columns, axis=0)
    pictures = pipeline.numpy_to_pil(np.concatenate([images, blank]))
    make_image_grid(pictures, len(pictures) // columns, columns).save(path)
    return images
