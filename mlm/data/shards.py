"""Token shards: WebDataset tars of ids, and their index, from a corpus and a tokenizer.

A language is one job: a first pass finds what is held out, a second one tokenizes and writes. What
is written depends on text and tokenizer only, to the byte, and not on the number of workers.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset

from mlm.data.heldout import HeldOut, held_out
from mlm.data.index import SAMPLE, SHARD, SPLITS, Totals, shard_name, write_index
from mlm.data.workers import each_job
from mlm.text.corpus import documents, languages
from mlm.text.folder import new_folder
from mlm.text.tokenizer import Tokenizer

SAMPLE_IDS = 1 << 18  # of int32: 1 MiB
SHARD_SAMPLES = 255  # with their headers just below 256 MiB
BATCH_CHARACTERS = 1 << 19  # that are tokenized in one call
WRITER = {"mtime": 0, "user": "polymlm", "group": "polymlm", "mode": 0o644}

Report = Callable[[int], None]


@dataclass(frozen=True)
class Written:
    """One language's part of the index: totals by split, and rows that count from 0."""

    totals: tuple[Totals, Totals]
    shards: np.ndarray
    samples: np.ndarray


def write(
    corpus: Path,
    tokenizer: Tokenizer,
    out: Path,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the shards of a corpus, and their index, into the new folder `out`.

    `workers` processes, None for one per core. `on_progress(done, total)` counts bytes of text once
    the first pass is over. Raises DataError for text that cannot be used, UserError where `out` has
    something in it or cannot be written; `out` is there whole or not at all.
    """
    files = languages(corpus)
    largest = sorted(files, key=lambda language: -files[language].stat().st_size)
    with new_folder(out) as folder:
        jobs = {language: (language, files[language]) for language in largest}
        rules = each_job(_rule, jobs, workers, _weight(files))
        largest.sort(key=lambda language: -rules[language].size)
        total = sum(rule.size for rule in rules.values())
        jobs = {
            language: (language, files[language], rules[language], tokenizer.model_path, folder)
            for language in largest
        }
        report = None if on_progress is None else lambda done: on_progress(done, total)
        written = each_job(_write_language, jobs, workers, _weight(files), report)
        _index(folder, tokenizer, [(language, written[language]) for language in files])


def _weight(files: dict[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def _rule(report: Report, language: str, path: Path) -> HeldOut:
    report(0)
    return held_out(language, path)


def _write_language(
    report: Report, language: str, path: Path, rule: HeldOut, model_path: Path, folder: Path
) -> Written:
    tokenizer = Tokenizer.load(model_path.parent)
    with ExitStack() as stack:
        streams = [stack.enter_context(_Stream(folder, language, split)) for split in SPLITS]
        for batch in _batches(path):
            _add(batch, rule, tokenizer, streams)
            report(sum(len(paragraph.encode()) for document in batch for paragraph in document))
    totals = tuple(stream.totals for stream in streams)
    shards = np.array([row for stream in streams for row in stream.shards], SHARD)
    samples = np.array([row for stream in streams for row in stream.samples], SAMPLE)
    samples["shard"][totals[0].samples :] += totals[0].shards
    return Written(totals, shards, samples)


def _batches(path: Path) -> Iterator[list[list[str]]]:
    """Documents, some at a time, since sentencepiece is fast on many lines in one call."""
    batch, characters = [], 0
    for document in documents(path):
        batch.append(document)
        characters += sum(map(len, document))
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _add(
    batch: list[list[str]], rule: HeldOut, tokenizer: Tokenizer, streams: list["_Stream"]
) -> None:
    """Tokenizes documents and adds each, or its parts, to the streams of their splits."""
    parts = [
        (part, stream)
        for document in batch
        for part, stream in zip(rule.split(document), streams, strict=True)
        if part
    ]
    encoded = iter(tokenizer.encode([paragraph for part, _ in parts for paragraph in part]))
    end = np.array([tokenizer.eos], np.int32)
    for part, stream in parts:
        ids = [next(encoded) for _ in part]
        if any(map(len, ids)):  # text of nothing but invisible characters has no ids
            stream.add([*ids, end], part)


class _Stream:
    """The tars of one split of a language, as they are written."""

    def __init__(self, folder: Path, language: str, split: str) -> None:
        self._folder, self._language, self._split = folder, language, split
        self._waiting: list[np.ndarray] = []
        self._waiting_ids = 0
        self._writer: webdataset.TarWriter | None = None
        self._bytes = self._characters = self._documents = self._tokens = 0
        self._in_shard: list[np.ndarray] = []
        self.shards: list[tuple] = []
        self.samples: list[tuple] = []

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._flush(everything=True)
            self._close()
        elif self._writer is not None:
            self._file.close()

    @property
    def totals(self) -> Totals:
        return Totals(
            self._bytes,
            self._characters,
            self._documents,
            self._tokens,
            len(self.samples),
            len(self.shards),
        )

    def add(self, ids: list[np.ndarray], text: list[str]) -> None:
        """Adds a document: the ids of its paragraphs and the `</s>` that ends it."""
        self._waiting += ids
        self._waiting_ids += sum(map(len, ids))
        self._bytes += sum(len(paragraph.encode()) for paragraph in text)
        self._characters += sum(map(len, text))
        self._documents += 1
        if self._waiting_ids >= SAMPLE_IDS:
            self._flush()
"""
