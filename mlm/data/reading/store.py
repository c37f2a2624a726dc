"""Where a reader gets the ids of samples; here from a folder, whose tars are mapped."""

import os
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from mlm.data.index import ID_BYTES, Index
from mlm.errors import BadShard

MAX_MAPS = 8192  # tars; the system allows 65,530 maps in a process
MAX_SAMPLES = 16384  # verified samples of a reader: two windows of 16 chunks for 512 languages


class Store(Protocol):
    """The samples of an index. max_samples: how many of them a reader may keep in use"""

    max_samples: int

    def ids(self, sample: int) -> np.ndarray:
        """The ids of a sample, by its row in the index, (tokens,) int32, not verified.

        Raises BadShard where its shard is missing or has another size.
        """
        ...

    def fetch(self, samples: np.ndarray, cross: np.ndarray) -> None:
        """Prepares calls of `ids`, and raises as it does.

        samples: (rows,); cross: (rows,) bool, whether the sample that follows is needed as well
        """
        ...


class FolderStore:
    """The tars of a folder, memory-mapped: the ranks of a machine share the system's page cache,
    and only the tokens of a batch are copied."""

    max_samples = MAX_SAMPLES

    def __init__(self, index: Index) -> None:
        self._index = index
        self._tar = lru_cache(MAX_MAPS)(self._open)

    def ids(self, sample: int) -> np.ndarray:
        fields = self._index.samples
        first = int(fields["offset"][sample]) // ID_BYTES
        tar = self._tar(int(fields["shard"][sample]))
        return tar[first : first + int(fields["tokens"][sample])]

    def fetch(self, samples: np.ndarray, cross: np.ndarray) -> None:
        """Nothing: maps need no preparation."""

    def _open(self, shard: int) -> np.ndarray:
        """A whole tar as int32: tar blocks have 512 bytes and npy headers a multiple of 64, so ids
        are aligned.

        Mapped by torch, which closes the file: the usual limit of open files is 1024.
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
