"""Batch calls of our tokenizer, sentencepiece, tokenizers and transformers, in one run.

    python tests/bench/bench_tokenizer.py [--vocab 20000 --lines 100 --rounds 15]

All four encode the same lines of all languages in POLYMLM_REAL_TEXT (of the sample corpus
where that is not there) with one model, trained on them before. Sentencepiece gives bare ids, as
lists, with as many threads as there are cores. tokenizers, the library below transformers, adds
`<s>` and `</s>`, pads nothing and knows offsets: the least that a layer over it would take. Ours
and transformers also return an attention mask. Rounds alternate A B C D A B C D ...; a ratio is
taken round by round, its median is the figure: above 1.00, ours is faster.
"""

import argparse
import lzma
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece
import tokenizers
import transformers
from transformers import XLMRobertaTokenizer as Theirs

from mlm.tokenizer.family.tokenizer import XLMRobertaTokenizer as Ours
from mlm.tokenizer.training import train

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.places import REAL, ROOT

SAMPLE = ROOT / "mlm" / "sample"


def corpus(count: int) -> dict[str, list[str]]:
    """The first lines of each language."""
    found = {}
    for path in sorted(REAL.glob("*.txt.xz")) or sorted(SAMPLE.glob("*.txt")):
        opened = lzma.open if path.suffix == ".xz" else open
        with opened(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = (line.rstrip("\n") for line in file)
            found[path.name.split(".")[0]] = list(islice(filter(None, lines), count))
    return found


def compare(title: str, batches: list[list[str]], calls: dict[str, Callable], rounds: int) -> None:
    """Runs all in turn over all batches; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            for batch in batches:
                call(batch)
            times[name].append(time.perf_counter() - start)
    times = {name: each[1:] for name, each in times.items()}
    figures = [f"{name} {1000 * statistics.median(each):.0f} ms" for name, each in times.items()]
    print(f"{title}: {', '.join(figures)}")
    for name in list(calls)[1:]:
        ratios = sorted(b / a for a, b in zip(times["ours"], times[name], strict=True))
        print(
            f"  {name} / ours: {statistics.median(ratios):.2f}x (from {ratios[0]:.2f} to "
            f"{ratios[-1]:.2f}, {len(ratios)} rounds)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=int, default=20000)
    parser.add_argument("--lines", type=int, default=100, help="lines of each language")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    languages = corpus(given.lines)
    lines = [line for each in languages.values() for line in each]
    with TemporaryDirectory() as holder:
        folder = Path(holder)
        (folder / "corpus").mkdir()
        for name, each in languages.items():
            (folder / "corpus" / f"{name}.txt").write_text("\n".join(each), encoding="utf-8")
        train(folder / "corpus", folder / "tokenizer", given.vocab)
        ours = Ours.from_pretrained(folder / "tokenizer", model_max_length=512)
        ours.save_pretrained(folder / "saved")
        theirs = Theirs.from_pretrained(folder / "saved", local_files_only=True)
        library = tokenizers.Tokenizer.from_file(str(folder / "saved" / "tokenizer.json"))
    plain = sentencepiece.SentencePieceProcessor(model_proto=ours.tokenizer.model)
    cores = len(os.sched_getaffinity(0))
    ids = ours(lines).input_ids
    unequal = sum(a != b for a, b in zip(ids, theirs(lines).input_ids, strict=True))
    print(
        f"{len(lines)} lines of {len(languages)} languages, {sum(map(len, lines))} characters, "
        f"{sum(map(len, ids))} tokens, {cores} cores; transformers {transformers.__version__} "
        f"gives other ids to {unequal} lines"
    )
    tensors: dict[str, Any] = {
        "padding": True,
        "truncation": True,
        "max_length": 128,
        "return_tensors": "pt",
    }
    offsets: dict[str, Any] = {"return_offsets_mapping": True}
    for size, title, options in (
        (1000, "lists of ids", dict[str, Any]()),
        (1000, "padded tensors of at most 128 tokens a line", tensors),
        (32, "padded tensors of at most 128 tokens a line", tensors),
        (1000, "ids and offsets", offsets),
    ):
        batches = [lines[first : first + size] for first in range(0, len(lines), size)]
        calls = {
            "ours": lambda batch, options=options: ours(batch, **options),
            "sentencepiece": lambda batch: plain.encode(batch, num_threads=cores),
            "tokenizers": lambda batch: [row.ids for row in library.encode_batch(batch)],
            "transformers": lambda batch, options=options: theirs(batch, **options),
        }
        compare(f"{title}, {size} lines a call", batches, calls, given.rounds)


if __name__ == "__main__":
    main()
