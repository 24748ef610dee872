"""Ways to damage the folder of a model, as disks, editors and strangers do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

Damage = Callable[[Path], Any]
INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def intact(folder: Path) -> None:
    pass


def put(name: str, content: str | bytes) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return apply


def change(name: str, **values: Any) -> Damage:
    """Replace values of a JSON file; those that are ... are left out."""

    def apply(folder: Path) -> None:
        changed = json.loads((folder / name).read_text()) | values
        put(name, json.dumps({k: v for k, v in changed.items() if v is not ...}))(folder)

    return apply


def remove(name: str) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def link(name: str, target: str) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return apply


def fifo(name: str) -> Damage:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return apply


def cut(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, size)


def lose(name: str) -> Damage:
    """Leave a tensor out."""

    def apply(folder: Path) -> None:
        state = load_file(folder / name)
        del state[min(state)]
        save_file(state, folder / name, {"format": "pt"})

    return apply


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


MODELS: list[tuple[Damage, str]] = [
    (remove(INDEX), "m holds no model_index.json, so it is not the folder of a pipeline"),
    (put(INDEX, ""), r"m/model_index.json: not valid JSON"),
    (put(INDEX, "{"), r"m/model_index.json: not valid JSON"),
    (put(INDEX, "[]"), r"m/model_index.json: must map names to values, holds a list"),
    (put(INDEX, "5"), r"must map names to values"),
    (put(INDEX, '{"unet": NaN}'), r"not valid JSON \(NaN is no JSON\)"),
    (put(INDEX, '{"a": 1, "a": 2}'), r"key 'a' is given twice"),
    (put(INDEX, b"\xff\xfe{}"), r"is not text in UTF-8"),
    (put(INDEX, "[" * 100_000), r"not valid JSON"),
    (put(INDEX, "<html>\nlogin</html>"), r"not valid JSON"),
    (put(INDEX, "{}"), r"has no '_class_name'"),
    (fifo(INDEX), r"model_index.json is no regular file"),
    (link(INDEX, "/etc/passwd"), r"m/model_index.json leads out of the model, to /etc/passwd"),
    (link(INDEX, "model_index.json"), r"holds no model_index.json"),
    (change(INDEX, _class_name=5), r"'_class_name' must be text or a list, is 5"),
    (change(INDEX, _class_name="os.system"), r"'_class_name' must be the name of a class, is 'os.system'"),
    (change(INDEX, _class_name=["pipeline", "a\nb"]), r"'_class_name' must be the name of a class"),
    (change(INDEX, _class_name=[]), r"'_class_name' must be the name of a class, is \[\]"),
    (change(INDEX, _class_name=""), r"'_class_name' must be the name of a class"),
    (change(INDEX, **{"../secret": ["diffusers", "UNet2DModel"]}), r"a component is called '../secret'; a name is"),
    (change(INDEX, **{"x/../../secret": ["diffusers", "UNet2DModel"]}), r"a component is called 'x/../../secret'"),
    (change(INDEX, **{"/etc": ["diffusers", "UNet2DModel"]}), r"a component is called '/etc'"),
    (change(INDEX, **{"a\nerror: b": ["diffusers", "UNet2DModel"]}), r"a component is called 'a\\nerror: b'"),
    (change(INDEX, **{".": ["diffusers", "UNet2DModel"]}), r"a component is called '.'"),
    (change(INDEX, **{"": ["diffusers", "UNet2DModel"]}), r"a component is called ''"),
    (change(INDEX, unet=["os", "system"]), r"'unet' must be a class of diffusers, transformers, .*\['os', 'system'\]"),
    (change(INDEX, unet=["diffusers", "a.b"]), r"'unet' must be a class of"),
    (change(INDEX, unet=["diffusers", None]), r"'unet' must be a class of diffusers"),
    (remove("unet"), r"model_index.json names 'unet', and there is no such folder"),
    (both(remove("unet"), put("unet", "file")), r"names 'unet', and there is no such folder"),
    (link("unet", "/etc"), r"m/unet leads out of the model, to /etc"),
    (link("unet", "../good/unet"), r"m/unet leads out of the model"),
    (link(WEIGHTS, "/etc/passwd"), r"diffusion_pytorch_model.safetensors leads out of the model, to /etc/passwd"),
    (link(WEIGHTS, "nowhere"), r"diffusion_pytorch_model.safetensors leads nowhere"),
    (link(UNET, "config.json"), r"unet/config.json (leads nowhere|is no regular file)"),
    (fifo(WEIGHTS), r"diffusion_pytorch_model.safetensors is no regular file"),
    (remove(WEIGHTS), r"m/unet holds no weights \(\*.safetensors\); restore them"),
    (
        both(remove(WEIGHTS), put("unet/diffusion_pytorch_model.bin", b"\x80\x04.")),
        r"a .bin is a pickle, which runs code",
    ),
    (cut(WEIGHTS, 0), r"diffusion_pytorch_model.safetensors: not whole safetensors"),
    (cut(WEIGHTS, 100), r"diffusion_pytorch_model.safetensors: not whole safetensors"),
    (put(WEIGHTS, b"\xff" * 64), r"not whole safetensors"),
    (put(WEIGHTS, "<html>"), r"not whole safetensors"),
]
"""What both scripts refuse, and before anything is loaded."""
