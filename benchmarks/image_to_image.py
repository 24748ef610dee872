"""A model of --condition beside a regression network of equal size and training, and beside what both are given.

    python -m benchmarks.image_to_image --condition lowres:4 --dataset_name ylecun/mnist [--config mnist] [--steps 1500]
        [--num_images 1000] [--num_inference_steps 25] [flags of train_unconditional.py]

Both train on the recipe's images for as many steps: train_unconditional.py by flow matching, and the same network to
give back the clean image at once, by the squared error, with AdamW at the recipe's rate and an average of weights. On
held-out images, whose conditions are the same for all: PSNR and SSIM, the Frechet distance to the training split in the
features of a classifier trained on it (lower is better), and the fraction whose class it still finds. "mean of 8" is
that of eight samples of each. What is given is resized by cubics, its mask filled with gray. In --output_dir it leaves
pairs.png: rows of what is given, the regression, two samples, and the originals.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from tqdm import trange

from benchmarks.real_images import DEVICE, classifier_features, first, load_splits, picture
from benchmarks.scripts import NATIVE_DTYPE, add_arguments, run, trained
from pipelines import image_generators
from pipelines.image_conditions import network_condition
from snowmelt.config import load_yaml
from snowmelt.data.sources import load_images
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.reference import features_of
from snowmelt.image_conditions import call_arguments, drawn_inputs
from snowmelt.loading import load_pipeline
from snowmelt.options import DataOptions, UnconditionalConfig
from snowmelt.spaces import PixelSpace

BATCH, SAMPLES, SHOWN = 100, 8, 12
DTYPE = getattr(torch, NATIVE_DTYPE)


def joined(condition: Any, inputs: Tensor, has_level: bool) -> Tensor:
    """What the network is given besides x_t."""
    return network_condition(condition, inputs, lambda x: x, torch.zeros(len(inputs)) if has_level else None)


def regression(pipeline: Any, images: Tensor, space: PixelSpace, recipe: dict[str, Any], steps: int) -> Any:
    """The same network, trained to give the clean image back; with its averaged weights."""
    torch.manual_seed(0)
    unet: Any = UNet2DModel.from_config(pipeline.unet.config).to(DEVICE)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe["learning_rate"], weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    ema = EMAModel(unet.parameters(), use_ema_warmup=True, power=0.75)
    generator = torch.Generator().manual_seed(0)
    for _ in trange(steps, desc="regression"):
        chosen = torch.randint(len(images), (recipe["train_batch_size"],), generator=generator)
        clean = space.from_cache(images[chosen])
        inputs = pipeline.condition.degrade(clean, generator)
        given = joined(pipeline.condition, inputs, pipeline.config.get("max_noise_level")).to(DEVICE)
        x0 = clean.to(DEVICE)
        with torch.autocast(DEVICE.type, DTYPE, enabled=NATIVE_DTYPE == "bfloat16"):  # as train_unconditional.py does
            output = regressed(unet, given, x0.shape)
        loss = (output.float() - x0).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
    ema.copy_to(unet.parameters())
    return unet.eval()


def regressed(unet: Any, given: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Its output for an x_t of zeros."""
    zeros = torch.zeros(shape, device=given.device)
    return unet(torch.cat([zeros, given], 1), torch.zeros(len(given), device=given.device), return_dict=False)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--condition", default="lowres:4")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/image_to_image"))
    add_arguments(parser)
    args, rest = parser.parse_known_args()
    recipe = load_yaml(UnconditionalConfig, args.config)
    side = args.resolution or recipe["resolution"]
    folder = args.output_dir / args.condition.replace(":", "-")
    if not trained(folder):
        data = {"config": args.config, "dataset_name": args.dataset_name, "resolution": side}
        length = {"max_train_steps": args.steps, "max_train_minutes": 10000, "overwrite_output_dir": True}
        own = {"objective": "flow", "condition": args.condition, "no-class_conditional": True}
        run("train_unconditional.py", *rest, output_dir=folder, **data, **length, **own)
    pipeline = load_pipeline(str(folder)).to(DEVICE)
    pipeline.network.type(DTYPE)
    pipeline.set_progress_bar_config(disable=True)
    condition: Any = pipeline.condition  # type: ignore[attr-defined]
    train, held_out = load_splits(args.dataset_name, side, args.held_out_split)
    cache = load_images(DataOptions(dataset_name=args.dataset_name, resolution=side, center_crop=True))
    space, tensor = PixelSpace(cache.value_range), cache.as_tensor()
    assert tensor is not None
    weights = folder / "regression.pt"
    if weights.exists():
        unet: Any = UNet2DModel.from_config(pipeline.unet.config).to(DEVICE).eval()
        unet.load_state_dict(torch.load(weights, weights_only=True))
    else:
        unet = regression(pipeline, tensor, space, recipe, args.steps)
        torch.save(unet.state_dict(), weights)

    extractor = classifier_features(train, held_out)
    reference = FrechetDistance(features_of(train, extractor, 250))
    originals = first(held_out, args.num_images)
    labels = None if held_out.labels is None else held_out.labels[: args.num_images]
    inputs = condition.degrade(2 * originals - 1, torch.Generator().manual_seed(0))
    given = call_arguments(condition, inputs)

    def parts() -> list[slice]:
        return [slice(start, start + BATCH) for start in range(0, len(originals), BATCH)]

    def sampled(number: int) -> Tensor:
        made = []
        for part in parts():
            count = len(originals[part])
            generators = image_generators(number, range(part.start, part.start + count))
            arguments: Any = {name: value[part] for name, value in given.items()}
            arguments |= {"num_inference_steps": args.num_inference_steps, "generator": generators}
            made.append(pipeline(**arguments, output_type="pt").images.cpu())
        return torch.cat(made)

    @torch.no_grad()
    def at_once() -> Tensor:
        made = []
        for part in parts():
            x = joined(condition, inputs[part], pipeline.config.get("max_noise_level")).to(DEVICE)
            made.append(regressed(unet, x, originals[part].shape).cpu() / 2 + 0.5)
        return torch.cat(made).clamp(0, 1)

    images = inputs[:, : inputs.shape[1] - condition.mask_channels]
    resized = (condition.resized(images) / 2 + 0.5).expand(-1, originals.shape[1], -1, -1)
    samples = [sampled(number) for number in range(SAMPLES)]
    mean = torch.stack(samples).mean(0)
    made = {"given": resized, "regression": at_once(), "a sample": samples[0], f"mean of {SAMPLES}": mean}

    def row(name: str, images: Tensor) -> str:
        features = extractor(images)
        psnr = peak_signal_noise_ratio(images, originals, 1.0, reduction="none", dim=(1, 2, 3)).mean()
        ssim = structural_similarity_index_measure(images, originals, data_range=1.0)
        cells = [name, f"{psnr:.2f}", f"{ssim:.3f}", f"{reference(features):.2f}"]
        if labels is not None:
            cells.append(f"{(extractor.head(features).argmax(1) == labels).double().mean():.1%}")
        return f"| {' | '.join(cells)} |"

    rows = [drawn_inputs(call_arguments(condition, inputs[:SHOWN]), tuple(originals.shape[1:]))]
    rows += [x[:SHOWN] for x in (made["regression"], *samples[:2], originals)]
    picture(torch.cat(rows), SHOWN).save(args.output_dir / "pairs.png")
    print(f"\n{condition.spec}, {len(originals)} images of {args.held_out_split}; {args.steps} steps of training each;")
    print(f"{args.num_inference_steps} steps of sampling.\n")
    print("| image | PSNR | SSIM | Frechet distance | class found |\n|---|---|---|---|---|")
    print("\n".join(row(name, images) for name, images in (made | {"originals": originals}).items()))


if __name__ == "__main__":
    main()
