"""How often a model draws what a prompt says, on the prompts of the embedded set `scenes`.

    python benchmarks/scenes_aligned.py [--model runs/scenes] [--num_prompts 500] [--guidance_scales 1 1.25 3]

An analytic checker reads shape, colour, count, size, position and relation back from each image. "Seen" prompts
name combinations that training shows, "held out" ones one that no training image shows. Beside the samples stands the
checker on scenes drawn as the prompts say. The standard error of a fraction p is sqrt(p (1 - p) / number).
In the model's folder it leaves alignment.md, what it prints, and alignment-prompts.png, the first prompts of each sort
with what the checker says of them; with --checkpoints N alignment.png as well, the averaged weights of each
checkpoint judged by N prompts of each sort. publish.py puts them on the model card.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from snowmelt.checkpoint import complete
from snowmelt.data.scenes.checker import judge, read_scene
from snowmelt.data.scenes.drawing import draw
from snowmelt.data.scenes.wording import describe, prompts
from snowmelt.data.scenes.world import draw_scene
from snowmelt.environment import native_precision
from snowmelt.evaluation.alignment import (
    ALIGNMENT_FILE,
    Draw,
    alignment,
    pipeline_draw,
    report,
    scene_alignment,
    write_alignment,
)
from snowmelt.loading import load_pipeline
from snowmelt.model_folder import read_index, weights_digest
from snowmelt.model_source import find_source
from snowmelt.text.prompt_grids import captioned_grid


def real_scenes(count: int, side: int) -> str:
    """What the checker says of scenes that are as they should be."""
    judged = {}
    for name, held_out in (("real, seen", False), ("real, held out", True)):
        rng = np.random.default_rng(1)
        scenes = [draw_scene(rng, held_out) for _ in range(count)]
        images = [Image.fromarray(draw(scene)).resize((side, side), Image.Resampling.BILINEAR) for scene in scenes]
        judged[name] = alignment([describe(s, rng) for s in scenes], [np.asarray(p) for p in images])
    return report(judged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--num_prompts", type=int, default=500, help="of each sort")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scales", type=float, nargs="+", help="the pipeline's default when not given")
    parser.add_argument("--checkpoints", type=int, default=0, help="prompts of each sort for each checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    # Of what is loaded now: a training may replace it while it is judged.
    weights = weights_digest({name: args.model / name for name in read_index(args.model).components})
    pipeline = load_pipeline(str(args.model))
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.network.config.sample_size * pipeline.vae_scale_factor
    said_lines = [f"The checker on {args.num_prompts} scenes that are as they should be, of each sort:", ""]
    said_lines += [real_scenes(args.num_prompts, side)]

    @torch.autocast("cpu", torch.bfloat16, enabled=native_precision() == "bf16")
    def judged(count: int, **options: float) -> dict:
        made = pipeline_draw(pipeline, args.seed, num_inference_steps=args.num_inference_steps, **options)
        return scene_alignment(made, count=count, seed=args.seed)

    made = pipeline_draw(pipeline, args.seed, num_inference_steps=args.num_inference_steps)
    draw_samples(made, args.seed, args.model / "alignment-prompts.png")
    for scale in args.guidance_scales or [None]:
        said = "The pipeline's own guidance" if scale is None else f"Guidance {scale:g}"
        said_lines += ["", f"{said}, {args.num_inference_steps} steps, seed {args.seed}:", ""]
        said_lines += [report(judged(args.num_prompts, **({} if scale is None else {"guidance_scale": scale})))]
    text = "\n".join(said_lines) + "\n"
    write_alignment(args.model / ALIGNMENT_FILE, text, weights)
    print(text)
    if args.checkpoints:
        curve = {}
        for folder in complete(args.model):
            step = int(folder.name.removeprefix("checkpoint-"))
            pipeline = find_source(str(args.model), checkpoint=folder.name).load()
            pipeline.set_progress_bar_config(disable=True)
            curve[step] = {name: result.attributes["all"] for name, result in judged(args.checkpoints).items()}
            print(f"step {step}: " + ", ".join(f"{name} {fraction:.1%}" for name, fraction in curve[step].items()))
        plot(curve, args.model / "alignment.png")


def draw_samples(made: Draw, seed: int, path: Path, columns: int = 6) -> None:
    """Two rows of seen prompts and two of held-out ones, under what was drawn of them."""
    images, captions = [], []
    for held_out in (False, True):
        claimed = prompts(2 * columns, seed, held_out)
        for prompt, pixels in zip(claimed, made([p.text for p in claimed], range(2 * columns)), strict=True):
            wrong = [name for name, right in judge(prompt, read_scene(pixels)).items() if not right]
            images.append(pixels)
            captions.append(("held out: " if held_out else "") + prompt.text)
            captions[-1] += f"\nWRONG: {', '.join(wrong)}" if wrong else ""
    captioned_grid(np.stack(images), captions, columns).save(path)


def plot(curve: dict[int, dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in next(iter(curve.values())):
        axes.plot(list(curve), [values[name] for values in curve.values()], marker="o", label=name)
    axes.set(xlabel="optimizer step", ylabel="fraction of prompts right in all they say", ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
