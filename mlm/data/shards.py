"""Token shards: WebDataset tars of ids, and their index, from a corpus and a tokenizer.

A language is one job: a first pass finds what is held out, a second one tokenizes and writes. What
is written depends on text and tokenizer only, to the byte, and not on the number of workers.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlm.data.heldout import HeldOut, held_out
from mlm.data.index import SAMPLE_FIELDS, SHARD, SPLITS, Totals, write_index
from mlm.data.tars import TokenTars
from mlm.data.workers import Report, Workers
from mlm.text.corpus import documents, languages
from mlm.text.folder import new_folder
from mlm.text.tokenizer import Tokenizer

SHARD_FIELD, START_FIELD = SAMPLE_FIELDS.index("shard"), SAMPLE_FIELDS.index("start")
BATCH_CHARACTERS = 1 << 19  # that are tokenized in one call


@dataclass(frozen=True)
class Written:
    """One language's part of the index: totals by split, and rows that count from 0.

    shards: (shards,) of `SHARD`; samples: (fields, samples) int64
    """

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
    weight = sum(path.stat().st_size for path in files.values())
    with new_folder(out) as folder, Workers(workers, len(files), weight) as pool:
        rules = pool.each(_rule, {language: (language, files[language]) for language in largest})
        total = sum(rule.size for rule in rules.values())
        largest.sort(key=lambda language: -rules[language].size)
        jobs = {
            language: (language, files[language], rules[language], tokenizer.model_path, folder)
            for language in largest
        }
        report = None if on_progress is None else lambda done: on_progress(done, total)
        written = pool.each(_write_language, jobs, report)
        _write_index(folder, tokenizer, {language: written[language] for language in files})


def _write_index(folder: Path, tokenizer: Tokenizer, written: dict[str, Written]) -> None:
    """Joins the rows of all languages, which count from 0 in each."""
    shards = tokens = 0
    for part in written.values():
        part.samples[SHARD_FIELD] += shards
        part.samples[START_FIELD] += tokens
        shards += len(part.shards)
        tokens += sum(of.tokens for of in part.totals)
    write_index(
        folder,
        tokenizer,
        {language: part.totals for language, part in written.items()},
        np.concatenate([part.shards for part in written.values()]),
        np.concatenate([part.samples for part in written.values()], axis=1),
    )


def _rule(report: Report, language: str, path: Path) -> HeldOut:
    return held_out(language, path, report)


def _write_language(
    report: Report, language: str, path: Path, rule: HeldOut, model_path: Path, folder: Path
) -> Written:
    tokenizer = Tokenizer.load(model_path.parent)
    with ExitStack() as stack:
        streams = [stack.enter_context(TokenTars(folder, language, split)) for split in SPLITS]
        for batch in _batches(path):
            _add(batch, rule, tokenizer, streams)
            report(sum(len(paragraph.encode()) for document in batch for paragraph in document))
    totals = tuple(stream.totals for stream in streams)
    shards = np.array([row for stream in streams for row in stream.shards], SHARD)
    rows = [row for stream in streams for row in stream.samples]
    samples = np.array(rows, np.int64).reshape(-1, len(SAMPLE_FIELDS)).T
    samples[SHARD_FIELD, totals[0].samples :] += totals[0].shards
    samples[START_FIELD, totals[0].samples :] += totals[0].tokens
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
    batch: list[list[str]], rule: HeldOut, tokenizer: Tokenizer, streams: list[TokenTars]
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
