"""What a text-to-image model learns of five pictures, and what it forgets: DreamBooth, LoRA and textual inversion.

    python -m benchmarks.few_pictures [--model runs/scenes] [--steps 300] [--num_images 100]

For DreamBooth the pictures show a target, red with a yellow middle, which no caption of the embedded scenes names, as
"a sks circle". Each way of training it is judged by samples: the fraction of "a sks circle" that show the target, of
"a sks circle at the PLACE" that show it there, of "a circle" that show it too (they should not: prior preservation is
against that), and the fraction of prompts of the scenes that are still drawn right.

Textual inversion changes no weight, so its word can mean only what the model can draw: the pictures are of large red
crosses at the left, and the word is judged by how many of its samples are crosses, red, large, at the left, and all of
these, beside the word that it begins as. In --output_dir it leaves pictures.png: the pictures, and a row per way.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.real_images import picture
from benchmarks.scripts import NATIVE_DTYPE, run, slug, trained
from snowmelt.data.scenes.checker import read_scene
from snowmelt.data.scenes.drawing import draw
from snowmelt.data.scenes.wording import prompts
from snowmelt.data.scenes.world import BACKGROUND, COLOURS, POSITIONS, SIZES, SPACING, Scene, Thing
from snowmelt.evaluation.alignment import alignment, pipeline_draw
from snowmelt.loading import load_pipeline

PICTURES, SHOWN, BATCH = 5, 10, 50
WORD, CLASS = "sks", "circle"
SUBJECT, PRIOR = f"a {WORD} {CLASS}", f"a {CLASS}"
MIDDLE = 0.5
"""Of the target's radius."""
PRESERVED = {"with_prior_preservation": True, "class_prompt": PRIOR, "num_class_images": 100}
WAYS: dict[str, dict[str, object]] = {
    "DreamBooth": {},
    "with prior preservation": PRESERVED,
    "LoRA, with prior preservation": PRESERVED | {"rank": 4, "learning_rate": 2e-3},
}
CROSS = Thing("cross", "red", SIZES["large"], 0.5 - SPACING, 0.5)


def target(x: float, y: float, radius: float) -> np.ndarray:
    """A picture of the target, uint8 (64, 64, 3)."""
    discs = (Thing("circle", "red", radius, x, y), Thing("circle", "yellow", MIDDLE * radius, x, y))
    return draw(Scene(discs))


def targets(image: np.ndarray) -> list[str]:
    """Positions of the targets in an image, uint8 (H, H, 3): red regions with something yellow in their middle."""
    side, pixels = len(image), image.astype(float)
    palette = np.array([BACKGROUND, *COLOURS.values()], float)
    nearest = np.linalg.norm(pixels[:, :, None] - palette, axis=-1).argmin(-1)
    red, yellow = (nearest == 1 + list(COLOURS).index(name) for name in ("red", "yellow"))
    if red.sum() < 0.01 * side**2 or not 0.1 < yellow.sum() / red.sum() < 1:
        return []
    (y, x), (v, u) = (np.argwhere(colour).mean(0) / side for colour in (red, yellow))
    return [Thing(None, None, 0, x, y).position] if np.hypot(x - u, y - v) < 0.05 else []


def write_pictures(folder: Path, made: list[np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(made):
        Image.fromarray(pixels).save(folder / f"{number}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--num_images", type=int, default=100, help="for each prompt")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/few_pictures"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    places = 0.5 + SPACING * rng.integers(-1, 2, (PICTURES, 2))
    subject = [target(x, y, rng.uniform(*SIZES.values())) for x, y in places]
    write_pictures(args.output_dir / "target", subject)
    crosses = [draw(Scene((Thing(CROSS.shape, CROSS.colour, CROSS.radius, CROSS.x, CROSS.y + y),))) for y in
               np.linspace(-0.02, 0.02, PICTURES)]  # fmt: skip
    write_pictures(args.output_dir / "crosses", crosses)
    usual = {
        "pretrained_model_name_or_path": args.model,
        "resolution": load_pipeline(str(args.model)).network.config.sample_size,
        "train_batch_size": 4,
        "max_train_steps": args.steps,
        "learning_rate": 2e-4,
        "lr_warmup_steps": 0,
        "save_images_epochs": 0,
        "overwrite_output_dir": True,
    }

    def tuned(name: str, pictures: str, **options: object) -> Path:
        folder: Path = args.output_dir / slug(name)
        if not trained(folder):
            given = usual | {"train_data_dir": args.output_dir / pictures, "output_dir": folder} | options
            run("train_text2img.py", **given)
        return folder

    def drawn(pipeline: Any, texts: list[str]) -> np.ndarray:
        pipeline.set_progress_bar_config(disable=True)
        one = pipeline_draw(pipeline, 0, num_inference_steps=args.num_inference_steps)
        parts = [range(start, min(start + BATCH, len(texts))) for start in range(0, len(texts), BATCH)]
        with torch.autocast("cpu", torch.bfloat16, enabled=NATIVE_DTYPE == "bfloat16"):
            return np.concatenate([one([texts[i] for i in part], part) for part in parts])

    shown = [np.stack([np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BOX)) for p in subject * 2])]
    lines = ["| | shows the target | in its place | shows it for the class | scenes drawn right |", "|---" * 5 + "|"]
    count, claimed = args.num_images, prompts(args.num_images, 0, held_out=False)
    where = [POSITIONS[i % len(POSITIONS)] for i in range(count)]
    placed = [f"{SUBJECT} " + ("in the middle" if p == "centre" else f"at the {p}") for p in where]
    for name, options in {"the model itself": None, **WAYS}.items():
        if options is None:
            pipeline: Any = load_pipeline(str(args.model))
        else:
            own = {"class_data_dir": args.output_dir / "class"} if "class_prompt" in options else {}
            folder = tuned(name, "target", instance_prompt=SUBJECT, **options, **own)
            pipeline = load_pipeline(str(args.model if "rank" in options else folder))
            if "rank" in options:
                pipeline.load_lora_weights(folder)
        made = {text: drawn(pipeline, [text] * count) for text in (SUBJECT, PRIOR)}
        there = [p in targets(image) for p, image in zip(where, drawn(pipeline, placed), strict=True)]
        kept = alignment(claimed, drawn(pipeline, [p.text for p in claimed])).attributes["all"]
        fractions = [np.mean([bool(targets(i)) for i in made[text]]) for text in (SUBJECT, PRIOR)]
        lines.append(f"| {name} | {fractions[0]:.0%} | {np.mean(there):.0%} | {fractions[1]:.0%} | {kept:.0%} |")
        shown += [made[SUBJECT][:SHOWN]]

    is_right: dict[str, Callable[[Thing], bool]] = {
        "a cross": lambda t: t.shape == CROSS.shape,
        "red": lambda t: t.colour == CROSS.colour,
        "large": lambda t: t.size == CROSS.size,
        "at the left": lambda t: t.position == CROSS.position,
        "all": lambda t: (
            (t.shape, t.colour, t.size, t.position) == (CROSS.shape, CROSS.colour, CROSS.size, CROSS.position)
        ),
    }
    lines += ["", f"| prompt | one thing | {' | '.join(is_right)} |", "|---" * (2 + len(is_right)) + "|"]
    inversion = {"placeholder_token": "<mine>", "initializer_token": CLASS, "learning_rate": 2e-2}
    folder = tuned("textual inversion", "crosses", **inversion)
    pipeline = load_pipeline(str(args.model))
    pipeline.load_textual_inversion(folder)
    for text in (PRIOR, "a <mine>"):
        made_of = drawn(pipeline, [text] * count)
        read = [read_scene(image) for image in made_of]
        ones = [things[0] if len(things) == 1 else None for things in read]
        cells = [np.mean([t is not None for t in ones])]
        cells += [np.mean([t is not None and right(t) for t in ones]) for right in is_right.values()]
        lines.append(f"| {text} | {' | '.join(f'{c:.0%}' for c in cells)} |")
    shown.append(made_of[:SHOWN])
    pixels = torch.from_numpy(np.concatenate(shown)).movedim(-1, 1) / 255
    picture(pixels, SHOWN).save(args.output_dir / "pictures.png")
    print(f"\n{args.steps} steps; {count} samples of each prompt, {args.num_inference_steps} steps.\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
