"""How often a run has seen each sample, block and document: arithmetic over its order."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mlm.data.order.order import SampleOrder
from mlm.data.reading.reader import TokenReader
from mlm.errors import BadShard
from mlm.tokenizer.ids import EOS


@dataclass(frozen=True)
class Document:
    """A training document of a language.

    start, tokens: its place in the language's stream, and its length, `</s>` included
    least, most: how often its tokens were seen; they differ where a run ended or a block was
        skipped inside the document
    """

    start: int
    tokens: int
    least: int
    most: int


class Exposure:
    """What the first `steps` steps of a run have seen.

    skipped: steps, from 0, whose batches were not trained on; bad_shards: rows of shards, and the
    first step from which their samples were not trained on
    """

    def __init__(
        self,
        order: SampleOrder,
        reader: TokenReader,
        batch: int,
        steps: int,
        skipped: Collection[int] = (),
        bad_shards: Mapping[int, int] | None = None,
    ) -> None:
        self.order, self.reader, self.batch, self.steps = order, reader, batch, steps
        self._skipped = sorted(step for step in skipped if step < steps)
        self._bad = {row: step for row, step in (bad_shards or {}).items() if step < steps}
        self._drawn = [
            order.samples(np.arange(step * batch, (step + 1) * batch)) for step in self._skipped
        ]

    def samples(self) -> np.ndarray:
        """Samples of each language, (languages,) int64; the cost does not grow with the run."""
        counts = self.order.samples_per_language(self.steps * self.batch)
        for languages, _ in self._drawn:
            counts = counts - np.bincount(languages, minlength=len(counts))
        for language in {self.reader.index.split_of(row)[0] for row in self._bad}:
            counts[language] = self.blocks(language).sum()
        return counts

    def by_language(self) -> dict[str, dict[str, float]]:
        """Tokens of text, without `<s>`, and epochs of each language, by its name."""
        names, counts = self.order.languages, self.samples()
        tokens, epochs = counts * (self.order.seq_len - 1), counts / self.order.blocks
        return {
            "tokens_by_language": dict(zip(names, tokens.tolist(), strict=True)),
            "epochs_by_language": dict(zip(names, epochs.tolist(), strict=True)),
        }

    def blocks(self, language: int) -> np.ndarray:
        """How often each block of a language was seen, (blocks,) int64."""
        counts = self._before(language, self.steps)
        for languages, blocks in self._drawn:
            np.subtract.at(counts, blocks[languages == language], 1)
        for (first, last), since in self._bad_blocks(language).items():
            kept = self._before(language, since)[first:last]
            for step, (languages, blocks) in zip(self._skipped, self._drawn, strict=True):
                if step < since:
                    here = blocks[(languages == language) & (blocks >= first) & (blocks < last)]
                    np.subtract.at(kept, here - first, 1)
            counts[first:last] = np.minimum(counts[first:last], kept)
        return counts

    def documents(self, language: int) -> Iterator[Document]:
        """A language's documents, in the order of its stream; reads all of its tokens.

        Skips samples that cannot be read; of a document that is partly in one, the rest counts.
        """
        size = self.order.seq_len - 1
        # Tokens after the last whole block are in no sample.
        counts = np.append(self.blocks(language), 0)
        for start, end in self._spans(language):
            first, last = start // size, (end - 1) // size
            seen = counts[min(first, len(counts) - 1) : last + 1]
            yield Document(start, end - start, int(seen.min()), int(seen.max()))

    def _before(self, language: int, steps: int) -> np.ndarray:
        """`blocks` of the first `steps` with nothing skipped."""
        total = int(self.order.blocks[language])
        drawn = int(self.order.samples_per_language(steps * self.batch)[language])
        epochs, rest = divmod(drawn, total)
        counts = np.full(total, epochs, np.int64)
        counts[self.order.drawn_blocks(language, epochs * total, rest)] += 1
        return counts

    def _bad_blocks(self, language: int) -> dict[tuple[int, int], int]:
        """The blocks (first, last + 1) with tokens of bad shards, and the first step without
        them."""
        index, size = self.reader.index, self.order.seq_len - 1
        begin = int(index.first_tokens("train")[language])
        shards = index.samples["shard"]
        found = {}
        for row, since in self._bad.items():
            if index.split_of(row) != (language, "train"):
                continue
            samples = slice(*shards.searchsorted([row, row + 1]).tolist())
            first = int(index.samples["start"][samples][0]) - begin
            last = first + int(index.samples["tokens"][samples].sum())
            found[first // size, min(-(-last // size), int(self.order.blocks[language]))] = since
        return found

    def _spans(self, language: int) -> Iterator[tuple[int, int]]:
        """The begin and end of each document in a language's stream."""
        index, start, place = self.reader.index, 0, 0
        for tokens in index.samples["tokens"][index.sample_rows("train", language)].tolist():
            try:
                ids = self.reader.read("train", language, place, tokens)
            except BadShard:
                if place > start:
                    yield start, place
                start = place = place + tokens
                continue
            for end in (np.flatnonzero(ids == EOS) + place + 1).tolist():
                yield start, end
                start = end
            place += tokens
        if place > start:  # the end of a document could not be read
            yield start, place
