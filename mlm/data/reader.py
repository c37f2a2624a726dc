"""Ranges of a language's token stream, read from the samples of its shards.

A sample, about 1 MiB of ids, is compared with the index when it is first read: its hash, and that
every id is one of the tokenizer's. So what a model is trained on is what `mlm shards` wrote.
"""

from functools import lru_cache

import numpy as np

from mlm.data.index import SPLITS, Index, ids_check
from mlm.data.store import FolderStore, Store
from mlm.errors import BadShard
from mlm.text.ids import BOS

ID_BYTES = 4
NEVER = -1  # a step before the first: nothing is left out


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
        out = np.empty((1, count), np.int32)
        self.gather(split, np.array([language]), np.array([start]), out, step=NEVER)
        return out[0]

    def gather(
        self,
        split: str,
        languages: np.ndarray,
        starts: np.ndarray,
        out: np.ndarray,
        skip: int = 0,
        step: int = 0,
    ) -> None:
        """Fills row i of `out`, (rows, columns) int32 and contiguous, from column `skip` on with
        the tokens of language `languages[i]` from `starts[i]` on; with `<s>` where they are left
        out in this step."""
        columns, count = out.shape[1], out.shape[1] - skip
        first = self._first[split][languages] + starts
        samples = self._starts.searchsorted(first, side="right") - 1
        places = first - self._starts[samples]
        inside = places + count <= self._tokens[samples]
        rows = np.arange(len(out))
        if self.left_out:
            gone = self._without(samples, inside, step)
            out[gone, skip:] = BOS
            rows, samples, places, inside = (
                each[~gone] for each in (rows, samples, places, inside)
            )
        self._store.fetch(samples, inside)
        # Views of memory, since numpy takes thrice as long to copy a row.
        flat, good = memoryview(out.reshape(-1)), self._good
        cells = (rows * columns + skip).tolist()
        for cell, sample, place, whole in zip(
            cells, samples.tolist(), places.tolist(), inside.tolist(), strict=True
        ):
            if whole:
                flat[cell : cell + count] = good(sample)[place : place + count]
            else:
                self._across(flat[cell : cell + count], sample, place)
        if out.size and int(out.view(np.uint32).max()) >= self.index.vocab_size:
            self._look_again(samples, inside)

    def _without(self, samples: np.ndarray, inside: np.ndarray, step: int) -> np.ndarray:
        """Whether rows are left out in a step, which begin in `samples` and end in them where
        `inside`, else in those behind."""
        gone = [shard for shard, since in self.left_out.items() if since <= step]
        shards = self.index.samples["shard"]
        behind = np.minimum(samples + 1, len(shards) - 1)
        return np.isin(shards[samples], gone) | (~inside & np.isin(shards[behind], gone))

    def _look_again(self, samples: np.ndarray, inside: np.ndarray) -> None:
        """Raises BadShard for the sample that was changed after it was found to be good."""
        for sample in np.unique(np.append(samples, samples[~inside] + 1)).tolist():
            self._compared(sample)

    def _across(self, row: memoryview, sample: int, place: int) -> None:
        """Fills a row with ids that begin in a sample, and go on in those behind it."""
        done = 0
        while done < len(row):
            ids = self._good(sample)[place : place + len(row) - done]
            row[done : done + len(ids)] = ids
            done, sample, place = done + len(ids), sample + 1, 0

    def _compared(self, sample: int) -> memoryview:
        """The ids of a sample, int32, that are as the index has them."""
        ids = self._store.ids(sample)
        if ids_check(ids) != self.index.samples["check"][sample]:
            raise self._bad(sample, 0, "the ids there are not those that were written")
        if len(ids) and int(ids.view(np.uint32).max()) >= self.index.vocab_size:
            wrong = int(np.argmax(ids.view(np.uint32) >= self.index.vocab_size))
            known = f"which is none of the {self.index.vocab_size} of the tokenizer"
            raise self._bad(sample, wrong, f"the id there is {ids[wrong]}, {known}")
        return memoryview(ids)

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
