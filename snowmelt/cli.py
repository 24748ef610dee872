"""The command `snowmelt`: the project's scripts by one name, from any folder.

`snowmelt train ...` is `python train_unconditional.py ...`, and so on. Several processes: `accelerate launch -m
snowmelt.cli train ...`. Nothing here imports torch, so that `--help` is immediate.
"""

import argparse
import importlib
import sys
from types import ModuleType
from typing import NamedTuple

from snowmelt.config import Config, make_parser
from snowmelt.errors import UserError, run
from snowmelt.shipped import shipped


class Command(NamedTuple):
    """One of the project's scripts.

    Attributes:
        script: its file.
        config: what it takes, as MODULE:CLASS.
        help: what it does.
    """

    script: str
    config: str
    help: str


COMMANDS = {
    "train": Command("train_unconditional.py", "snowmelt.options:UnconditionalConfig", "train a diffusion model"),
    "train-text2img": Command("train_text2img.py", "snowmelt.text.options:TextToImageConfig", "train on captions"),
    "train-autoencoder": Command(
        "train_autoencoder.py", "snowmelt.autoencoder.options:AutoencoderConfig", "train an autoencoder for latents"
    ),
    "encode": Command("encode.py", "snowmelt.encode_options:EncodeConfig", "encode images for an autoencoder, once"),
    "sample": Command("generate.py", "snowmelt.generate_options:GenerateConfig", "generate images from a model"),
    "evaluate": Command("evaluate.py", "snowmelt.evaluation.options:EvaluateConfig", "measure a model"),
    "app": Command("app.py", "snowmelt.app.options:AppConfig", "open a page that samples a model"),
    "publish": Command("publish.py", "snowmelt.publishing.options:PublishConfig", "put a model on the Hub"),
}
SHELLS = ("bash", "zsh", "tcsh")


def main() -> None:
    """The command; what the user can mend is said in one line."""
    run(_command)


def _command() -> None:
    parser = argparse.ArgumentParser(prog="snowmelt", description="Train your own diffusion model and share it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    commands.add_parser("doctor", help="what this machine has, and what is missing for what")
    completion = commands.add_parser("completion", help="print what makes a shell complete commands and flags")
    completion.add_argument("shell", choices=SHELLS)
    # What follows the name of a script is that script's own.
    given = sys.argv[1:2] if sys.argv[1:2] and sys.argv[1] in COMMANDS else sys.argv[1:]
    args = parser.parse_args(given)
    if args.command in COMMANDS:
        start(args.command, sys.argv[2:])
    elif args.command == "doctor":
        from snowmelt.doctor import report

        print(report())
    else:
        print(completions(args.shell))


def start(name: str, arguments: list[str]) -> None:
    """Run a script as if it had been called by itself."""
    path = shipped(COMMANDS[name].script)
    # As runpy does it, which would put the script's path in place of the command's name.
    script = ModuleType("__main__")
    script.__file__ = str(path)
    sys.modules["__main__"], sys.argv = script, [f"snowmelt {name}", *arguments]
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), vars(script))


def config_of(name: str) -> type[Config]:
    """What a command takes."""
    module, _, config = COMMANDS[name].config.partition(":")
    found: type[Config] = getattr(importlib.import_module(module), config)
    return found


def completions(shell: str) -> str:
    """A script for that shell.

    Raises:
        UserError: without shtab.
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError(f"completion: {error}; pip install 'snowmelt[completion]'") from error
    parser = argparse.ArgumentParser(prog="snowmelt")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        flags = make_parser(config_of(name))
        commands.add_parser(name, help=command.help, parents=[flags], conflict_handler="resolve")
    commands.add_parser("doctor")
    commands.add_parser("completion").add_argument("shell", choices=SHELLS)
    text: str = shtab.complete(parser, shell)
    return text


if __name__ == "__main__":
    main()
