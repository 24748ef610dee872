"""Memory that the weights of a network take when LoRA is trained beside them, by precision.

    python -m benchmarks.lora_memory [--rank 4]

A UNet a quarter as large as Stable Diffusion's, with weights that aren't trained; as train_text2img.py --rank makes it.
"""

import argparse

from diffusers import UNet2DConditionModel

from snowmelt.text.lora import add_lora

CHANNELS = (160, 320, 640, 640)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=4)
    rank = parser.parse_args().rank
    print("| --mixed_precision | parameters | memory of all weights | of the matrices |\n|---|---|---|---|")
    for precision in ("no", "bf16"):
        unet = UNet2DConditionModel(
            sample_size=64, block_out_channels=CHANNELS, cross_attention_dim=768, attention_head_dim=8
        )
        add_lora({"unet": unet}, rank, 0, precision)
        parameters = list(unet.parameters())
        count, whole = sum(p.numel() for p in parameters) / 1e6, sum(p.nbytes for p in parameters) / 1e6
        trained = sum(p.nbytes for p in parameters if p.requires_grad) / 1e6
        print(f"| {precision} | {count:.1f} M | {whole:.0f} MB | {trained:.1f} MB |")


if __name__ == "__main__":
    main()
