"""The metadata at the top of a README.md."""

from typing import Any

import yaml


def metadata(readme: str) -> dict[str, Any]:
    """Empty when there is none; ValueError says what is wrong with it."""
    if not readme.startswith("---\n"):
        return {}
    head, end, _ = readme[4:].partition("\n---")
    if not end:
        raise ValueError("metadata has no end")
    try:
        values = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError("metadata must be a mapping")
    return values
