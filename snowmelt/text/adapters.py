"""What is trained beside a frozen pipeline and saved in a file of its own, as diffusers loads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snowmelt.text.lora import LORA_FILE, save_lora
from snowmelt.text.textual_inversion import EMBEDDINGS_FILE, ExtendedEmbedding, save_word


@dataclass(frozen=True)
class Adapter:
    """A kind of them.

    Attributes:
        file: its name.
        what: it holds.
        tag: on the Hub.
        method: of pipelines, that loads it.
        adapts: whether a network has one.
        save: writes it into a folder, of networks by the names of a pipeline.
    """

    file: str
    what: str
    tag: str
    method: str
    adapts: Callable[[Any], bool]
    save: Callable[[Path, dict[str, Any]], None]


ADAPTERS = (
    Adapter(
        LORA_FILE,
        "LoRA matrices",
        "lora",
        "load_lora_weights",
        lambda net: bool(getattr(net, "peft_config", None)),
        save_lora,
    ),
    Adapter(
        EMBEDDINGS_FILE,
        "embeddings of a new word",
        "textual_inversion",
        "load_textual_inversion",
        lambda net: any(isinstance(module, ExtendedEmbedding) for module in net.modules()),
        save_word,
    ),
)


def adapter_of(net: Any) -> Adapter | None:
    """The kind that a network has, if it has one."""
    return next((adapter for adapter in ADAPTERS if adapter.adapts(net)), None)


def adapter_in(folder: Path) -> Adapter | None:
    """The kind of which a folder holds one, if it does."""
    return next((adapter for adapter in ADAPTERS if (folder / adapter.file).is_file()), None)
