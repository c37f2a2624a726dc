"""Shuffled blocks of 512 ids per CPU second: ours, its peers, and a memory map as the limit.

    python tests/bench/bench_data.py [--peers-python PYTHON ... --rounds 5 --languages 4]

The same blocks for all, each in the format and with the shuffle of its own (data_contenders.py has
both), read by one process without workers from a warm page cache. An epoch of each contender is
checked first: every block once. Then rounds alternate A B C A B C ..., each contender in a process
of its own and over whole epochs. Medians, least and most, and ratios to the limit, round by round.

The peers need not be in the environment of the project. One for all but the last, and one for that:

    python -m venv peers
    peers/bin/pip install torch==2.13.0 webdataset datasets
    peers/bin/pip install --no-deps litdata  # requires torchvision, and does not use it here
    peers/bin/pip install lightning-utilities filelock boto3 requests tifffile obstore
    python -m venv streaming  # its limits on numpy and transformers are not those of the others
    streaming/bin/pip install mosaicml-streaming
    python tests/bench/bench_data.py --peers-python peers/bin/python streaming/bin/python

For each contender the first of these that has its package is taken. One that is nowhere installed,
or fails, is shown with its error.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mlm.data.index import SAMPLE_FIELDS, SHARD, Totals, write_index
from mlm.data.order.mix import ROUND, shares
from mlm.data.writing.journal import Journal, SplitCounts
from mlm.data.writing.tars import SplitIds, TokenTars
from mlm.tokenizer.ids import BOS, EOS, FIRST_PIECE
from tests.bench.data_contenders import CONTENDERS, SEQ_LEN

ROOT = Path(__file__).resolve().parents[2]
PROGRAM, VOCAB = Path(__file__).with_name("data_contenders.py"), 250002
LIMIT, OURS = "memmap", "ours"
FIND = "import sys, importlib.metadata as m; m.version(sys.argv[1])"


def write(folder: Path, languages: int, rounds: int) -> int:
    """Writes our shards to `folder/ours`, and their blocks, in order, to `folder/blocks.npy`.

    Returns the number of blocks.
    """
    (folder / "ours").mkdir()
    counts = shares(np.geomspace(1, 8, languages), ROUND) * rounds
    random, streams, totals = np.random.default_rng(0), [], {}
    blocks = np.empty((counts.sum(), SEQ_LEN), np.int32)
    blocks[:, 0], first = BOS, 0
    for n, count in enumerate(counts.tolist()):
        ids = random.integers(FIRST_PIECE, VOCAB - 1, (count, SEQ_LEN - 1), dtype=np.int32)
        ids[random.random(ids.shape, np.float32) < 1 / 400] = EOS
        blocks[first : first + count, 1:] = ids
        journal = Journal(folder / f"l{n:02d}.jsonl")
        with TokenTars(folder / "ours", f"l{n:02d}", "train", journal) as tars:
            for part in np.array_split(ids.ravel(), -(-ids.size // (1 << 20))):
                tars.add(SplitIds(part, 0, SplitCounts(tokens=len(part))))
        streams.append(tars)
        totals[f"l{n:02d}"] = tars.totals, Totals()
        first += count
    shards, samples = [], []
    for tars in streams:
        shards += [(*row, np.frombuffer(sha256, np.uint8)) for *row, sha256 in tars.shards]
        rows = np.array(tars.samples, np.int64).T
        done = streams[: streams.index(tars)]
        rows[SAMPLE_FIELDS.index("shard")] += sum(len(one.shards) for one in done)
        rows[SAMPLE_FIELDS.index("start")] += sum(one.totals.tokens for one in done)
        samples.append(rows)
    tokenizer: Any = SimpleNamespace(hash="0" * 64, size=VOCAB)
    all_samples = np.concatenate(samples, axis=1)
    write_index(folder / "ours", tokenizer, totals, np.array(shards, SHARD), all_samples)
    np.save(folder / "blocks.npy", blocks)
    return len(blocks)


def python_with(package: str, peers: list[str]) -> str | None:
    """The first interpreter that has a package; ours for this project's and for numpy."""
    if package in ("polymlm", "numpy"):
        return sys.executable
    for python in peers:
        if not subprocess.run([python, "-c", FIND, package], capture_output=True).returncode:
            return python
    return None


class Failed(Exception):
    """A contender that cannot be run, with the last line of its output."""


def run(python: str, name: str, folder: Path, act: str, seconds: float = 0.0) -> dict:
    """The result that a contender's process printed."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "home")}
    environment = os.environ | quiet | {"PYTHONPATH": str(ROOT)}
    command = [python, str(PROGRAM), name, str(folder), act, str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Failed((done.stderr.strip() or "no message").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def checked(folder: Path, blocks: int, peers: list[str]) -> dict[str, tuple[str, Path]]:
    """Interpreter and folder of each contender whose epochs have every block once."""
    ready, expected = {}, None
    for number, (name, contender) in enumerate(CONTENDERS.items()):
        place, python = folder / f"contender-{number}", python_with(contender.package, peers)
        try:
            if python is None:
                raise Failed(f"{contender.package} is not installed")
            place.mkdir()
            made = run(python, name, place, "write")
            found = run(python, name, place, "check")
            expected = expected or found  # of the limit, which is the first
            if found != expected or found["blocks"] != blocks:
                raise Failed(f"an epoch has {found} in place of {expected}, {blocks} blocks")
        except Failed as error:
            print(f"{name}: NOT RUN: {error}", flush=True)
            continue
        print(f"{name}: {contender.package} {made['version']}, every block once", flush=True)
        ready[name] = python, place
    return ready


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers-python", nargs="+", default=[sys.executable], metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--languages", type=int, default=4, help="the largest 8 times the smallest")
    parser.add_argument("--size", type=int, default=1, help=f"of an epoch, times {ROUND} blocks")
    parser.add_argument("--seconds", type=float, default=1.0, help="of CPU of a run, at least")
    parser.add_argument("--folder", type=Path, help="for the data; default: a temporary one")
    given = parser.parse_args()
    with TemporaryDirectory(dir=given.folder) as holder:
        blocks = write(Path(holder), given.languages, given.size)
        size = blocks * SEQ_LEN * 4 >> 20
        print(f"{blocks:,} blocks, {size} MiB, {given.languages} languages; numpy {np.__version__}")
        ready = checked(Path(holder), blocks, given.peers_python)
        rates: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(given.rounds):
            for name, (python, place) in ready.items():
                rates[name].append(run(python, name, place, "time", given.seconds)["rate"])
    print(f"{'thousand blocks per CPU second':32s} {'(least-most)':>24s}  limit is      resumes by")
    for name, each in rates.items():
        cells = shown([value / 1000 for value in each]), shown(times(rates[LIMIT], each), "x")
        print(f"{name:32s} {cells[0]:>24s}  {cells[1]:22s} {CONTENDERS[name].resumes}")
    others = [name for name in rates if not name.startswith((OURS, LIMIT))]
    others.sort(key=lambda name: -statistics.median(rates[name]))
    for shuffles, what in ((True, ""), (False, ", whose batches are each of one place")):
        best = next((name for name in others if CONTENDERS[name].shuffles is shuffles), "")
        for ours in (OURS, f"{OURS}, 256 rows") if best else ():
            ratio = shown(times(rates[ours], rates[best]), "x")
            print(f"{ours}: {ratio} of {best}, the best peer{what}")


def times(some: list[float], others: list[float]) -> list[float]:
    """The ratios of rates to those of others, round by round."""
    return [a / b for a, b in zip(some, others, strict=True)]


def shown(values: list[float], unit: str = "") -> str:
    digits = 2 if unit else 1 if max(values) < 1000 else 0
    median, least, most = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"{median}{unit} ({least}-{most})"


if __name__ == "__main__":
    main()
