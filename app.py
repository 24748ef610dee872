"""A page that samples a model in the browser, or watches a training: `python app.py --model DIR_OR_REPO`."""

import importlib.util
from pathlib import Path

from snowmelt.app.options import AppConfig
from snowmelt.config import parse
from snowmelt.errors import UserError, run

DEMO = "runs/digits"
SPACE_MODEL = Path(__file__).with_name("model.txt")
"""In a Space, which starts this without arguments."""


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
