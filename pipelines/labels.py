"""Class labels: numbers or names in, the network's keyword arguments out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.arguments import ArgumentsMixin

ClassLabels = int | str | Sequence[int] | Sequence[str] | Tensor
"""One label for all images or one for each, as numbers or as names."""


class ClassLabelsMixin(ArgumentsMixin):
    """What a pipeline knows of its classes: `config.id2label` and the rows of the network's label table.

    A network trained with dropped labels has a last row for the null class, the condition of no label.
    """

    config: Any

    @classmethod
    def _int_keys(cls, id2label: dict[Any, str] | None) -> dict[int, str] | None:
        """`id2label` as it was before JSON made its keys strings."""
        if id2label is None:
            return None
        if not isinstance(id2label, Mapping):
            raise TypeError(f"id2label: must map numbers to names, got {cls._brief(id2label)}")
        names = {}
        for key, name in id2label.items():
            number = int(key) if isinstance(key, str) and key.isdecimal() else key
            names[cls._whole("id2label", number, 0)] = cls._text("id2label", name)
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"id2label: must name the classes from 0 to {len(names) - 1}, names {sorted(names)}")
        return names

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes, where they are known."""
        return self.config.get("id2label")

    def _num_classes(self, num_embeds: int | None) -> int:
        """Classes that can be asked for; without names, the last row is taken for the null class."""
        if num_embeds is None:
            return 0
        return len(self.id2label) if self.id2label else num_embeds - 1

    def _label_conditions(
        self, class_labels: ClassLabels | None, num_embeds: int | None, batch_size: int, device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Keyword arguments of the network for the labels (B,) and for the null class, None if there is none.

        Raises:
            TypeError: for labels that are neither whole numbers nor names.
            ValueError: for labels that the network doesn't know, that don't match the batch, or are missing.
        """
        if num_embeds is None:
            if class_labels is not None:
                raise ValueError("class_labels: this model is unconditional; leave them out")
            return {}, None
        known = self._num_classes(num_embeds)
        has_null = num_embeds == known + 1
        null = {"class_labels": torch.full((batch_size,), known, device=device)} if has_null else None
        if class_labels is None:
            if null is None:
                raise ValueError(f"class_labels: this model needs them: {self._allowed(known)}")
            return null, null
        ids = self._label_ids(class_labels, known)
        if len(ids) not in (1, batch_size):
            raise ValueError(f"class_labels: {len(ids)} given for {batch_size} images; give one, or one per image")
        return {"class_labels": torch.tensor(ids, device=device).expand(batch_size)}, null

    def _label_ids(self, class_labels: ClassLabels, known: int) -> list[int]:
        given: Any = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
        by_name = {name: i for i, name in (self.id2label or {}).items()}
        one = isinstance(given, int | float | str)
        labels = [given] if one else self._sequence("class_labels", given, "numbers or names")
        ids = []
        for label in labels:
            number = by_name.get(label, -1) if isinstance(label, str) else self._whole("class_labels", label, -(2**63))
            if not 0 <= number < known:
                raise ValueError(f"class_labels: {self._brief(label)} is not among {self._allowed(known)}")
            ids.append(number)
        return ids

    def _allowed(self, known: int) -> str:
        names = list((self.id2label or {}).values())
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return f"0 to {known - 1}" + (f" ({shown})" if names else "")
