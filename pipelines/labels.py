"""Class labels: numbers or names in, the network's keyword arguments out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.arguments import brief, sequence, string, whole

ClassLabels = int | str | Sequence[int] | Sequence[str] | Tensor
"""One label for all images or one for each, as numbers or as names."""


def check_id2label(id2label: Any) -> dict[int, str] | None:
    """Names of classes, with the numbers that JSON has made strings.

    Raises:
        TypeError: for what maps no numbers to names.
        ValueError: for numbers that don't count up from 0.
    """
    if id2label is None:
        return None
    if not isinstance(id2label, Mapping):
        raise TypeError(f"id2label: must map numbers to names, got {brief(id2label)}")
    names = {}
    for key, name in id2label.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        names[whole("id2label", number, 0)] = string("id2label", name)
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"id2label: must name the classes from 0 to {len(names) - 1}, names {sorted(names)}")
    return names


def num_classes(id2label: dict[int, str] | None, num_embeds: int | None) -> int:
    """Classes that can be asked for, of a network with `num_embeds` rows in its label table.

    A network trained with dropped labels has a last row for the null class, the condition of no label. Without names,
    the last row is taken for it; where it is the only one, as of a DiT without classes, the model is unconditional.
    """
    if num_embeds is None:
        return 0
    return len(id2label) if id2label else num_embeds - 1


def label_conditions(
    class_labels: ClassLabels | None,
    *,
    num_embeds: int | None,
    id2label: dict[int, str] | None,
    batch_size: int,
    device: torch.device,
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Keyword arguments of the network for the labels (B,) and for the null class, None if there is none.

    Args:
        class_labels: one for all images or one for each.
        num_embeds: rows of the network's label table; None for an unconditional network.
        id2label: names of the classes.
        batch_size: B.
        device: of the network.

    Raises:
        TypeError: for labels that are neither whole numbers nor names.
        ValueError: for labels that the network doesn't know, that don't match the batch, or are missing.
    """
    known = num_classes(id2label, num_embeds)
    if not known and class_labels is not None:
        raise ValueError("class_labels: this model is unconditional; leave them out")
    if num_embeds is None:
        return {}, None
    null = {"class_labels": torch.full((batch_size,), known, device=device)} if num_embeds == known + 1 else None
    if class_labels is None:
        if null is None:
            raise ValueError(f"class_labels: this model needs them: {_allowed(known, id2label)}")
        return null, null if known else None
    ids = _label_ids(class_labels, known, id2label)
    if len(ids) not in (1, batch_size):
        raise ValueError(f"class_labels: {len(ids)} given for {batch_size} images; give one, or one per image")
    return {"class_labels": torch.tensor(ids, device=device).expand(batch_size)}, null


def _label_ids(class_labels: ClassLabels, known: int, id2label: dict[int, str] | None) -> list[int]:
    given: Any = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
    by_name = {name: i for i, name in (id2label or {}).items()}
    one = isinstance(given, int | float | str)
    ids = []
    for label in [given] if one else sequence("class_labels", given, "numbers or names"):
        number = by_name.get(label, -1) if isinstance(label, str) else whole("class_labels", label, -(2**63))
        if not 0 <= number < known:
            raise ValueError(f"class_labels: {brief(label)} is not among {_allowed(known, id2label)}")
        ids.append(number)
    return ids


def _allowed(known: int, id2label: dict[int, str] | None) -> str:
    names = list((id2label or {}).values())
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"0 to {known - 1}" + (f" ({shown})" if names else "")
