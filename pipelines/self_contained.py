"""Pipelines that bring their own code: one file beside the weights, for machines that have diffusers alone."""

import ast
import inspect
import json
from pathlib import Path
from typing import Any


class SelfContainedMixin:
    """Base of pipelines that publish `pipeline.py` with their weights and name it in model_index.json.

    `save_pretrained` of diffusers writes the class's bare name and no source, which only code that knows the class
    can load. A published folder has the list form, ["pipeline", class], which diffusers loads, code and weights from
    one revision, with `trust_remote_code=True`.
    """

    # Read as the class is made: diffusers keeps the code of all repositories at one path, where the last one lies.
    _OWN_FILE = Path(__file__).read_text()

    @classmethod
    def source(cls) -> str:
        """The modules of this class and its bases as one, base first, without the imports of each other.

        Raises:
            ValueError: if one of them imports a module of the package that holds none of the bases.
        """
        if cls._is_published():
            return cls._OWN_FILE
        package = cls.__module__.split(".")[0]
        bases = [base for base in reversed(cls.__mro__) if base.__module__.split(".")[0] == package]
        modules = {base.__module__: inspect.getmodule(base) for base in bases}
        parts = []
        for name, module in modules.items():
            text = inspect.getsource(module)  # type: ignore[arg-type]
            lines = text.splitlines(keepends=True)
            for node in ast.parse(text).body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                    if node.module not in modules:
                        raise ValueError(f"{name} imports {node.module}, which a published {cls.__name__} won't have")
                    lines[node.lineno - 1 : node.end_lineno] = [""] * len(lines[node.lineno - 1 : node.end_lineno])
            parts.append("".join(lines).strip() + "\n")
        return "\n\n".join(parts)

    @classmethod
    def complete(cls, folder: str | Path) -> None:
        """Turn a folder of `save_pretrained` into a published one: add pipeline.py, and name it.

        The paths that the parts were loaded from, which diffusers notes in their configurations, are left out.
        """
        folder = Path(folder)
        cls.forget_paths(folder)
        index = folder / "model_index.json"
        values = json.loads(index.read_text()) | {"_class_name": ["pipeline", cls.__name__]}
        index.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        (folder / "pipeline.py").write_text(cls.source())

    @staticmethod
    def forget_paths(folder: Path) -> None:
        """Leave out, in a folder of `save_pretrained`, the paths that the parts were loaded from."""
        for path in [folder / "model_index.json", *folder.glob("*/*config.json")]:
            values = json.loads(path.read_text())
            values.pop("_name_or_path", None)
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    @classmethod
    def _is_published(cls) -> bool:
        """Whether diffusers loaded this class from a published folder."""
        return cls.__module__.startswith("diffusers_modules.")

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As diffusers does it; a pipeline that was loaded with its own code is saved with it again."""
        super().save_pretrained(str(save_directory), *args, **kwargs)  # type: ignore[misc]
        if self._is_published():
            self.complete(save_directory)

    def _upload_folder(self, working_dir: str | Path, *args: Any, **kwargs: Any) -> Any:
        """What diffusers' `push_to_hub` calls with what it has saved."""
        self.complete(working_dir)
        return super()._upload_folder(working_dir, *args, **kwargs)  # type: ignore[misc]
