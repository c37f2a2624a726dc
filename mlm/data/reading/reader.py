"""Ranges of a language's token stream, read from the samples of its shards.

The hash of a sample, about 1 MiB of ids, is compared with the index when it is first read, and all
that is given has ids of the tokenizer. So what a model is trained on is what `mlm shards` wrote.
"""

from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from mlm.data.index import SPLITS, Index, ids_check
from mlm.data.reading.memory import ID_BYTES, place_of, rows_at
from mlm.data.reading.store import FolderStore, Store
from mlm.errors import BadShard
from mlm.tokenizer.ids import BOS


class Sample(NamedTuple):
    """ids: (tokens,) int32, in memory from `place` on, as `rows_at` counts"""

    ids: np.ndarray
    place: int


PLACE = attrgetter("place")


class TokenReader:
    """Reads token ids of an index's shards. Threads may share one."""

    def __init__(self, index: Index, store: Store | None = None) -> None:
        self.index = index
        self._store = FolderStore(index) if store is None else store
        self._good = lru_cache(self._store.kept)(self._compared)
        self._first = {split: index.first_tokens(split) for split in SPLITS}
        self._starts, self._tokens = index.samples["start"], index.samples["tokens"]
        self.left_out: dict[int, int] = {}  # rows of shards, and the steps from which on

    def leave_out(self, shard: str, step: int) -> None:
        """Leaves the rows out that a shard is part of, by its file name, from a step on."""
        row = self.index.shard_row(shard)
        self.left_out[row] = min(step, self.left_out.get(row, step))

    def read(self, split: str, language: int, start: int, count: int) -> np.ndarray:
        """Tokens `start` to `start + count` of a split's stream of a language, (count,) int32.

        `split` is "train" or "heldout", `language` counts in the index's order. Raises BadShard
        where a shard is missing, or is not as it was written, also where it is left out of rows.
        """
        row = np.array([language]), np.array([start])
        samples, places, behind = self._places(split, *row, count)
        self._store.fetch(samples, ~behind)
        ids = np.empty(count, np.int32)
        self._fill(ids, int(samples[0]), int(places[0]))
        self._check(ids, samples, behind)
        return ids

    def gather(
        self, split: str, languages: np.ndarray, starts: np.ndarray, count: int, step: int = 0
    ) -> np.ndarray:
        """Rows of `<s>` and of `count` tokens of language `languages[i]` from `starts[i]` on, or of
        nothing but `<s>` where they are left out in this step; (rows, 1 + count) int32.

        Raises as `read`.
        """
        samples, places, behind = self._places(split, languages, starts, count)
        gone = [shard for shard, since in self.left_out.items() if since <= step]
        if not gone:
            return self._rows(samples, places, behind, count)
        kept = ~self._touch(gone, samples, behind)
        ids = np.full((len(samples), 1 + count), BOS, np.int32)
        ids[kept] = self._rows(samples[kept], places[kept], behind[kept], count)
        return ids

    def _places(
        self, split: str, languages: np.ndarray, starts: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The samples in which rows begin, where in them, and whether they go on behind them."""
        first = self._first[split][languages] + starts
        samples = self._starts.searchsorted(first, side="right") - 1
        places = first - self._starts[samples]
        return samples, places, places + count > self._tokens[samples]

    def _touch(self, shards: list[int], samples: np.ndarray, behind: np.ndarray) -> np.ndarray:
        """Whether rows have tokens of some shards."""
        of = self.index.samples["shard"]
        after = np.minimum(samples + 1, len(of) - 1)
        return np.isin(of[samples], shards) | (behind & np.isin(of[after], shards))

    def _rows(
        self, samples: np.ndarray, places: np.ndarray, behind: np.ndarray, count: int
    ) -> np.ndarray:
        """What `gather` gives of rows that are not left out."""
        self._store.fetch(samples, ~behind)
        good = list(map(self._good, samples.tolist()))  # held until they are copied
        first = np.fromiter(map(PLACE, good), np.int64, len(good)) + places
        first -= 1  # each with the id before it, where `<s>` comes
        apart = (behind | (places == 0)).nonzero()[0]
        if len(apart):
            nothing = np.zeros(1 + count, np.int32)
            first[apart] = place_of(nothing)
        ids = rows_at(first, 1 + count)
        ids[:, 0] = BOS
        for row in apart.tolist():
            self._fill(ids[row, 1:], int(samples[row]), int(places[row]))
        self._check(ids, samples, behind)
        return ids

    def _check(self, ids: np.ndarray, samples: np.ndarray, behind: np.ndarray) -> None:
        """Raises BadShard for ids that are none of the tokenizer's: they were written so, or were
        changed since their sample was found to be good."""
        if not ids.size or int(ids.view(np.uint32).max()) < self.index.vocab_size:
            return
        for sample in np.unique(np.append(samples, samples[behind] + 1)).tolist():
            all_ids = self._compared(sample).ids
            wrong = all_ids.view(np.uint32) >= self.index.vocab_size
            if wrong.any():
                place = int(np.argmax(wrong))
                known = f"which is none of the {self.index.vocab_size} of the tokenizer"
                raise self._bad(sample, place, f"the id there is {all_ids[place]}, {known}")

    def _fill(self, row: np.ndarray, sample: int, place: int) -> None:
        """Fills a row with the ids from a place of a sample on, and of those behind it."""
        done = 0
        while done < len(row):
            ids = self._good(sample).ids[place : place + len(row) - done]
            row[done : done + len(ids)] = ids
            done, sample, place = done + len(ids), sample + 1, 0

    def _compared(self, sample: int) -> Sample:
        """A sample that is as the index has it."""
        ids = self._store.ids(sample)
        if ids_check(ids) != self.index.samples["check"][sample]:
            raise self._bad(sample, 0, "the ids there are not those that were written")
        return Sample(ids, place_of(ids))

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
