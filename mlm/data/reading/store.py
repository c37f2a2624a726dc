"""Where the ids of an index's shards are got from; here a folder, whose tars are mapped."""

import os
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from mlm.data.index import ID_BYTES, Index
from mlm.errors import BadShard

MAX_MAPS = 8192  # tars; the system allows 65,530 maps in a process
KEPT = 16384  # samples that a reader knows to be good, of which 2 windows of 16 chunks a language


class Store(Protocol):
    """Gives the ids of the samples of an index. kept: how many of them a reader may hold on to"""

    kept: int

    def ids(self, sample: int) -> np.ndarray:
        """Those of a sample, by its row in the index, (tokens,) int32; not compared with its hash.

        Raises BadShard where they are not to be had.
        """
        ...

    def fetch(self, samples: np.ndarray, whole: np.ndarray) -> None:
        """Gets ready what `ids` will be asked for: `samples` (rows,), and those behind them where
        `whole` (rows,) is false. Raises as it does."""
        ...


class FolderStore:
    """The tars of a folder, mapped where they lie: the system's page cache is what the ranks of a
    machine share, and nothing is copied but the tokens asked for."""

    kept = KEPT

    def __init__(self, index: Index) -> None:
        self._index = index
        self._tar = lru_cache(MAX_MAPS)(self._open)

    def ids(self, sample: int) -> np.ndarray:
        fields = self._index.samples
        first = int(fields["offset"][sample]) // ID_BYTES
        tar = self._tar(int(fields["shard"][sample]))
        return tar[first : first + int(fields["tokens"][sample])]

    def fetch(self, samples: np.ndarray, whole: np.ndarray) -> None:
        """Nothing: what is mapped is there."""

    def _open(self, shard: int) -> np.ndarray:
        """A whole tar as int32: tars are cut in 512 bytes and npy headers in 64, so ids align.

        Mapped by torch, since it keeps no file open for a map, of which 1024 is the usual limit.
        """
        path, size = self._index.shard_path(shard), int(self._index.shards["bytes"][shard])
        try:
            found = os.stat(path).st_size
            if found != size:
                raise BadShard(
                    self._index.shard_name(shard),
                    min(found, size),
                    f"the shard {path} has {found} bytes in place of the {size} of the index; copy "
                    f"the shards again, or write them with `mlm shards`",
                )
            mapped = torch.from_file(str(path), size=size // ID_BYTES, dtype=torch.int32)
        except (OSError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise BadShard(
                self._index.shard_name(shard),
                0,
                f"the shard {path} cannot be read ({why}); copy the shards again, or write them "
                f"with `mlm shards`",
            ) from None
        return mapped.numpy()
