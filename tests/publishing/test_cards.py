"""Cards of trained models: each has a command that makes it again, which exists."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from model_cards import make
from snowmelt.autoencoder.options import AutoencoderConfig
from snowmelt.config import parse
from snowmelt.evaluation.options import EvaluateConfig
from snowmelt.options import UnconditionalConfig
from snowmelt.text.options import TextToImageConfig

CONFIGS = {
    "train_unconditional.py": UnconditionalConfig,
    "train_text2img.py": TextToImageConfig,
    "train_autoencoder.py": AutoencoderConfig,
    "evaluate.py": EvaluateConfig,
}


@pytest.mark.parametrize("name", make.CARDS)
def test_options_exist(name: str) -> None:
    card = make.CARDS[name]
    for words in (card.train.split(), card.measure.split()):
        if words and words[0] in CONFIGS:
            parse(CONFIGS[words[0]], [*words[1:], *(["--model", "m"] if words[0] == "evaluate.py" else [])])


def test_all_are_listed() -> None:
    listed = re.findall(r"\| \[([\w-]+)\]\(\1/README\.md\)", (make.HERE / "README.md").read_text())
    assert listed == sorted(path.parent.name for path in make.HERE.glob("*/README.md"))


def test_a_card_is_made_of_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training is run once, with the data's copy and the model that it needs, and only its own folder changes."""
    ran: list[str] = []

    def pretend(words: list[str], check: bool, cwd: Path) -> None:
        ran.append(" ".join(words[1:]))
        folder = Path(words[words.index("--output_dir") + 1]) if "--output_dir" in words else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for file in ("loss.png", "README.md", "model.safetensors"):
                (folder / file).write_text(file)

    monkeypatch.setattr(make, "HERE", tmp_path / "model_cards")
    (tmp_path / "model_cards").mkdir()
    monkeypatch.setattr(make, "subprocess", SimpleNamespace(run=pretend))
    words = ["cifar10-latent", "--data", "uoft-cs/cifar10=copy", "--output_dir", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["make.py", *words])
    for times in (1, 2):
        make.main()
        assert [line.split()[0] for line in ran].count("train_unconditional.py") == 1, times
    assert f"--autoencoder {tmp_path}/runs/cifar10-autoencoder --dataset_name copy" in ran[1]
    assert "--dataset_name uoft-cs/cifar10" in ran[3]  # as others know it
    names = {str(path.relative_to(tmp_path / "model_cards")) for path in (tmp_path / "model_cards").rglob("*.*")}
    assert names == {"cifar10-latent/README.md", "cifar10-latent/loss.png"}
