"""A page that samples a model in the browser, or watches a training: `python app.py --model DIR_OR_REPO`."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from snowmelt.config import Config, option, parse
from snowmelt.errors import UserError, run

DEMO = "runs/digits"
SPACE_MODEL = Path(__file__).with_name("model.txt")
"""In a Space, which starts this without arguments."""


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


def main() -> None:
    config = parse(AppConfig)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio, which isn't installed: pip install -e '.[app]'")
    if config.run:
        from snowmelt.app.training import watch

        watch(Path(config.run))
        return
    name = config.model or (SPACE_MODEL.read_text().strip() if SPACE_MODEL.exists() else DEMO)
    if name == DEMO and not config.model and not Path(DEMO).is_dir():
        raise UserError(f"--model: there is no {DEMO} yet; `make demo` trains it in minutes, or name another model")

    from snowmelt.app.serve import serve

    serve(name, config.revision)


if __name__ == "__main__":
    run(main)
