"""What becomes of the captions of a row of a shard: themselves, or their text embeddings that it holds."""

from dataclasses import dataclass

import numpy as np

from snowmelt.data.captions import texts_of
from snowmelt.data.shards import Row
from snowmelt.errors import UserError


@dataclass(frozen=True)
class RowCaptions:
    """Rows to captions.

    Attributes:
        column: of the captions.
    """

    column: str

    def __call__(self, row: Row, number: int) -> list[str]:
        """The captions of a row, at least one.

        Args:
            row: the row.
            number: its number in the data set, for messages.

        Raises:
            UserError: if it has none.
        """
        texts = texts_of(row[self.column])
        if not texts:
            raise UserError(
                f"--caption_column {self.column}: row {number} has no caption; mend the data, or leave out --streaming "
                "and add --skip_empty_captions"
            )
        return texts


@dataclass(frozen=True)
class RowStates:
    """Rows to the text embeddings of their captions.

    Attributes:
        length: the most tokens of a caption.
        width: channels of an embedding.
        dtype: of its values.
        masked: whether embeddings of padding aren't there; else all captions have `length` tokens.
        column: of the embeddings.
    """

    length: int
    width: int
    dtype: np.dtype
    masked: bool
    column: str

    def __call__(self, row: Row, number: int) -> list[np.ndarray]:
        """The embeddings (tokens, D) of each caption of a row.

        Args:
            row: the row.
            number: its number in the data set.

        Raises:
            ValueError: if they aren't of such captions.
        """
        found = [self.read(content or b"") for content in row[self.column] or []]
        if not found:
            raise ValueError("no caption there")
        return found

    def read(self, content: bytes) -> np.ndarray:
        """The embeddings (tokens, D) of a caption; errors as above."""
        states = np.frombuffer(content, self.dtype).reshape(-1, self.width)
        if not (1 if self.masked else self.length) <= len(states) <= self.length:
            raise ValueError(f"embeddings of {len(states)} tokens, where captions have {self.length}")
        return states
