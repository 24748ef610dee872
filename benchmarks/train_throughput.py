"""Training speed and memory: train_unconditional.py against a bare loop and against diffusers' published recipe.

    python benchmarks/train_throughput.py [--rounds 3] [--steps 60] [--compile]

Same images, same UNet (but for the attention heads that each recipe has), batch 64, 32x32. The contenders take turns,
each in a process of its own, and the table gives the median over rounds: ratios mean more than images per second.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
SIDE, BATCH, WARMUP, WINDOW = 32, 64, 10, 10
CONTENDERS = {
    "ours": "train_unconditional.py, defaults",
    "ours-compiled": "train_unconditional.py --compile",
    "bare": "bare loop over resident tensors, bf16, head dim 64",
    "diffusers-no": "diffusers' recipe, fp32, head dim 8",
    "diffusers-bf16": "diffusers' recipe, bf16, head dim 8",
}


def make_images(folder: Path, count: int = 2000) -> None:
    """Coloured ellipses on coloured grounds, as PNG files."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        image = Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(0, 256, 3).tolist()))
        corner, size = rng.integers(0, SIDE // 2, 2), rng.integers(4, SIDE // 2, 2)
        box = [*corner.tolist(), *(corner + size).tolist()]
        ImageDraw.Draw(image).ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
        image.save(folder / f"{i:05d}.png")


def windows(step, steps: int) -> list[float]:
    """Images per second of each window of steps, after a warm-up."""
    for _ in range(WARMUP):
        step()
    rates = []
    for _ in range((steps - WARMUP) // WINDOW):
        start = time.perf_counter()
        for _ in range(WINDOW):
            step()
        rates.append(WINDOW * BATCH / (time.perf_counter() - start))
    return rates


def run_ours(folder: Path, steps: int, *extra: str) -> dict:
    """The script itself, as a user calls it; its own log says how fast it was."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, ROOT / "train_unconditional.py", "--train_data_dir", folder, "--output_dir", out]
        command += ["--cache_dir", folder.parent, "--resolution", SIDE, "--model_size", "tiny", *extra]
        command += ["--train_batch_size", BATCH, "--max_train_steps", steps, "--logging_steps", WINDOW]
        command += ["--eval_batch_size", 1, "--ddpm_num_inference_steps", 1, "--checkpointing_steps", steps]
        command += ["--save_images_epochs", 0, "--save_model_epochs", 0]
        subprocess.run([str(c) for c in command], check=True, capture_output=True)
        lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    measured = lines[WARMUP // WINDOW :]
    return {
        "rates": [line["images_per_second"] for line in measured],
        "memory": lines[-1]["peak_memory_mb"],
        "first": WINDOW * BATCH / lines[0]["images_per_second"],
    }


def run_bare(folder: Path, steps: int) -> list[float]:
    """The least that training this network takes: flow matching on tensors that are already there."""
    import torch
    from diffusers import UNet2DModel

    from snowmelt.architectures import unet_config
    from snowmelt.environment import native_precision

    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))])
    data = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    net = UNet2DModel(sample_size=SIDE, **unet_config("tiny", SIDE))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)
    dtype = torch.bfloat16 if native_precision() == "bf16" else torch.float32

    def step() -> None:
        x0 = data[torch.randint(len(data), (BATCH,))].float() / 127.5 - 1
        noise, t = torch.randn_like(x0), torch.randn(BATCH).sigmoid()
        x_t = torch.lerp(x0, noise, t.view(-1, 1, 1, 1))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = net(x_t, t * 1000).sample
        (output.float() - (noise - x0)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return windows(step, steps)


def run_diffusers(folder: Path, steps: int, precision: str) -> list[float]:
    """The operations of diffusers' train_unconditional.py, with Pillow and numpy for torchvision's transforms."""
    import torch
    from accelerate import Accelerator
    from datasets import load_dataset
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    from snowmelt.architectures import unet_config

    rng = np.random.default_rng(0)

    def transform(examples: dict) -> dict:
        inputs = []
        for image in examples["image"]:
            image = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR).crop((0, 0, SIDE, SIDE))
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            inputs.append((torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5)
        return {"input": inputs}

    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    dataset = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent))
    dataset.set_transform(transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True)
    net = UNet2DModel(sample_size=SIDE, **(unet_config("tiny", SIDE) | {"attention_head_dim": 8}))
    ema = EMAModel(net.parameters(), use_ema_warmup=True, power=0.75, model_cls=UNet2DModel, model_config=net.config)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
    net, optimizer, loader, schedule = accelerator.prepare(net, optimizer, loader, schedule)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000)

    def batches():
        while True:
            yield from loader

    stream = batches()

    def step() -> None:
        clean = next(stream)["input"]
        noise, t = torch.randn_like(clean), torch.randint(1000, (BATCH,))
        with accelerator.accumulate(net):
            output = net(noise_scheduler.add_noise(clean, noise, t), t).sample
            loss = torch.nn.functional.mse_loss(output.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        ema.step(net.parameters())
        loss.detach().item()

    return windows(step, steps)


def contend(name: str, folder: Path, steps: int) -> dict:
    """One contender in this process (or, for our script, its own)."""
    if name == "ours":
        return run_ours(folder, steps)
    if name == "ours-compiled":
        return run_ours(folder, steps, "--compile")
    from snowmelt.tracking import peak_memory_mb

    rates = run_bare(folder, steps) if name == "bare" else run_diffusers(folder, steps, name.removeprefix("diffusers-"))
    import torch

    return {"rates": rates, "memory": peak_memory_mb(torch.device("cpu"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--compile", action="store_true", help="measure --compile too, which takes minutes to start")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(contend(args.contender, args.folder, args.steps)))
        return
    names = [n for n in CONTENDERS if args.compile or n != "ours-compiled"]
    results: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        make_images(folder)
        for round_ in range(args.rounds):
            for name in names:
                command = [
                    sys.executable,
                    __file__,
                    "--contender",
                    name,
                    "--folder",
                    folder,
                    "--steps",
                    str(args.steps),
                ]
                cpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # all contenders on one device
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=cpu)
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
                rate = statistics.median(results[name][-1]["rates"])
                print(f"round {round_ + 1}: {name:15} {rate:6.0f} images/s", file=sys.stderr)
    report(results)


def report(results: dict[str, list[dict]]) -> None:
    """Print the table, with our script as the unit."""
    rate = {n: statistics.median(x for run in runs for x in run["rates"]) for n, runs in results.items()}
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, UNet2DModel 'tiny' (1.2 M), {SIDE}x{SIDE}, batch {BATCH}\n")
    print("| | images/s | ours / this | peak memory, MB |\n|---|---|---|---|")
    for name, runs in results.items():
        memory = statistics.median(run["memory"] for run in runs)
        print(f"| {CONTENDERS[name]} | {rate[name]:.0f} | {rate['ours'] / rate[name]:.2f} | {memory:.0f} |")
    if "ours-compiled" in results:
        first = statistics.median(run["first"] for run in results["ours-compiled"])
        saved = BATCH / rate["ours"] - BATCH / rate["ours-compiled"]
        first -= WINDOW * BATCH / rate["ours"]  # what they take anyway
        pays = f"pays after {first / saved:.0f} steps" if saved > 0 else "never pays"
        print(f"\n--compile: the first {WINDOW} steps take {first:.0f} s longer; it {pays}.")


if __name__ == "__main__":
    main()
