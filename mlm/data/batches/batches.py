"""Micro-batches of fixed shape: for training by sample number, for evaluation a fixed list."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility
from mlm.data.audit.ledger import row_digests, total
from mlm.data.batches.masking import Masking, maskable
from mlm.data.draw import bits
from mlm.data.order.order import SampleOrder
from mlm.data.reading.reader import TokenReader
from mlm.errors import DataError
from mlm.tokenizer.ids import BOS, EOS, PAD
from parallel.keys import key

ROWS = 128  # computed at a time: more do not fit in a core's cache


class TrainingBatches:
    """The micro-batches of every step, each a function of its number alone."""

    def __init__(
        self,
        reader: TokenReader,
        order: SampleOrder,
        masking: Masking,
        seed: int,
        micro_batch_size: int,
        global_batch_size: int,
        isolated: bool = False,
    ) -> None:
        """Batch sizes count sequences; the global one is a multiple of the other.

        isolated: whether attention stays inside each document of a row
        """
        assert global_batch_size % micro_batch_size == 0, (global_batch_size, micro_batch_size)
        self.order = order
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.reader, self.masking, self.isolated = reader, masking, isolated
        self._mask_key = np.uint64(key(seed, "mask"))

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, over all data ranks."""
        return self.global_batch_size // self.micro_batch_size

    def micro_batch(self, step: int, k: int) -> MicroBatch:
        """Micro-batch `k` of a step, both from 0; the same in every layout."""
        return self.of_step(step, [k])[0]

    def of_step(self, step: int, numbers: Sequence[int]) -> list[MicroBatch]:
        """Micro-batches of a step by their numbers in it; together they cost less than singly."""
        at_a_time = max(1, ROWS // self.micro_batch_size)
        return [
            batch
            for first in range(0, len(numbers), at_a_time)
            for batch in self._make(step, numbers[first : first + at_a_time])
        ]

    def _make(self, step: int, numbers: Sequence[int]) -> list[MicroBatch]:
        assert all(0 <= k < self.micro_batches for k in numbers), numbers
        size, seq_len = self.micro_batch_size, self.order.seq_len
        firsts = step * self.global_batch_size + np.array(numbers) * size
        samples = (firsts[:, None] + np.arange(size)).ravel()
        languages, blocks = self.order.samples(samples)
        starts = blocks * (seq_len - 1)
        ids = self.reader.gather("train", languages, starts, seq_len - 1, step)
        lengths = np.full(len(samples), seq_len, np.int64)
        keys = bits(self._mask_key, samples.astype(np.uint64))
        masked = self.masking(ids, lengths, keys, step)
        digests = row_digests(samples, *masked)
        starts = document_starts(ids, lengths) if self.isolated else None
        rows = (slice(first, first + size) for first in range(0, len(samples), size))
        whole = _micro_batch(languages, masked, None, starts)
        return [replace(_rows(whole, of), digest=total(digests[of])) for of in rows]


class HeldOutBatches:
    """The held-out blocks that every evaluation scores, with the same masks each time.

    These are the first `blocks_per_language` blocks of each language, or all where that is 0. The
    last block of a language may be short, and is padded; it is skipped if fewer than two of its
    tokens can be masked. Masks are keyed by language and block, so that runs with different seeds
    are comparable.
    """

    def __init__(
        self,
        reader: TokenReader,
        masking: Masking,
        seq_len: int,
        micro_batch_size: int,
        blocks_per_language: int,
        isolated: bool = False,
    ) -> None:
        """isolated: as in training. Raises DataError where nothing of any language was held out."""
        self.reader, self.masking, self.isolated = reader, masking.single(), isolated
        self.seq_len, self.micro_batch_size = seq_len, micro_batch_size
        self.languages, self.blocks, self.tokens = self._rows(blocks_per_language)
        if not len(self.languages):
            raise DataError(
                f"no language of {reader.index.folder} has held-out text to evaluate on; write the "
                f"shards again from more text"
            )

    def __len__(self) -> int:
        """The number of micro-batches; the last is filled up with rows that have no targets."""
        return -(-len(self.languages) // self.micro_batch_size)

    def micro_batch(self, k: int) -> MicroBatch:
        """Micro-batch `k`; from `len` on, its rows have no targets, to give all ranks as many."""
        first = k * self.micro_batch_size
        rows = range(first, min(first + self.micro_batch_size, len(self.languages)))
        size = self.micro_batch_size
        ids = np.full((size, self.seq_len), PAD, np.int32)
        ids[:, 0] = BOS
        lengths, languages = np.ones(size, np.int64), np.zeros(size, np.int64)
        keys = np.zeros(size, np.uint64)
        for n, row in enumerate(rows):
            languages[n], lengths[n] = self.languages[row], self.tokens[row] + 1
            ids[n, 1 : lengths[n]] = self.block(row)
            name = self.reader.index.languages[languages[n]]
            keys[n] = key("evaluation", name, int(self.blocks[row]))
        starts = document_starts(ids, lengths) if self.isolated else None
        return _micro_batch(languages, self.masking(ids, lengths, keys), lengths, starts)

    def block(self, row: int) -> np.ndarray:
        """The token ids of a row without its `<s>`, (tokens,) int32."""
        start = int(self.blocks[row]) * (self.seq_len - 1)
        return self.reader.read("heldout", int(self.languages[row]), start, int(self.tokens[row]))

    def _rows(self, blocks_per_language: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Language, block and tokens of every row, each (rows,) int64."""
        rows, size = [], self.seq_len - 1
        for language, tokens in enumerate(self.reader.index.heldout_tokens):
            whole, rest = divmod(tokens, size)
            # No more than are scored: a large corpus has millions of blocks.
            scored = min(whole, blocks_per_language or whole)
            found = [(language, block, size) for block in range(scored)]
            if len(found) == whole and rest and self._can_mask(language, whole * size, rest):
                found.append((language, whole, rest))
            rows += found[:blocks_per_language] if blocks_per_language else found
        columns = np.array(rows, np.int64).reshape(-1, 3).T
        return columns[0], columns[1], columns[2]

    def _can_mask(self, language: int, start: int, count: int) -> bool:
        ids = self.reader.read("heldout", language, start, count)
        return int(maskable(ids, self.masking.mask_id).sum()) >= 2


def document_starts(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where in its row the document of each token starts, as in `Visibility`; int64.

    A document ends with its `</s>`, which is never masked, so masked ids give the same.
    """
    places = np.arange(ids.shape[1])
    first = np.zeros(ids.shape, np.int64)
    first[:, 1:] = np.where(ids[:, :-1] == EOS, places[1:], 0)
    starts = np.maximum.accumulate(first, axis=1)
    return np.where(places < lengths[:, None], starts, lengths[:, None])


def _micro_batch(
    languages: np.ndarray,
    masked: tuple[np.ndarray, np.ndarray, np.ndarray],
    lengths: np.ndarray | None,
    starts: np.ndarray | None,
) -> MicroBatch:
    """lengths: of rows that may end in padding; None: no row does."""
    input_ids, positions, targets = (torch.from_numpy(array).long() for array in masked)
    rows, seq_len = input_ids.shape
    visibility = Visibility(
        (rows, seq_len, seq_len),
        lengths=None if lengths is None else torch.from_numpy(lengths),
        document_starts=None if starts is None else torch.from_numpy(starts),
    )
    return MicroBatch(
        input_ids=input_ids,
        visibility=visibility,
        positions=positions,
        targets=targets,
        languages=torch.from_numpy(languages.astype(np.int64)),
    )


def _rows(batch: MicroBatch, rows: slice) -> MicroBatch:
    """Some rows of a batch, as a batch."""
    return replace(
        batch,
        input_ids=batch.input_ids[rows],
        visibility=batch.visibility.of_rows(rows),
        positions=batch.positions[rows],
        targets=batch.targets[rows],
        languages=batch.languages[rows],
    )
