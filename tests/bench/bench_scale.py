"""Time of starting, resuming and auditing, and memory of a rank, over the shards and the position.

    python tests/bench/bench_scale.py [--shards 1000 30000 1000000 --rounds 3 --folder DIR]

Indices of 100 languages, the largest of a thousand times the smallest, with 10 samples of 1 MiB in
each shard: 10 TB of ids in the largest. The index files are as `mlm shards` writes them; of tars
there is one, which stands for all, so that every read, map and hash is real. Every row of
times is of fresh processes, which alternate over sizes and positions; medians of the rounds, from
least to most in brackets. Times are of the CPU, the system's part included, since others may share
the machine; the page cache is warm.

- open: `Index.open`; order: mix and order of samples; heldout: the list of what is evaluated;
- first 8: the first micro-batch of 8 samples from a position on, whole: order, ids, masks;
- counts: samples of each language up to there; 64 batches: what `mlm audit` recomputes by default;
- verify: what the launcher checks once, files' sizes and the hashes of the index's arrays.

Memory is the anonymous part of /proc/self/smaps_rollup: what is this process's alone. Pages of the
index and the tars, which all ranks of a machine share, are not in it. Its growth is from before the
index is opened; `at the peak` is the most that was seen, every 2 ms, up to the end of `batches`
micro-batches at positions drawn from the whole run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mlm.config import TrainConfig
from mlm.data.batches.batches import HeldOutBatches, TrainingBatches
from mlm.data.index import SAMPLE_FIELDS, SHARD, Index, Totals, write_index
from mlm.data.order.mix import shares
from mlm.data.writing.journal import Journal, SplitCounts
from mlm.data.writing.tars import SAMPLE_IDS, SplitIds, TokenTars
from mlm.tasks.pretraining.batches import training_batches

LANGUAGES, SAMPLES, VOCAB, ROWS = 100, 10, 250002, 8
POSITIONS = (0, 10**6, 10**9, 10**10)
TIMES = ("open", "order", "heldout", "first 8", "counts", "64 batches", "verify")
TAR = "one.tar"


def write(folder: Path, shards: int) -> None:
    """The index of `shards` shards, all with the bytes of one tar."""
    folder.mkdir()
    random = np.random.default_rng(0)
    with TokenTars(folder, "one", "train", Journal(folder / "one.jsonl")) as tars:
        for _ in range(SAMPLES):
            ids = random.integers(4, VOCAB - 1, SAMPLE_IDS, dtype=np.int32)
            tars.add(SplitIds(ids, 0, SplitCounts(tokens=len(ids))))
    (folder / "one-000000.tar").rename(folder / TAR)
    weights = np.geomspace(1, 1000, LANGUAGES)
    totals = {}
    for n, count in enumerate((shares(weights, shards - LANGUAGES) + 1).tolist()):
        held = max(1, count // 100)
        totals[f"l{n:02d}"] = tuple(
            Totals(0, 0, part, part * SAMPLES * SAMPLE_IDS, part * SAMPLES, part)
            for part in (count - held, held)
        )
    rows = np.empty(shards, SHARD)
    *row, sha256 = tars.shards[0]
    rows[:] = (*row, np.frombuffer(sha256, np.uint8))
    of = np.array(tars.samples, np.int64).T
    samples = np.tile(of, shards)
    samples[SAMPLE_FIELDS.index("shard")] = np.repeat(np.arange(shards), SAMPLES)
    samples[SAMPLE_FIELDS.index("start")] = np.arange(shards * SAMPLES) * SAMPLE_IDS
    tokenizer: Any = SimpleNamespace(hash="0" * 64, size=VOCAB)
    write_index(folder, tokenizer, totals, rows, samples)


def opened(folder: Path) -> Index:
    """The index, with the one tar in place of every shard's."""
    index = Index.open(folder)
    index.shard_path = lambda shard: folder / TAR
    return index


def parts(index: Index) -> tuple[TrainingBatches, Callable[[], HeldOutBatches]]:
    """What a rank builds to train, and then to evaluate."""
    config = TrainConfig()
    batches = training_batches(config, index, ROWS)
    reader, masking, length = batches.reader, batches.masking, config.data.seq_len
    every = config.eval.blocks_per_language
    return batches, lambda: HeldOutBatches(reader, masking, length, ROWS, every)


def times(folder: Path, position: int) -> dict[str, float]:
    """CPU seconds of each of `TIMES` in this process, which has done none of it before."""
    found = {}

    def timed(name: str, act: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = act()
        found[name] = time.process_time() - start
        return made

    index = timed("open", lambda: opened(folder))
    batches, heldout = timed("order", lambda: parts(index))
    timed("heldout", heldout)
    size = batches.global_batch_size
    first_step = position // size
    timed("first 8", lambda: batches.micro_batch(first_step, 0))
    timed("counts", lambda: batches.order.samples_per_language(first_step * size + 1))
    steps_read = np.unique(np.linspace(0, max(first_step, 63), 64).astype(np.int64)).tolist()
    timed("64 batches", lambda: [batches.micro_batch(step, 0) for step in steps_read])
    timed("verify", index.verify)
    return found


def anonymous() -> int:
    """The bytes of this process that belong to no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Anonymous:")).split()[1])


def memory(folder: Path, count: int) -> dict[str, float]:
    """MB that are added by starting, and by `count` micro-batches at scattered positions."""
    most, done = anonymous(), threading.Event()
    before = most

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    batches, heldout = parts(opened(folder))
    kept = heldout()
    start, start_peak = anonymous(), most
    steps = np.random.default_rng(1).integers(0, POSITIONS[-1] // batches.global_batch_size, count)
    for step in steps.tolist():
        batches.micro_batch(step, 0)
    done.set()
    watcher.join()
    end = anonymous()
    assert len(kept), "the lists of what is evaluated stay with a rank"
    values = {
        "started": start,
        "its peak": max(start_peak, start),
        "after the batches": end,
        "at the peak": max(most, end),
    }
    return {name: (value - before) / 1e6 for name, value in values.items()}


def fresh(folder: Path, *arguments: object) -> dict[str, float]:
    """What a process of its own finds."""
    command = [sys.executable, __file__, "--child", str(folder), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=-1).stdout)


def shown(values: list[float], form: str) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({least:{form}}-{most:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 30_000, 1_000_000])
    parser.add_argument("--batches", type=int, default=1000, help="at scattered positions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the indices; default: a temporary one")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        folder, kind, number = Path(given.child[0]), given.child[1], int(given.child[2])
        print(json.dumps((times if kind == "times" else memory)(folder, number)))
        return
    with TemporaryDirectory(dir=given.folder) as holder:
        folders = {shards: Path(holder) / str(shards) for shards in given.shards}
        for shards, folder in folders.items():
            write(folder, shards)
        cells = {(shards, position): [] for shards in folders for position in POSITIONS}
        grown = {shards: [] for shards in folders}
        for _ in range(given.rounds):
            for (shards, position), found in cells.items():
                found.append(fresh(folders[shards], "times", position))
            for shards, found in grown.items():
                found.append(fresh(folders[shards], "memory", given.batches))
    print(f"CPU milliseconds, {given.rounds} rounds; {LANGUAGES} languages, {SAMPLES} MiB a shard")
    print(f"{'shards':>9s} {'position':>14s} " + " ".join(f"{name:>24s}" for name in TIMES))
    for (shards, position), found in cells.items():
        row = [shown([1000 * each[name] for each in found], ".1f") for name in TIMES]
        print(f"{shards:9,d} {position:14,d} " + " ".join(f"{cell:>24s}" for cell in row))
    print(f"MB of a rank's own memory that are added; {given.batches} batches of {ROWS}")
    for shards, found in grown.items():
        row = [f"{name} {shown([each[name] for each in found], '.0f')}" for name in found[0]]
        print(f"{shards:9,d} shards: " + ", ".join(row), flush=True)


if __name__ == "__main__":
    main()
