"""The contenders of bench_data.py, one in a process: how each writes the blocks, and reads them.

    python tests/bench/data_contenders.py NAME FOLDER write|check|time SECONDS

A contender's reader yields an epoch as batches, arrays (rows, 512) that own their memory, as a
training step takes them; the blocks are shuffled again in each epoch, as the library does it.
`check` prints how many blocks an epoch had, and the sum of their hashes. `time` prints blocks per
CPU second of this process, with its threads and children, over whole epochs that take at least
SECONDS; opening and a first epoch are not counted. Each function imports what it needs, since the
peers have their own environments, which the type checker does not see.
"""

import glob
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SEQ_LEN, ROWS, MANY, MIXED = 512, 64, 128, 16
SHARD_BLOCKS = 4096  # 8 MiB: small files, and many of them, as a shuffle of shards wants
BUFFER = 1000  # samples that webdataset shuffles among, as its examples do
Epochs = Callable[[int], Iterator[Any]]


class Contender(NamedTuple):
    """package: must be installed; resumes: by what it resumes in the middle of an epoch; shuffles:
    whether the rows of a batch are from more than one place of the data"""

    package: str
    write: Callable[[np.ndarray, str], None] | None
    read: Callable[[str], Epochs]
    resumes: str
    shuffles: bool = True


def blocks_of(folder: str) -> np.ndarray:
    return np.asarray(np.load(Path(folder).parent / "blocks.npy", mmap_mode="r"))


def read_memmap(rows: int) -> Callable[[str], Epochs]:
    """One array, one permutation, one gather for a batch."""

    def opened(folder: str) -> Epochs:
        blocks = blocks_of(folder)

        def epoch(number: int) -> Iterator[np.ndarray]:
            order = np.random.default_rng(number).permutation(len(blocks))
            for first in range(0, len(blocks), rows):
                yield blocks[order[first : first + rows]]

        return epoch

    return opened


def read_ours(rows: int, dtype: type) -> Callable[[str], Epochs]:
    """Order and gather as training does it. A reader is made for each epoch, so that hashes and ids
    of all samples are compared with the index in each."""

    def opened(folder: str) -> Epochs:
        from mlm.data.index import Index
        from mlm.data.order.mix import Mix
        from mlm.data.order.order import SampleOrder
        from mlm.data.reading.reader import TokenReader

        index = Index.open(Path(folder).parent / "ours")
        # In proportion to the languages' sizes, so that an epoch of all is one of each.
        mix = Mix(index.train_tokens, [(0, 1.0)])
        order = SampleOrder(index.train_tokens, index.languages, SEQ_LEN, mix, seed=1)
        total = int(order.blocks.sum())

        def epoch(number: int) -> Iterator[np.ndarray]:
            reader = TokenReader(index)
            for first in range(number * total, (number + 1) * total, rows):
                languages, blocks = order.samples(np.arange(first, first + rows))
                ids = reader.gather("train", languages, blocks * (SEQ_LEN - 1), SEQ_LEN - 1)
                yield ids.astype(dtype, copy=False)

        return epoch

    return opened


def write_webdataset(rows: int) -> Callable[[np.ndarray, str], None]:
    def write(blocks: np.ndarray, folder: str) -> None:
        webdataset = import_module("webdataset")

        pattern, count = f"{folder}/%06d.tar", SHARD_BLOCKS // rows
        with webdataset.ShardWriter(pattern, maxcount=count, verbose=0) as writer:
            for first in range(0, len(blocks), rows):
                writer.write(
                    {"__key__": f"{first:08d}", "bin": blocks[first : first + rows].tobytes()}
                )

    return write


def read_webdataset(rows: int, mixed: int = 1) -> Callable[[str], Epochs]:
    """Raw bytes, which took less than its npy decoder. Records of many rows are shuffled among 16,
    and then the rows of `mixed` records at a time; batches of 256 of them took no less."""

    def opened(folder: str) -> Epochs:
        webdataset = import_module("webdataset")

        tars = sorted(glob.glob(f"{folder}/*.tar"))

        def epoch(number: int) -> Iterator[np.ndarray]:
            data = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=number)
            data = data.shuffle(BUFFER if rows == 1 else 16, seed=number).to_tuple("bin")
            data = data.map(lambda row: np.frombuffer(row[0], np.int32))
            if rows == 1:
                yield from data.listed(ROWS).map(np.stack)
                return
            yield from shuffled((row.reshape(-1, SEQ_LEN) for row in data), mixed, number)

        return epoch

    return opened


def write_datasets(blocks: np.ndarray, folder: str) -> None:
    datasets = import_module("datasets")
    pyarrow = import_module("pyarrow")

    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(blocks.ravel()), SEQ_LEN)
    features = datasets.Features({"ids": datasets.List(datasets.Value("int32"), length=SEQ_LEN)})
    made = datasets.Dataset(pyarrow.table({"ids": column})).cast(features)
    made.save_to_disk(folder)


def read_datasets(form: str) -> Callable[[str], Epochs]:
    """Batches of a shuffled map-style dataset: its numpy format, or arrow tables taken as arrays,
    which was the fastest of what it documents (indexing by hand and iterable datasets were not)."""

    def opened(folder: str) -> Epochs:
        datasets = import_module("datasets")

        data = datasets.load_from_disk(folder)

        def epoch(number: int) -> Iterator[np.ndarray]:
            shuffled = data.shuffle(seed=number, keep_in_memory=True).with_format(form)
            for batch in shuffled.iter(batch_size=ROWS):
                if form == "numpy":
                    yield batch["ids"]
                else:
                    ids = batch["ids"].combine_chunks().flatten()
                    yield ids.to_numpy().reshape(-1, SEQ_LEN)

        return epoch

    return opened


def write_litdata(blocks: np.ndarray, folder: str) -> None:
    import torch

    litdata = import_module("litdata.streaming")
    size = 512
    cache = litdata.Cache(
        folder, chunk_size=SHARD_BLOCKS * SEQ_LEN, item_loader=litdata.TokensLoader(SEQ_LEN)
    )
    for item, first in enumerate(range(0, len(blocks), size)):
        cache[item] = torch.from_numpy(blocks[first : first + size].flatten())
    cache.done()
    cache.merge()


def read_litdata(folder: str) -> Epochs:
    """Rows stacked to batches here, which took less than its loader without workers."""
    import torch

    litdata = import_module("litdata.streaming")

    def epoch(number: int) -> Iterator[Any]:
        data = litdata.StreamingDataset(
            folder,
            item_loader=litdata.TokensLoader(SEQ_LEN),
            shuffle=True,
            drop_last=False,
            seed=number,
        )
        return stacked(data, torch.stack)

    return epoch


def write_streaming(rows: int) -> Callable[[np.ndarray, str], None]:
    def write(blocks: np.ndarray, folder: str) -> None:
        streaming = import_module("streaming")
        kind = f"ndarray:int32:{rows},{SEQ_LEN}" if rows > 1 else f"ndarray:int32:{SEQ_LEN}"
        limit = SHARD_BLOCKS * SEQ_LEN * 4
        with streaming.MDSWriter(out=folder, columns={"ids": kind}, size_limit=limit) as writer:
            for first in range(0, len(blocks), rows):
                record = blocks[first : first + rows] if rows > 1 else blocks[first]
                writer.write({"ids": np.array(record)})

    return write


def read_streaming(rows: int, mixed: int = 1) -> Callable[[str], Epochs]:
    """Its own shuffle, of records; of records of many rows, also of the rows of `mixed` of them."""

    def opened(folder: str) -> Epochs:
        streaming = import_module("streaming")
        data = streaming.StreamingDataset(
            local=folder, shuffle=True, batch_size=ROWS if rows == 1 else 1
        )

        def epoch(number: int) -> Iterator[np.ndarray]:
            if rows == 1:
                yield from stacked((row["ids"] for row in data), np.stack)
                return
            yield from shuffled((record["ids"] for record in data), mixed, number)

        return epoch

    return opened


def shuffled(records: Iterator[np.ndarray], mixed: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of the rows of records (rows, 512), shuffled among `mixed` of them at a time."""
    random = np.random.default_rng(seed)
    while some := list(islice(records, mixed)):
        pool = some[0] if len(some) == 1 else np.concatenate(some)
        order = random.permutation(len(pool))
        for first in range(0, len(pool), ROWS):
            yield pool[order[first : first + ROWS]]


def stacked(rows: Any, stack: Callable) -> Iterator[Any]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS:
            yield stack(batch)
            batch = []
    assert not batch, "the blocks are a multiple of the batch"


PLACE, STATE = "epoch and place", "state_dict"
CONTENDERS = {
    "memmap": Contender("numpy", None, read_memmap(ROWS), PLACE),
    "memmap, 256 rows": Contender("numpy", None, read_memmap(256), PLACE),
    "ours": Contender("polymlm", None, read_ours(ROWS, np.int32), "sample number"),
    "ours, int64": Contender("polymlm", None, read_ours(ROWS, np.int64), "sample number"),
    "ours, 8 rows": Contender("polymlm", None, read_ours(8, np.int32), "sample number"),
    "ours, 256 rows": Contender("polymlm", None, read_ours(256, np.int32), "sample number"),
    "webdataset": Contender("webdataset", write_webdataset(1), read_webdataset(1), "not at all"),
    "webdataset, 128 a record": Contender(
        "webdataset", write_webdataset(MANY), read_webdataset(MANY, MIXED), "not at all"
    ),
    "webdataset, record by record": Contender(
        "webdataset", write_webdataset(MANY), read_webdataset(MANY), "not at all", shuffles=False
    ),
    "datasets": Contender("datasets", write_datasets, read_datasets("numpy"), PLACE),
    "datasets, arrow": Contender("datasets", write_datasets, read_datasets("arrow"), PLACE),
    "litdata": Contender("litdata", write_litdata, read_litdata, STATE),
    "streaming": Contender("mosaicml-streaming", write_streaming(1), read_streaming(1), STATE),
    "streaming, 128 a record": Contender(
        "mosaicml-streaming", write_streaming(MANY), read_streaming(MANY, MIXED), STATE
    ),
    "streaming, record by record": Contender(
        "mosaicml-streaming", write_streaming(MANY), read_streaming(MANY), STATE, shuffles=False
    ),
}


def check(batches: Iterator[Any]) -> dict[str, int]:
    """Blocks, and the sum of their hashes modulo 2^64, whatever their order."""
    weights = np.random.default_rng(0).integers(1, 1 << 63, SEQ_LEN, np.uint64) * np.uint64(2) + 1
    blocks, sum_ = 0, np.uint64(0)
    for batch in batches:
        ids = np.asarray(batch)
        assert ids.ndim == 2, ids.shape
        assert ids.shape[1] == SEQ_LEN, ids.shape
        assert ids.flags.c_contiguous, "a batch is one piece of memory"
        hashes = (ids.astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
        hashes ^= hashes >> np.uint64(29)  # no sum of single ids
        sum_ += (hashes * weights[0]).sum(dtype=np.uint64)
        blocks += len(ids)
    return {"blocks": blocks, "sum": int(sum_)}


def cpu_seconds() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def rate(epoch: Epochs, seconds: float, blocks: int) -> float:
    """Blocks per CPU second, over whole epochs after a first one."""
    assert sum(len(batch) for batch in epoch(0)) == blocks
    found, number, start = 0, 1, cpu_seconds()
    while (taken := cpu_seconds() - start) < seconds:
        found += sum(len(batch) for batch in epoch(number))
        number += 1
    assert found == (number - 1) * blocks, found
    return found / taken


def main() -> None:
    name, folder, act, seconds = sys.argv[1:]
    contender = CONTENDERS[name]
    if act == "write":
        if contender.write is not None:
            contender.write(blocks_of(folder), folder)
        found = {"version": version(contender.package)}
    elif act == "check":
        found = check(contender.read(folder)(0))
    else:
        found = {"rate": rate(contender.read(folder), float(seconds), len(blocks_of(folder)))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
