"""Files that come with the package: beside it in a clone, inside it where a wheel was installed."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The path of a script, of `recipes` or of `model_cards`.

    Args:
        name: of a file or folder at the top of the repository.
    """
    inside = PACKAGE / "shipped" / name
    return inside if inside.exists() else PACKAGE.parent / name
