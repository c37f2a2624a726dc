"""Ranges of a language's token stream, read from the samples of its shards.

The hash of a sample, about 1 MiB of ids, is compared with the index when it is first read, and all
ids that are returned belong to the tokenizer. So a model is trained on what `mlm shards` wrote.
"""

from functools import lru_cache

import numpy as np

from mlm.data.index import ID_BYTES, SPLITS, Index, ids_check
from mlm.data.reading.store import FolderStore, Store
from mlm.errors import BadShard
from mlm.tokenizer.ids import BOS

_BEGIN, _NOTHING = np.array([BOS], np.int32), np.empty(0, np.int32)


class TokenReader:
    """Reads token ids of an index's shards. Threads may share one."""

    def __init__(self, index: Index, store: Store | None = None) -> None:
        self.index = index
        self._store = FolderStore(index) if store is None else store
        self._verified = lru_cache(self._store.max_samples)(self._verify)
        self._first = {split: index.first_tokens(split) for split in SPLITS}
        self._starts, self._tokens = index.samples["start"], index.samples["tokens"]
        self.skipped_shards: dict[int, int] = {}  # row of the shard: first step without it

    def skip_shard(self, shard: str, step: int) -> None:
        """From a step on, skips the rows with tokens of a shard, given by its file name."""
        row = self.index.shard_row(shard)
        self.skipped_shards[row] = min(step, self.skipped_shards.get(row, step))

    def read(self, split: str, language: int, start: int, count: int) -> np.ndarray:
        """Tokens `start` to `start + count` of a split's stream of a language, (count,) int32.

        `split` is "train" or "heldout", `language` counts in the index's order. Raises BadShard
        where a shard is missing or is not as it was written, even one whose rows are skipped.
        """
        samples, places = self._locate(split, np.array([language]), np.array([start]))
        return self._copy(samples, places, count)[0]

    def gather(
        self, split: str, languages: np.ndarray, starts: np.ndarray, count: int, step: int = 0
    ) -> np.ndarray:
        """Rows of `<s>` and the `count` tokens of language `languages[i]` from `starts[i]` on, or
        `<s>` throughout where the row is skipped in this step; (rows, 1 + count) int32.

        Raises as `read`.
        """
        samples, places = self._locate(split, languages, starts)
        skipped = [shard for shard, since in self.skipped_shards.items() if since <= step]
        if not skipped:
            return self._copy(samples, places, count, _BEGIN)
        kept = ~self._touch(skipped, samples, self._cross(samples, places, count))
        ids = np.full((len(samples), 1 + count), BOS, np.int32)
        ids[kept] = self._copy(samples[kept], places[kept], count, _BEGIN)
        return ids

    def _locate(
        self, split: str, languages: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The samples in which rows begin, and the places in them."""
        first = self._first[split][languages] + starts
        samples = self._starts.searchsorted(first, side="right") - 1
        return samples, first - self._starts[samples]

    def _cross(self, samples: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
        """Whether rows continue in the next sample."""
        return places + count > self._tokens[samples]

    def _touch(self, shards: list[int], samples: np.ndarray, cross: np.ndarray) -> np.ndarray:
        """Whether rows have tokens of any of `shards`."""
        shard_of = self.index.samples["shard"]
        following = np.minimum(samples + 1, len(shard_of) - 1)
        return np.isin(shard_of[samples], shards) | (cross & np.isin(shard_of[following], shards))

    def _copy(
        self, samples: np.ndarray, places: np.ndarray, count: int, head: np.ndarray = _NOTHING
    ) -> np.ndarray:
        """Rows of `head` and the `count` ids from a place in a sample on, (rows, head + count)."""
        cross = self._cross(samples, places, count)
        self._store.fetch(samples, cross)
        pieces = [_NOTHING]  # where there are no rows
        for sample, place in zip(samples.tolist(), places.tolist(), strict=True):
            piece = self._verified(sample)[place : place + count]
            pieces += head, piece
            missing = count - len(piece)
            while missing:  # the row crosses into the next sample
                sample += 1
                piece = self._verified(sample)[:missing]
                pieces.append(piece)
                missing -= len(piece)
        ids = np.concatenate(pieces).reshape(len(samples), len(head) + count)
        self._check(ids, samples, cross)
        return ids

    def _check(self, ids: np.ndarray, samples: np.ndarray, cross: np.ndarray) -> None:
        """Raises BadShard for ids outside the tokenizer's: they were written so, or were changed
        since their sample was verified."""
        if not ids.size or int(ids.view(np.uint32).max()) < self.index.vocab_size:
            return
        for sample in np.unique(np.append(samples, samples[cross] + 1)).tolist():
            sample_ids = self._verify(sample)
            outside = sample_ids.view(np.uint32) >= self.index.vocab_size
            if outside.any():
                place = int(np.argmax(outside))
                rule = f"which is none of the {self.index.vocab_size} of the tokenizer"
                raise self._bad(sample, place, f"the id there is {sample_ids[place]}, {rule}")

    def _verify(self, sample: int) -> np.ndarray:
        """The ids of a sample, (tokens,) int32, which have the hash of the index."""
        ids = self._store.ids(sample)
        if ids_check(ids) != self.index.samples["check"][sample]:
            raise self._bad(sample, 0, "the ids there are not those that were written")
        return ids

    def _bad(self, sample: int, place: int, why: str) -> BadShard:
        shard = int(self.index.samples["shard"][sample])
        name, trained = self.index.shard_name(shard), self.index.split_of(shard)[1] == "train"
        offset = int(self.index.samples["offset"][sample]) + place * ID_BYTES
        again = "copy it again, or write the shards with `mlm shards`"
        if trained:
            again += ", or add data.on_bad_shard=skip"
        return BadShard(
            name,
            offset,
            f"the shard {name} of {self.index.folder} is bad at byte {offset}: {why}; {again}",
        )
