"""What the named sizes come to: parameters, and operations of one evaluation.

    python -m benchmarks.network_sizes [--resolution 32]

Multiplications and additions of one unconditional image of three channels, counted by torch's FlopCounterMode.
"""

import argparse

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from snowmelt.architectures import SIZES, make_network

NETWORKS = {"UNet": "UNet2DModel", "DiT": "DiTTransformer2DModel"}


def cost(name: str, size: str, resolution: int) -> tuple[float, float]:
    """Millions of parameters, and G operations an image."""
    network = make_network(name, size, None, resolution=resolution, channels=3, seed=0, num_class_embeds=None)
    labels = {} if name == "UNet2DModel" else {"class_labels": torch.zeros(1, dtype=torch.long)}
    # The counter knows no fused attention of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, resolution, resolution), timestep=torch.zeros(1), **labels)
    return sum(p.numel() for p in network.parameters()) / 1e6, counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=32)
    args = parser.parse_args()
    print("| `--model_size` | " + " | ".join(f"{kind}: parameters, M | G operations" for kind in NETWORKS) + " |")
    print("|---" * (1 + 2 * len(NETWORKS)) + "|")
    for size in SIZES:
        cells = [f"{value:.3g}" for name in NETWORKS.values() for value in cost(name, size, args.resolution)]
        print(f"| `{size}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
