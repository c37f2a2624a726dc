"""Samples of shards behind a URL, each fetched once by a machine and kept in its cache.

A sample, about 1 MiB, is the unit: its bytes in its tar are what a request is for, and what comes
is compared with the index before any rank sees it.
"""

import threading
import time
from dataclasses import dataclass

import numpy as np
import torch

from mlm.data.index import ID_BYTES, Index, ids_check
from mlm.data.reading.remote_files import RemoteFolder, Threads
from mlm.data.reading.sample_cache import USED_AGAIN, SampleCache
from mlm.data.reading.store import KEPT
from mlm.errors import BadShard, DataError

DOWNLOADS = 3  # of a sample that does not come as it was written


@dataclass
class Mapped:
    """The ids of a sample, and when it was last noted that they are used, in monotonic seconds."""

    ids: np.ndarray
    noted: float


class RemoteStore:
    """The ids of an index's samples, mapped from the cache. Threads may share one."""

    def __init__(
        self, index: Index, files: RemoteFolder, cache: SampleCache, kept: int = KEPT
    ) -> None:
        """kept: samples that this and its reader hold on to, as those that are deleted from the
        cache take their place on the disk until then"""
        self._index, self._files, self._cache = index, files, cache
        self.kept = min(kept, KEPT)
        self._maps: dict[int, Mapped] = {}
        self._lock = threading.Lock()
        self._threads = Threads()

    def ids(self, sample: int) -> np.ndarray:
        """Those of a sample, (tokens,) int32, which agree with the index.

        Raises BadShard where the shard is missing or bad, and DataError where it is out of reach.
        """
        found = self._maps.get(sample)
        if found is None:
            found = Mapped(self._load(sample), time.monotonic())
            with self._lock:
                self._maps[sample] = found
                while len(self._maps) > self.kept:
                    del self._maps[next(iter(self._maps))]
        return found.ids

    def fetch(self, samples: np.ndarray, whole: np.ndarray) -> None:
        """Fetches those that are not here, at once, and notes that the others are used."""
        missing, now = [], time.monotonic()
        for sample in np.unique(np.append(samples, samples[~whole] + 1)).tolist():
            found = self._maps.get(sample)
            if found is None:
                missing.append(sample)
            elif now - found.noted > USED_AGAIN:
                self._cache.used(sample)
                found.noted = now
        if missing:
            self._threads.each(self.ids, missing)

    def _load(self, sample: int) -> np.ndarray:
        found = self._mapped(sample)
        if found is not None:
            return found
        with self._cache.lock(sample):
            found = self._mapped(sample)  # which another has fetched while we waited
            if found is not None:
                return found
            ids = self._downloaded(sample)
            self._cache.put(sample, ids.tobytes())
            found = self._mapped(sample)
        return ids if found is None else found  # it may have been deleted for others already

    def _mapped(self, sample: int) -> np.ndarray | None:
        """A sample of the cache; None where it is not there. One that is not whole is deleted.

        Mapped by torch, since it keeps no file open for a map, of which 1024 is the usual limit.
        """
        path, tokens = self._cache.path(sample), int(self._index.samples["tokens"][sample])
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return None
        if size == tokens * ID_BYTES:
            try:
                ids = torch.from_file(str(path), size=tokens, dtype=torch.int32).numpy()
            except RuntimeError:  # deleted since
                return None
            if ids_check(ids) == self._index.samples["check"][sample]:
                self._cache.used(sample)
                return ids
        self._cache.drop(sample)
        return None

    def _downloaded(self, sample: int) -> np.ndarray:
        fields = self._index.samples
        name = self._index.shard_name(int(fields["shard"][sample]))
        start, tokens = int(fields["offset"][sample]), int(fields["tokens"][sample])
        size = tokens * ID_BYTES
        for _ in range(DOWNLOADS):
            content = self._files.read(name, start, start + size)
            if len(content) > size:
                raise no_ranges(self._files.url)
            if len(content) == size:
                ids = np.frombuffer(content, "<i4")
                if ids_check(ids) == fields["check"][sample]:
                    return ids
        why = (
            "the ids there are not those that were written"
            if len(content) == size
            else f"{len(content)} bytes are there in place of {size}"
        )
        raise BadShard(
            name,
            start,
            f"the shard {self._files.url}/{name} is bad at byte {start}: {why}, in {DOWNLOADS} "
            f"downloads; copy it again, write the shards with `mlm shards`, or add "
            f"data.on_bad_shard=skip",
        )


def no_ranges(url: str) -> DataError:
    return DataError(
        f"the server of {url} sends a whole file where a range of its bytes is asked for, and "
        f"shards are read by ranges; use a server that has them (nginx, S3), or copy the shards "
        f"to this machine"
    )
