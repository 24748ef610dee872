"""What `app.py` takes. Nothing here imports gradio or torch, so that `--help` is immediate."""

from dataclasses import dataclass

from snowmelt.config import Config, option
from snowmelt.errors import UserError


@dataclass(kw_only=True)
class AppConfig(Config):
    """Page."""

    model: str | None = option(None, "folder or Hub repository of the pipeline; what `make demo` trained by default")
    revision: str | None = option(None, "branch, tag or commit of the repository")
    run: str | None = option(None, "folder of a training to watch, in place of a model; nothing in it is changed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run and self.model:
            raise UserError("--run: shows a training, and --model samples a model; give one of them")
