"""Remake model cards: train, measure, publish into a folder, and keep the card and its pictures.

    python model_cards/make.py digits mnist-few-steps [--data ylecun/mnist=path/to/a/copy] [--output_dir runs/cards]

A training that is there already, in a folder of the card's name in --output_dir, isn't repeated. Weights stay there.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
MNIST, CIFAR10 = "ylecun/mnist", "uoft-cs/cifar10"
USUAL = "--metrics fd,kid,prdc,accuracy --num_images 1000 --num_inference_steps 20"
PAIRED = "--metrics fd,psnr,ssim --num_images 500 --num_inference_steps 20"


class Card(NamedTuple):
    """How a model is made.

    Attributes:
        train: the script that trains it, with its options but for the data and the folder.
        measure: that measures it, with its options.
        dataset: its name on the Hub, or of embedded data.
        license: of the model.
        others: cards whose models its training needs, by the names in braces that `train` has for their folders.
    """

    train: str
    measure: str
    dataset: str
    license: str = "unknown"
    others: tuple[str, ...] = ()


CARDS = {
    "digits": Card("train_unconditional.py --config digits", f"evaluate.py {USUAL}", "digits", "cc-by-4.0"),
    "mnist": Card("train_unconditional.py --config mnist", f"evaluate.py {USUAL} --held_out_split test", MNIST),
    "mnist-few-steps": Card(
        "train_unconditional.py --config mnist --objective soflow --max_train_minutes 20",
        "evaluate.py --metrics fd,accuracy --num_images 1000 --held_out_split test --sweep num_inference_steps=1,2,4",
        MNIST,
    ),
    "mnist-superresolution": Card(
        "train_unconditional.py --config mnist-superresolution",
        f"evaluate.py {PAIRED} --held_out_split test",
        MNIST,
    ),
    "cifar10-autoencoder": Card("train_autoencoder.py --config cifar10-autoencoder", "", CIFAR10),
    "cifar10-latent": Card(
        "train_unconditional.py --config mnist --resolution 32 --random_flip --autoencoder {cifar10-autoencoder}",
        f"evaluate.py {USUAL} --held_out_split test",
        CIFAR10,
        others=("cifar10-autoencoder",),
    ),
    "cifar10-colours": Card(
        "train_unconditional.py --config cifar10-colours", f"evaluate.py {PAIRED} --held_out_split test", CIFAR10
    ),
    "scenes": Card(
        "train_text2img.py --config scenes --optimizer muon",
        "benchmarks/scenes_aligned.py --num_prompts 300 --num_inference_steps 25",
        "scenes",
        "apache-2.0",
    ),
}


def run(words: list[object]) -> None:
    print("$ python", shlex.join(map(str, words)), flush=True)
    subprocess.run([sys.executable, *map(str, words)], check=True, cwd=HERE.parent)


def make(name: str, copies: dict[str, str], folder: Path) -> Path:
    """Make a card's model, and the card unless the model is only for others; the model's folder."""
    card = CARDS[name]
    others = {other: make(other, copies, folder) for other in card.others}
    model, data = folder / name, ["--dataset_name", copies.get(card.dataset, card.dataset)]
    if not (model / "loss.png").exists():
        train = [word.format_map(others) for word in card.train.split()]
        run([*train, *data, "--output_dir", model, "--overwrite_output_dir"])
    if not card.measure:
        return model
    on = data if card.measure.startswith("evaluate") else []
    run([*card.measure.split(), "--model", model, *on])
    published = folder / f"{name}-published"
    shutil.rmtree(published, ignore_errors=True)
    names = ["--hub_model_id", f"user/{name}", "--license", card.license]
    names += ["--dataset_name", card.dataset] if card.dataset in copies else []
    run(["publish.py", "--model", model, "--output_dir", published, *names])
    shutil.rmtree(HERE / name, ignore_errors=True)
    (HERE / name).mkdir()
    for path in (published / "README.md", *published.glob("*.png")):
        shutil.copy(path, HERE / name)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", nargs="+", choices=CARDS)
    parser.add_argument("--data", nargs="+", default=[], help="copies of data sets: NAME=FOLDER")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/cards"), help="of the models")
    args = parser.parse_args()
    copies = dict(pair.split("=", 1) for pair in args.data)
    for name in args.cards:
        make(name, copies, args.output_dir.resolve())


if __name__ == "__main__":
    main()
