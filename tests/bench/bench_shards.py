"""`mlm shards` against sentencepiece's own batch call, per core, and with more cores.

    python tests/bench/bench_shards.py [--corpus DIR --tokenizer DIR] [--megabytes 32 --rounds 7]
        [--scale-megabytes 400 --scale-rounds 2]

The text is that of DIR, or of the sample corpus, repeated up to a size; the tokenizer is DIR's, or
is trained on it before (20,000 ids, or what it has pieces for). On one core, in CPU seconds of the
process, three things take turns over the same text:

  sentencepiece   its batch call alone, `encode(lines, num_threads=1)`, to numpy arrays and to
                  lists of int, of which the sooner one counts; lines as `mlm shards` reads them
  tokenizing      in `mlm shards`: the same call, with documents ended, samples cut and hashed, and
                  tars written
  whole job       the same with reading and unpacking the text twice, once to find what is held out

The ratio is taken round by round and its median is the figure: above 1.00, ours is faster. Then
`mlm shards` as a whole runs on one core and on more, in seconds of the clock, once with the text as
one language and once as many; rounds alternate. Each process that is started takes some seconds
until it works, which is in these figures.
"""

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from mlm.data.writing import shards, staging
from mlm.data.writing.first_pass import first_pass
from mlm.data.writing.heldout import choose
from mlm.data.writing.tars import TokenTars
from mlm.data.writing.tokenizing import TextBatch, TextBatches, encoded
from mlm.text.corpus import languages, sample_corpus
from mlm.text.documents import documents
from mlm.text.sources import Sources
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.training import train


class OneCore:
    """The progress of a job that has one core."""

    def __call__(self, amount: int) -> None: ...

    def threads(self) -> int:
        return 1


def repeated(corpus: Path, folder: Path, size: int, one: bool) -> Path:
    """A corpus of about `size` bytes with the text of another one, as one language or as many."""
    folder.mkdir()
    texts = {
        name: "\n\n".join("\n".join(document) for document in documents(text)) + "\n\n"
        for name, text in languages(corpus).items()
    }
    if one:
        texts = {"all": "".join(texts.values())}
    times = max(1, round(size / sum(len(text.encode()) for text in texts.values())))
    for name, text in texts.items():
        with (folder / f"{name}.txt").open("w", encoding="utf-8") as file:
            for _ in range(times):
                file.write(text)
    return folder


def cpu(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(text: Sources, tokenizer: Tokenizer, holder: Path, rounds: int) -> None:
    """Times all on one core, in alternation."""
    share = shards.Options().heldout
    found = first_pass("all", text, OneCore(), share)
    rule = choose([found.text], share)["all"]
    batches: list[TextBatch] = []

    def read() -> None:  # each time: strings that were encoded once keep their UTF-8
        batches[:] = TextBatches(text, found, rule, [0, 0])

    def theirs(**options) -> None:
        for batch in batches:
            lines = [line for split in batch.splits for line in split.lines]
            tokenizer._processor.encode(lines, num_threads=1, **options)

    def tokenizing(folder: Path) -> None:
        journals = [staging.journal(folder, "all", split) for split in ("train", "heldout")]
        with (
            TokenTars(folder, "all", "train", journals[0]) as train,
            TokenTars(folder, "all", "heldout", journals[1]) as heldout,
        ):
            for batch in batches:
                for stream, ids in zip((train, heldout), encoded(batch, tokenizer, 1), strict=True):
                    stream.add(ids)

    def whole(folder: Path) -> None:
        (folder / staging.WORK).mkdir()
        options = shards.Options()
        found = shards._first_pass(OneCore(), folder, "all", text, options)
        rule = choose([found.text], share)["all"]
        shards._write_language(
            OneCore(), folder, "all", text, options, found, rule, tokenizer.model_path
        )

    calls = {
        "numpy": lambda folder: theirs(out_type="numpy"),
        "tokenizing": tokenizing,
        "int": lambda folder: theirs(),
        "whole job": whole,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            folder = holder / f"{name} {number}"
            folder.mkdir()
            read()
            times[name].append(cpu(lambda call=call, folder=folder: call(folder)))
    times = {name: each[1:] for name, each in times.items()}  # the first round warms up
    size = sum(one.size() for one in text)
    best = min(("numpy", "int"), key=lambda name: statistics.median(times[name]))
    for name, each in times.items():
        ratios = sorted(b / a for a, b in zip(each, times[best], strict=True))
        print(
            f"{'sentencepiece, ' * (name in ('numpy', 'int'))}{name}: "
            f"{size / statistics.median(each) / 1e6:.1f} MB of text per CPU second, "
            f"{statistics.median(ratios):.3f} of sentencepiece (from {ratios[0]:.3f} to "
            f"{ratios[-1]:.3f}, {len(ratios)} rounds)",
            flush=True,
        )


def scale(title: str, corpus: Path, tokenizer: Tokenizer, holder: Path, rounds: int) -> None:
    """Wall-clock seconds of `mlm shards`, on one core and on more."""
    cores = len(os.sched_getaffinity(0))
    counts = sorted({1, min(2, cores), cores})
    times: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts:
            start = time.perf_counter()
            out = holder / f"{title} {count} {number}"
            shards.write(corpus, tokenizer, out, workers=count)
            times[count].append(time.perf_counter() - start)
            shutil.rmtree(out)
    for count in counts:
        ratios = sorted(a / b for a, b in zip(times[1], times[count], strict=True))
        print(
            f"{title}, {count} cores: {statistics.median(times[count]):.2f} s, "
            f"{statistics.median(ratios):.2f} times as fast as one (from {ratios[0]:.2f} to "
            f"{ratios[-1]:.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=sample_corpus())
    parser.add_argument("--tokenizer", type=Path, help="its folder; else one is trained")
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale-megabytes", type=int, default=400)
    parser.add_argument("--scale-rounds", type=int, default=2)
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        holder = Path(name)
        if given.tokenizer is None:
            vocab = 4000 if given.corpus == sample_corpus() else 20000
            train(given.corpus, holder / "tokenizer", vocab)
        tokenizer = Tokenizer.load(given.tokenizer or holder / "tokenizer")
        some = repeated(given.corpus, holder / "some", given.megabytes * 1_000_000, one=True)
        compare(languages(some)["all"], tokenizer, holder, given.rounds)
        for title, single in (("one language", True), ("many languages", False)):
            text = repeated(given.corpus, holder / title, given.scale_megabytes * 1_000_000, single)
            scale(title, text, tokenizer, holder, given.scale_rounds)


if __name__ == "__main__":
    main()
