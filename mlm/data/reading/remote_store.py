"""Samples of shards behind a URL, each fetched once per machine and kept in its cache.

A request is for the bytes of one sample in its tar, about 1 MiB, which are compared with the index
before any rank reads them.
"""

import threading
import time
from dataclasses import dataclass

import numpy as np
import torch

from mlm.data.index import ID_BYTES, Index, ids_check
from mlm.data.reading.remote_files import RemoteFolder, RequestThreads
from mlm.data.reading.sample_cache import USED_AGAIN, SampleCache
from mlm.data.reading.store import MAX_SAMPLES
from mlm.errors import BadShard, DataError

DOWNLOADS = 3  # attempts at a sample that arrives other than it was written


@dataclass
class MappedSample:
    """The ids of a sample, and when their last use was recorded, in monotonic seconds."""

    ids: np.ndarray
    recorded: float


class RemoteStore:
    """The ids of an index's samples, mapped from the cache. Threads may share one."""

    def __init__(
        self, index: Index, files: RemoteFolder, cache: SampleCache, max_samples: int = MAX_SAMPLES
    ) -> None:
        """max_samples: mapped at a time; a sample deleted from the cache takes space on the disk
        as long as it is mapped"""
        self._index, self._files, self._cache = index, files, cache
        self.max_samples = min(max_samples, MAX_SAMPLES)
        self._maps: dict[int, MappedSample] = {}
        self._lock = threading.Lock()
        self._threads = RequestThreads()

    def ids(self, sample: int) -> np.ndarray:
        """The ids of a sample, (tokens,) int32, which have the hash of the index.

        Raises BadShard where the shard is missing or bad, and DataError where it is unreachable.
        """
        found = self._maps.get(sample)
        if found is None:
            found = MappedSample(self._load(sample), time.monotonic())
            with self._lock:
                self._maps[sample] = found
                while len(self._maps) > self.max_samples:
                    del self._maps[next(iter(self._maps))]
        return found.ids

    def fetch(self, samples: np.ndarray, cross: np.ndarray) -> None:
        """Fetches the missing samples in parallel, and records a use of the others."""
        missing, now = [], time.monotonic()
        for sample in np.unique(np.append(samples, samples[cross] + 1)).tolist():
            found = self._maps.get(sample)
            if found is None:
                missing.append(sample)
            elif now - found.recorded > USED_AGAIN:
                self._cache.used(sample)
                found.recorded = now
        if missing:
            self._threads.each(self.ids, missing)

    def _load(self, sample: int) -> np.ndarray:
        found = self._mapped(sample)
        if found is not None:
            return found
        with self._cache.lock(sample):
            found = self._mapped(sample)  # another process may have fetched it meanwhile
            if found is not None:
                return found
            ids = self._downloaded(sample)
            self._cache.put(sample, ids.tobytes())
            found = self._mapped(sample)
        return ids if found is None else found  # it may be deleted again, for other samples

    def _mapped(self, sample: int) -> np.ndarray | None:
        """A sample of the cache; None where it is missing. A damaged one is deleted.

        Mapped by torch, which closes the file: the usual limit of open files is 1024.
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
        size, content = tokens * ID_BYTES, b""
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
        f"the server of {url} sends a whole file when a range of its bytes is requested, and "
        f"shards are read by ranges; use a server that supports them (nginx, S3), or copy the "
        f"shards to this machine"
    )
