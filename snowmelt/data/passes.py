"""A file that is written pass by pass, by a builder that may be killed and resumed."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from snowmelt.data.store import check_space

PASSES = "passes.crc"  # checksums of the passes that a builder, which may be killed, has written
CRC_BYTES = 4


def write_passes(
    file: Path,
    values_of: Callable[[int, int], np.ndarray],
    *,
    count: int,
    batch: int,
    size: int,
    what: str,
    doing: str,
) -> None:
    """Append what is missing of a file of `count` rows.

    Passes are those of an uninterrupted writer, and so are the bits, which may depend on what is computed together.

    Args:
        file: in a folder of its own, beside which there is only what this function writes.
        values_of: rows from the first number up to the second, contiguous (B, ...).
        count: rows of the whole file.
        batch: rows of a pass.
        size: bytes of a row.
        what: it holds, in the plural, for messages.
        doing: what is shown beside the progress.

    Raises:
        UserError: if the disk is full; and what `values_of` raises.
    """
    sums = file.parent / PASSES
    done = batch * _intact(file, sums, size * batch)
    check_space(file.parent.parent, (count - done) * size, what)
    with (
        file.open("ab") as values_file,
        sums.open("ab") as passes,
        tqdm(total=count, initial=done, desc=doing, unit="img") as bar,
    ):
        values_file.truncate(done * size)
        passes.truncate(done // batch * CRC_BYTES)
        for start in range(done, count, batch):
            values = values_of(start, min(start + batch, count))
            values_file.write(values.data)
            values_file.flush()  # a kill then loses no more than a pass
            passes.write(zlib.crc32(values.data).to_bytes(CRC_BYTES, "little"))
            passes.flush()
            bar.update(len(values))
        os.fsync(values_file.fileno())
    sums.unlink()


def _intact(file: Path, sums: Path, size: int) -> int:
    """How many passes, of `size` bytes each, a killed writer has left as it wrote them."""
    if not (file.is_file() and sums.is_file()):
        return 0
    written, done = sums.read_bytes(), 0
    with file.open("rb") as values_file:
        for start in range(0, len(written) - CRC_BYTES + 1, CRC_BYTES):
            values = values_file.read(size)
            if len(values) < size or zlib.crc32(values).to_bytes(CRC_BYTES, "little") != written[start:][:CRC_BYTES]:
                break
            done += 1
    return done
