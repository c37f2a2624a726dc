"""Ranges of a language's token stream, read from the tars by byte range.

Tar members are contiguous and not packed, so the ids are mapped where they lie: the system's page
cache is what ranks on one machine share, and nothing is copied but the tokens asked for.
"""

from functools import lru_cache

import numpy as np

from mlm.data.index import Index
from mlm.errors import DataError

MAX_MAPS = 256  # each holds a file descriptor, of which 1024 is the usual limit
ID_BYTES = 4


class TokenReader:
    """Reads token ids of an index's shards. Threads may share one."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._tar = lru_cache(MAX_MAPS)(self._open)
        self._rows = lru_cache(None)(self._columns)

    def read(self, split: str, language: int, start: int, count: int) -> np.ndarray:
        """Tokens `start` to `start + count` of a split's stream of a language, (count,) int32.

        `split` is "train" or "heldout", `language` counts in the index's order. Raises DataError
        where a shard is missing or has changed its size.
        """
        out = np.empty(count, np.int32)
        self._read_into(out, split, language, start)
        return out

    def gather(
        self, split: str, languages: np.ndarray, starts: np.ndarray, out: np.ndarray
    ) -> None:
        """Fills row i of `out`, (rows, count) of any integer type, with the tokens of language
        `languages[i]` from `starts[i]` on."""
        for row, language, start in zip(out, languages.tolist(), starts.tolist(), strict=True):
            self._read_into(row, split, language, start)

    def _read_into(self, out: np.ndarray, split: str, language: int, start: int) -> None:
        begins, ends, shards, offsets = self._rows(split, language)
        row = int(begins.searchsorted(start, side="right")) - 1
        done = 0
        while done < len(out):
            assert 0 <= row < len(begins), (split, language, start, len(out))
            skipped = start + done - int(begins[row])
            count = min(len(out) - done, int(ends[row]) - start - done)
            first = int(offsets[row]) // ID_BYTES + skipped
            out[done : done + count] = self._tar(int(shards[row]))[first : first + count]
            done += count
            row += 1

    def _columns(self, split: str, language: int) -> tuple[np.ndarray, ...]:
        """Begins and ends in tokens, shard rows and byte offsets of a language's samples.

        Contiguous copies, 32 bytes for each MiB of ids: a search in the mapped rows, which are not
        contiguous, would copy them each time.
        """
        rows = self.index.sample_rows(split, language)
        begins = np.ascontiguousarray(rows["start"])
        shards, offsets = np.ascontiguousarray(rows["shard"]), np.ascontiguousarray(rows["offset"])
        return begins, begins + rows["tokens"], shards, offsets

    def _open(self, shard: int) -> np.ndarray:
        """A whole tar as int32: tars are cut in 512 bytes and npy headers in 64, so ids align."""
        path, size = self.index.shard_path(shard), int(self.index.shards["bytes"][shard])
        try:
            mapped = np.memmap(path, dtype="<i4", mode="r")
        except (OSError, ValueError) as error:
            raise DataError(
                f"the shard {path} cannot be read ({error}); copy the shards again, or write them "
                f"with `mlm shards`"
            ) from None
        if mapped.nbytes != size:
            raise DataError(
                f"the shard {path} has {mapped.nbytes} bytes in place of the {size} of the index; "
                f"copy the shards again, or write them with `mlm shards`"
            )
        return np.asarray(mapped)
