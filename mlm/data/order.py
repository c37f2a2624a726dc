"""The order of samples: a pure function of a sample's number, without state.

The run is cut into rounds. In each, a language has a whole number of samples (`mix.py`), shuffled
by a key of the round; so how often a language was drawn before any sample is arithmetic. The i-th
drawing of a language takes block i of its epochs. A block is `seq_len - 1` tokens, block k being
tokens [(seq_len - 1) k, (seq_len - 1)(k + 1)) of the stream. An epoch permutes chunks of 512
blocks, and the blocks inside each window of chunks, so that reads stay near each other while
neighbours get far apart.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mlm.data.draw import permutation
from mlm.data.mix import ROUND, Mix
from mlm.errors import DataError
from parallel.keys import key

CHUNK = 512  # blocks, about 1 MiB of ids at 512 tokens
ROUNDS_KEPT = 4


class SampleOrder:
    """Which block of which language every sample number stands for."""

    def __init__(
        self,
        train_tokens: Sequence[int],
        language_names: Sequence[str],
        seq_len: int,
        mix: Mix,
        seed: int,
        shuffle_window: int = 16,
    ) -> None:
        """`shuffle_window` counts chunks. Raises DataError where a language has no whole block."""
        _check_blocks(train_tokens, language_names, seq_len)
        self.seq_len = seq_len
        self.languages = list(language_names)
        self.blocks = np.asarray(train_tokens, np.int64) // (seq_len - 1)
        self.mix = mix
        self._seed = seed
        self._window = shuffle_window
        # One or two windows of each language are in use at a time.
        self._round = lru_cache(ROUNDS_KEPT)(self._shuffled_round)
        self._chunks = lru_cache(2 * len(self.languages))(self._shuffled_chunks)
        self._blocks = lru_cache(2 * len(self.languages))(self._shuffled_blocks)

    def samples(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The languages (n,) int32 and blocks (n,) int64 of sample numbers (n,), from 0 up.

        The cost does not depend on the numbers.
        """
        numbers = np.asarray(numbers, np.int64)
        languages, draws = np.empty(len(numbers), np.int32), np.empty(len(numbers), np.int64)
        for round in np.unique(numbers // ROUND).tolist():
            here = numbers // ROUND == round
            drawn, before = self._round(round)
            places = numbers[here] - round * ROUND
            languages[here] = drawn[places]
            draws[here] = self.mix.before(round)[drawn[places]] + before[places]
        blocks = np.empty(len(numbers), np.int64)
        for language in np.unique(languages).tolist():
            here = languages == language
            blocks[here] = self.drawn_blocks(language, draws[here])
        return languages, blocks

    def drawn_blocks(self, language: int, draws: np.ndarray) -> np.ndarray:
        """The blocks of a language's drawings, counted from 0 over all epochs; int64."""
        total = int(self.blocks[language])
        epochs, places = np.divmod(draws, total)
        blocks = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs).tolist():
            _, short = self._chunks(language, epoch)
            windows, inside = _windows(places, total, short, self._window)
            for window in np.unique(windows[epochs == epoch]).tolist():
                here = (epochs == epoch) & (windows == window)
                blocks[here] = self._blocks(language, epoch, window)[inside[here]]
        return blocks

    def samples_per_language(self, samples_done: int) -> np.ndarray:
        """How many of the first `samples_done` samples each language had, (languages,) int64."""
        round, rest = divmod(samples_done, ROUND)
        counts = self.mix.before(round)
        if rest:
            drawn, _ = self._round(round)
            counts = counts + np.bincount(drawn[:rest], minlength=len(self.languages))
        return counts

    def tokens_per_language(self, samples_done: int) -> np.ndarray:
        """Tokens of text in them, without `<s>`; over a language's tokens, its epochs."""
        return self.samples_per_language(samples_done) * (self.seq_len - 1)

    def _shuffled_round(self, round: int) -> tuple[np.ndarray, np.ndarray]:
        """The language of each sample of a round, and how often the round drew it before."""
        quotas = self.mix.quotas(round)
        size = int(quotas.sum())  # ROUND, but for the last one of a run that ends
        order = permutation(size, key(self._seed, "round", round))
        drawn = np.repeat(np.arange(len(self.languages), dtype=np.int32), quotas)[order]
        before = np.empty(size, np.int64)
        firsts = np.repeat(np.cumsum(quotas) - quotas, quotas)
        before[np.argsort(drawn, kind="stable")] = np.arange(size) - firsts
        return drawn, before

    def _shuffled_chunks(self, language: int, epoch: int) -> tuple[np.ndarray, int]:
        """An epoch's order of a language's chunks, and the place of the last, shorter one in it."""
        count = -(-int(self.blocks[language]) // CHUNK)
        chunks = permutation(count, key(self._seed, "chunks", self.languages[language], epoch))
        return chunks, int(np.argmax(chunks == count - 1))

    def _shuffled_blocks(self, language: int, epoch: int, window: int) -> np.ndarray:
        """The blocks of one window of an epoch in the order in which they are drawn."""
        order, _ = self._chunks(language, epoch)
        chunks = order[window * self._window : (window + 1) * self._window]
        blocks = (chunks[:, None] * CHUNK + np.arange(CHUNK)).ravel()
        blocks = blocks[blocks < self.blocks[language]]
        name = self.languages[language]
        return blocks[permutation(len(blocks), key(self._seed, "blocks", name, epoch, window))]


def _windows(
    places: np.ndarray, total: int, short: int, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """The window of each place in an epoch of `total` blocks, and the place inside it.

    All windows have `window` chunks of 512 blocks, but for the last, and for that in which the
    short chunk came, as number `short` of the epoch: what follows it begins earlier by `missing`.
    """
    size = window * CHUNK
    missing = -total % CHUNK
    after = places >= (short // window + 1) * size - missing
    shifted = places + missing * after
    return shifted // size, shifted % size


def _check_blocks(tokens: Sequence[int], names: Sequence[str], seq_len: int) -> None:
    fewest, name = min(zip(tokens, names, strict=True))
    if fewest < seq_len - 1:
        raise DataError(
            f"the language {name} has {fewest} training tokens, and a block of data.seq_len="
            f"{seq_len} takes {seq_len - 1}; choose data.seq_len={fewest + 1} or less, or add text "
            f"to this language or leave it out"
        )
