"""Splits of a data set, their slices and sums, as `datasets` writes them: train[:10%]+test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets

from snowmelt.errors import UserError, one_line

Piece = tuple[str, int, int]
"""A split, and its rows from the first number to before the second."""


@dataclass(frozen=True)
class Split:
    """What an option says of splits."""

    spec: str
    flag: str = "split"

    def __str__(self) -> str:
        return f"--{self.flag} {self.spec}"

    def names(self) -> list[str]:
        """The splits that are named.

        Raises:
            UserError: if it can't be read.
        """
        return [part.partition("[")[0] for part in self._instruction().to_spec().split("+")]

    def check(self, known: Sequence[str], source: str) -> None:
        """Refuse splits that don't exist; `all` is the sum of those that do.

        Raises:
            UserError: if it can't be read, or names one that isn't known.
        """
        unknown = [name for name in self.names() if name not in (*known, "all")]
        if unknown:
            raise UserError(f"{self}: {source} has {', '.join(known) or 'no splits'}")

    def pieces(self, sizes: dict[str, int]) -> list[Piece]:
        """The rows that are meant.

        Args:
            sizes: rows of each split that exists.

        Raises:
            UserError: if it can't be read, or a piece has no rows.
        """
        instruction = self._instruction()
        total = sum(sizes.values())
        try:
            absolute = instruction.to_absolute({"all": total} | sizes)
        except ValueError as error:
            raise UserError(f"{self}: {one_line(error)}") from error
        pieces: list[Piece] = []
        for part in absolute:
            if part.from_ >= part.to:
                size = total if part.splitname == "all" else sizes[part.splitname]
                raise UserError(f"{self}: no rows in it; {part.splitname} has {size}, numbered from 0")
            if part.splitname == "all" and "all" not in sizes:
                pieces += self._of_all(part.from_, part.to, sizes)
            else:
                pieces.append((part.splitname, part.from_, part.to))
        return pieces

    @staticmethod
    def _of_all(start: int, stop: int, sizes: dict[str, int]) -> list[Piece]:
        pieces, before = [], 0
        for name, size in sizes.items():
            first, last = max(start - before, 0), min(stop - before, size)
            if first < last:
                pieces.append((name, first, last))
            before += size
        return pieces

    def _instruction(self) -> datasets.ReadInstruction:
        try:
            return datasets.ReadInstruction.from_spec(self.spec)
        except ValueError as error:
            raise UserError(
                f"{self}: can't be read ({one_line(error)}); give a split, slice or sum such as train, train[:10%], "
                "train[100:200] or train+test"
            ) from error


def select(
    wanted: Split, known: Sequence[str], open_split: Callable[[str], datasets.Dataset], source: str
) -> tuple[datasets.Dataset, list[Piece]]:
    """The rows that an option asks for, and which of which splits they are.

    Args:
        wanted: the option.
        known: splits that exist.
        open_split: one of them, by its name.
        source: what the data set is called.

    Raises:
        UserError: if it can't be read, names a split that doesn't exist, or has no rows.
    """
    wanted.check(known, source)
    names = wanted.names()
    needed = list(known) if "all" in names and "all" not in known else [n for n in known if n in names]
    opened = {name: open_split(name) for name in needed}
    pieces = wanted.pieces({name: len(dataset) for name, dataset in opened.items()})
    parts = [
        # A whole split stays the data set that it is, with its fingerprint.
        opened[name] if (first, last) == (0, len(opened[name])) else opened[name].select(range(first, last))
        for name, first, last in pieces
    ]
    if len(parts) == 1:
        return parts[0], pieces
    try:
        return datasets.concatenate_datasets(parts), pieces
    except ValueError as error:
        raise UserError(f"{wanted}: its parts don't have the same columns ({one_line(error)})") from error
