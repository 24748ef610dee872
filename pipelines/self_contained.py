"""Pipelines that bring their own code: one file beside the weights, for machines that have diffusers alone."""

import ast
import inspect
import json
from pathlib import Path
from typing import Any, ClassVar


class SelfContainedMixin:
    """Base of pipelines whose folders anybody can load, with `DiffusionPipeline.from_pretrained` of diffusers.

    `save_pretrained` of diffusers writes the class's bare name and no source, which only code that knows the class can
    load. What is saved here has the list form, ["pipeline", class], with `pipeline.py` beside it: diffusers loads code
    and weights from one revision, with `trust_remote_code=True`. What a pipeline of diffusers samples just as well is
    saved as that pipeline, and needs no trust.
    """

    STOCK: ClassVar[dict[str, str]] = {}
    """Names of schedulers' classes, and of the pipelines of diffusers that sample plain networks with them."""

    # Read as the classes are made. Diffusers keeps the code of all repositories at one path, where the last one lies;
    # and whoever edits ours while a model is in training must not change what is saved with it.
    _OWN_FILE = Path(__file__).read_text()
    _PACKAGE = __name__.split(".")[0]
    _texts: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls._is_ours() and not cls._is_published():
            for base in cls._bases():
                if base.__module__ not in cls._texts:
                    cls._texts[base.__module__] = Path(inspect.getfile(base)).read_text()

    @classmethod
    def source(cls) -> str:
        """The modules of this class and its bases as one, base first, without the imports of each other.

        Raises:
            ValueError: if one of them imports a module of the package that holds none of the bases.
        """
        if cls._is_published():
            return cls._OWN_FILE
        package = cls.__module__.split(".")[0]
        modules = {base.__module__: cls._texts[base.__module__] for base in cls._bases()}
        parts = []
        for name, text in modules.items():
            lines = text.splitlines(keepends=True)
            for node in ast.parse(text).body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                    if node.module not in modules:
                        raise ValueError(f"{name} imports {node.module}, which a published {cls.__name__} won't have")
                    lines[node.lineno - 1 : node.end_lineno] = [""] * len(lines[node.lineno - 1 : node.end_lineno])
            parts.append("".join(lines).strip() + "\n")
        return "\n\n".join(parts)

    @classmethod
    def stock_class(cls, folder: str | Path, *, alike: bool = True) -> str | None:
        """The pipeline of diffusers that samples what a folder of `save_pretrained` holds, if there is one.

        Args:
            folder: of this pipeline, or of diffusers'.
            alike: None too where its default samples differ from this one's: `DDIMPipeline` steps with the noise of
                the x0 before clipping.
        """
        index = cls._read(Path(folder) / "model_index.json")
        scheduler = index.get("scheduler", ("", ""))[1]
        settings = {name for name in index if name[0] != "_"} - {"unet", "scheduler"}
        network = cls._read(Path(folder) / "unet/config.json")
        if settings or network.get("num_class_embeds") or network.get("class_embed_type"):
            return None
        clips = cls._read(Path(folder) / "scheduler/scheduler_config.json").get("clip_sample", True)
        return None if alike and scheduler == "DDIMScheduler" and clips else cls.STOCK.get(scheduler)

    @classmethod
    def complete(cls, folder: str | Path, *, stock: bool | None = None) -> None:
        """Turn a folder of diffusers' `save_pretrained` into one that diffusers loads: add pipeline.py, and name it.

        The paths that the parts were loaded from, which diffusers notes in their configurations, are left out.

        Args:
            folder: of the pipeline.
            stock: True for the pipeline of diffusers in place of this one, False for this one; None for that of
                diffusers where it samples alike.

        Raises:
            ValueError: if there is no pipeline of diffusers, and `stock` is True.
        """
        folder = Path(folder)
        cls.forget_paths(folder)
        index = cls._read(folder / "model_index.json")
        name = None if stock is False or not cls.STOCK else cls.stock_class(folder, alike=not stock)
        if stock and name is None:
            raise ValueError(f"stock: no pipeline of diffusers samples what {folder} holds")
        cls._write(folder / "model_index.json", index | {"_class_name": name or ["pipeline", cls.__name__]})
        if name is None:
            (folder / "pipeline.py").write_text(cls.source())
        else:
            (folder / "pipeline.py").unlink(missing_ok=True)  # what was saved here before

    @classmethod
    def forget_paths(cls, folder: Path) -> None:
        """Leave out, in a folder of `save_pretrained`, the paths that the parts were loaded from."""
        index = cls._read(folder / "model_index.json")
        paths = [path for name in index for path in sorted((folder / name).glob("*config.json"))]
        for path in [folder / "model_index.json", *paths]:
            values = cls._read(path)
            if values.pop("_name_or_path", None) is not None:
                cls._write(path, values)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values

    @staticmethod
    def _write(path: Path, values: dict[str, Any]) -> None:
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def _bases(cls) -> list[type]:
        """This class and its bases in the same package, base first."""
        package = cls.__module__.split(".")[0]
        return [base for base in reversed(cls.__mro__) if base.__module__.split(".")[0] == package]

    @classmethod
    def _is_ours(cls) -> bool:
        """Whether it is of this package: a class that somebody made of it elsewhere may need all that is there."""
        return cls.__module__.split(".")[0] == cls._PACKAGE

    @classmethod
    def _is_published(cls) -> bool:
        """Whether diffusers loaded this class from a published folder."""
        return cls.__module__.startswith("diffusers_modules.")

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As diffusers does it, and so that diffusers loads it."""
        super().save_pretrained(str(save_directory), *args, **kwargs)  # type: ignore[misc]
        if self._is_ours():
            self.complete(save_directory)

    def _upload_folder(self, working_dir: str | Path, *args: Any, **kwargs: Any) -> Any:
        """What diffusers' `push_to_hub` calls with what it has saved."""
        if self._is_ours():
            self.complete(working_dir)
        return super()._upload_folder(working_dir, *args, **kwargs)  # type: ignore[misc]
