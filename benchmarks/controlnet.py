"""A ControlNet of edges beside the text-to-image model that it was trained for, on scenes that training never saw.

    python -m benchmarks.controlnet [--model runs/scenes] [--steps 1000] [--num_images 200] [--scales 0 0.5 1]

For each `controlnet_conditioning_scale`, 0 being the model by itself: how often samples are right in what the caption
says, of seen combinations and of held-out ones; how near they are to the scenes whose edges they were given (PSNR and
SSIM), and how near the samples' own edges are to these (PSNR). "Another colour" keeps the edges and has the colour of
each thing changed in the caption, so that the layout must come of the image and the colours of the text. In
--output_dir it leaves pairs.png: scenes, their edges, a row for each scale, and one for other colours.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from benchmarks.real_images import picture
from benchmarks.scripts import NATIVE_DTYPE, run, trained
from pipelines import image_generators
from snowmelt.data.scenes.drawing import draw
from snowmelt.data.scenes.wording import Prompt, describe
from snowmelt.data.scenes.world import COLOURS, KINDS, Scene, draw_scene
from snowmelt.evaluation.alignment import alignment
from snowmelt.image_conditions import call_arguments
from snowmelt.loading import load_pipeline

BATCH, SHOWN = 50, 12
NAMES = list(COLOURS)
NEXT_COLOUR = dict(zip(NAMES, NAMES[1:] + NAMES[:1], strict=True))


def recoloured(scene: Scene) -> Scene:
    """The same things in other colours."""
    return replace(scene, things=tuple(replace(t, colour=NEXT_COLOUR[str(t.colour)]) for t in scene.things))


def as_images(scenes: list[Scene], side: int) -> Tensor:
    """(N, 3, side, side) in [0, 1]."""
    drawn = [Image.fromarray(draw(scene)).resize((side, side), Image.Resampling.BILINEAR) for scene in scenes]
    return torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).movedim(-1, 1) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--condition", default="edges")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--num_images", type=int, default=200, help="of each sort")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/controlnet"))
    args = parser.parse_args()
    side = load_pipeline(str(args.model)).network.config.sample_size
    folder = args.output_dir / args.condition.replace(":", "-")
    if not trained(folder):
        data = {"dataset_name": "scenes", "resolution": side, "condition": args.condition, "controlnet": True}
        length = {"max_train_steps": args.steps, "train_batch_size": 16, "learning_rate": 5e-4, "lr_warmup_steps": 50}
        run("train_text2img.py", pretrained_model_name_or_path=args.model, output_dir=folder, save_images_epochs=0,
            overwrite_output_dir=True, caption_dropout=0.1, **data, **length)  # fmt: skip
    pipeline: Any = load_pipeline(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    condition: Any = pipeline.condition

    def edges(images: Tensor) -> Tensor:
        degraded: Tensor = condition.degrade(2 * images - 1, torch.Generator().manual_seed(0))
        return degraded

    @torch.autocast("cpu", torch.bfloat16, enabled=NATIVE_DTYPE == "bfloat16")
    def made(texts: list[str], given: dict[str, Tensor], scale: float) -> Tensor:
        parts = []
        for start in range(0, len(texts), BATCH):
            part = slice(start, start + BATCH)
            generators = image_generators(0, range(start, start + len(texts[part])))
            arguments: dict[str, Any] = {name: value[part] for name, value in given.items()}
            arguments |= {"num_inference_steps": args.num_inference_steps, "generator": generators}
            arguments |= {"controlnet_conditioning_scale": scale, "output_type": "pt"}
            parts.append(pipeline(texts[part], **arguments).images.float())
        return torch.cat(parts)

    def right(claimed: list[Prompt], images: Tensor) -> float:
        return alignment(claimed, (images.movedim(1, -1) * 255).round().byte().numpy()).attributes["all"]

    rng = np.random.default_rng([2, 0])
    drawn = {"seen": (False, KINDS), "pairs": (False, {"pair": 1.0}), "held out": (True, KINDS)}
    sorts = {name: [draw_scene(rng, *given) for _ in range(args.num_images)] for name, given in drawn.items()}
    captions = {name: [describe(scene, rng) for scene in scenes] for name, scenes in sorts.items()}
    others = [describe(recoloured(scene), rng) for scene in sorts["seen"]]
    originals = {name: as_images(scenes, side) for name, scenes in sorts.items()}
    inputs = edges(originals["seen"])
    rows = [originals["seen"][:SHOWN], (condition.resized(inputs[:SHOWN]) / 2 + 0.5).expand(-1, 3, -1, -1)]
    lines = [
        "| scale | seen | pairs | held out | another colour | PSNR | SSIM | PSNR of edges |",
        "|---" * 8 + "|",
    ]
    for scale in args.scales:
        found, fractions = {}, []
        for name, images in originals.items():
            given = call_arguments(condition, edges(images))
            found[name] = made([prompt.text for prompt in captions[name]], given, scale)
            fractions.append(right(captions[name], found[name]))
        changed = made([prompt.text for prompt in others], call_arguments(condition, inputs), scale)
        fractions.append(right(others, changed))
        ours, truth = found["seen"], originals["seen"]
        psnr, own = (
            peak_signal_noise_ratio(a, b, 1.0, reduction="none", dim=(1, 2, 3)).mean()
            for a, b in ((ours, truth), (edges(ours) / 2 + 0.5, inputs / 2 + 0.5))
        )
        ssim = structural_similarity_index_measure(ours, truth, data_range=1.0)
        cells = [f"{scale:g}", *(f"{f:.1%}" for f in fractions), f"{psnr:.1f}", f"{ssim:.3f}", f"{own:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
        rows.append(ours[:SHOWN])
    picture(torch.cat([*rows, changed[:SHOWN]]), SHOWN).save(args.output_dir / "pairs.png")
    print(f"\n{args.condition}; {args.steps} steps of training, {args.num_inference_steps} of sampling; "
          f"{args.num_images} scenes of each sort.\n")  # fmt: skip
    print("\n".join(lines))


if __name__ == "__main__":
    main()
