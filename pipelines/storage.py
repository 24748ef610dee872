"""How pipelines are loaded and saved: downloads are verified, and folders bring the code that loads them."""

import os
from logging import LogRecord
from pathlib import Path
from typing import Any, ClassVar

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging

from pipelines.bundle import INDEX_FILE, PACKAGE, bundled_source, complete_folder, read_json
from pipelines.download import cached_files, verify_snapshot
from pipelines.sampler import SEARCHED


def _is_of_others(record: LogRecord) -> bool:
    """Not of settings of a scheduler that diffusers ignores, and our adapters read."""
    return not any(f"'{name}'" in record.getMessage() for name in (SEARCHED, "solver_order"))


class StoredPipeline(DiffusionPipeline):
    """Base of pipelines whose folders anybody can load, with `DiffusionPipeline.from_pretrained` of diffusers.

    What a pipeline of diffusers samples just as well is saved as that pipeline, and needs no trust.
    """

    LIBRARIES = ("diffusers", "transformers")
    STOCK: ClassVar[dict[str, str]] = {}
    """Names of schedulers' classes, and of the pipelines of diffusers that sample plain networks with them."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As diffusers does it.

        Raises:
            TypeError: for what is neither a folder nor a name.
            ValueError: for an empty name, or settings that the pipeline refuses.
            OSError: if there is no such pipeline, or a part of it can't be read.
        """
        source = pretrained_model_name_or_path
        if not isinstance(source, str | os.PathLike):
            raise TypeError(
                f"pretrained_model_name_or_path: must be a folder or a name on the Hub, got {type(source).__name__}"
            )
        if not str(source):
            raise ValueError("pretrained_model_name_or_path: is empty; give a folder or a name on the Hub")
        messages = logging.get_logger("diffusers.configuration_utils")
        messages.addFilter(_is_of_others)
        try:
            return super().from_pretrained(source, **kwargs)
        finally:
            messages.removeFilter(_is_of_others)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """As diffusers does it, and verified where something new came.

        Raises:
            OSError: if a file isn't what the Hub holds. It is removed, so that the next call fetches it again.
        """
        cache_dir = kwargs.get("cache_dir")
        before = cached_files(pretrained_model_name, cache_dir)
        folder = Path(super().download(pretrained_model_name, **kwargs))
        if set(folder.glob("**/*")) - before:
            verify_snapshot(pretrained_model_name, folder, cache_dir=cache_dir, token=kwargs.get("token"))
        return str(folder)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As diffusers does it, and so that diffusers loads it."""
        super().save_pretrained(str(save_directory), *args, **kwargs)
        if self._is_ours():
            self.complete(save_directory)

    def _upload_folder(self, working_dir: str | Path, *args: Any, **kwargs: Any) -> Any:
        """What diffusers' `push_to_hub` calls with what it has saved."""
        if self._is_ours():
            self.complete(working_dir)
        return super()._upload_folder(working_dir, *args, **kwargs)

    @classmethod
    def source(cls) -> str:
        """The class's module as one file, with all that it imports from this package."""
        return bundled_source(cls.__module__)

    @classmethod
    def stock_class(cls, folder: str | Path, *, alike: bool = True) -> str | None:
        """The pipeline of diffusers that samples what a folder of `save_pretrained` holds, if there is one.

        Args:
            folder: of this pipeline, or of diffusers'.
            alike: None too where its samples differ from this one's: `DDIMPipeline` steps with the noise of the x0
                before clipping, `DDPMPipeline` ends in noise where the variance isn't the posterior's, and neither
                knows of times that were searched.
        """
        index = read_json(Path(folder) / INDEX_FILE)
        scheduler = index.get("scheduler", ("", ""))[1]
        if {name for name in index if name[0] != "_"} != {"unet", "scheduler"}:
            return None
        network = read_json(Path(folder) / "unet/config.json")
        if network.get("num_class_embeds") or network.get("class_embed_type"):
            return None
        config = read_json(Path(folder) / "scheduler/scheduler_config.json")
        differs = {
            "DDIMScheduler": config.get("clip_sample", True),
            "DDPMScheduler": not config.get("variance_type", "fixed_small").startswith("fixed_small"),
        }
        return None if alike and (differs.get(scheduler) or SEARCHED in config) else cls.STOCK.get(scheduler)

    @classmethod
    def complete(cls, folder: str | Path, *, stock: bool | None = None) -> None:
        """Turn a folder of diffusers' `save_pretrained` into one that diffusers loads; see `bundle`.

        Args:
            folder: of the pipeline.
            stock: True for the pipeline of diffusers in place of this one, False for this one; None for that of
                diffusers where it samples alike.

        Raises:
            ValueError: if there is no pipeline of diffusers, and `stock` is True.
        """
        name = None if stock is False or not cls.STOCK else cls.stock_class(folder, alike=not stock)
        if stock and name is None:
            raise ValueError(f"stock: no pipeline of diffusers samples what {folder} holds")
        complete_folder(folder, name or cls.__name__, None if name else cls.source())

    @classmethod
    def _dict_from_json_file(cls, json_file: str) -> dict[str, Any]:
        """A configuration; that of a published pipeline names its module too, whose place this class takes."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        for name, value in config.items():
            # diffusers would import whatever module is named there, one of the current folder for instance.
            named = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and name[0] != "_"
            if named and value[0] not in cls.LIBRARIES:
                raise ValueError(f"{name}: must be a class of {', '.join(cls.LIBRARIES)}, is {value}")
        return config

    @classmethod
    def _is_ours(cls) -> bool:
        """Whether it is of this package: a class that somebody made of it elsewhere may need all that is there."""
        return cls.__module__.split(".")[0] == PACKAGE
