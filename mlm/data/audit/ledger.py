"""The ledger of a run, `ledger.bin`: a hash of each batch that it was trained on, 8 bytes a step.

The hash of a row covers its sample number, its masked ids, its masked positions and its targets.
The hash of a batch is the sum of those of its rows, modulo 2^64, and thus the same for every
division into ranks and micro-batches. 0 stands for a batch that was skipped.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from mlm.data.draw import bits

LEDGER = "ledger.bin"
ROW = np.dtype("<u8")


class Ledger:
    """Writes the ledger, on one rank. Raises OSError."""

    def __init__(self, run: Path, steps: int) -> None:
        """Keeps the entries of the first `steps`, and drops later ones."""
        self.file = (run / LEDGER).open("r+b" if (run / LEDGER).exists() else "w+b", buffering=0)
        self.back(steps)

    def back(self, steps: int) -> None:
        """Drops the entries after the first `steps`."""
        self.file.truncate(steps * ROW.itemsize)
        self.file.seek(0, 2)

    def add(self, digest: int) -> None:
        """Appends the hash of the next step's batch: int64, as `total` returns it."""
        self.file.write(np.array(digest, np.int64).astype(ROW).tobytes())


def read_ledger(run: Path) -> np.ndarray:
    """The hashes of the steps of a run, (steps,) uint64; empty where it has no ledger."""
    path = run / LEDGER
    if not path.is_file() or path.stat().st_size < ROW.itemsize:
        return np.empty(0, ROW)
    return np.memmap(path, ROW, "r", shape=(path.stat().st_size // ROW.itemsize,))


def row_digests(
    numbers: np.ndarray, ids: np.ndarray, positions: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """The hashes of rows, (rows,) uint64.

    numbers: (rows,) of the samples; ids: (rows, seq_len); positions, targets: (rows, masked)
    """
    words = np.concatenate([ids, positions, targets], axis=1).astype(np.uint64)
    sums = (words * _weights(words.shape[1])).sum(axis=1, dtype=np.uint64)
    return bits(sums, numbers.astype(np.uint64))


def total(digests: np.ndarray) -> int:
    """The hash of a batch from those of its rows: their sum modulo 2^64, as an int64."""
    return int(digests.sum(dtype=np.uint64).astype(np.int64))


@lru_cache(4)
def _weights(count: int) -> np.ndarray:
    """Odd factors, so that every difference in a word changes the hash."""
    return bits(np.zeros(1, np.uint64), np.arange(count, dtype=np.uint64)) | np.uint64(1)
