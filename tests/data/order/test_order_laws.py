"""A run is trained on the same batches for any division into processes and starts."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm.batch.micro_batch import MicroBatch
from mlm.data.batches.batches import TrainingBatches
from mlm.data.batches.masking import MaskedUnit, Masking
from mlm.data.index import Index
from mlm.data.order.mix import Mix
from mlm.data.order.order import SampleOrder
from mlm.data.prefetch import Prefetcher
from mlm.data.reading.reader import TokenReader
from mlm.training.build import TrainingRun
from parallel.layout import Layout
from tests.text_fixtures import shards_folder

BATCH, SEQ_LEN = 24, 32
TENSORS = ("input_ids", "positions", "targets", "languages")


def tensors_of(batch: MicroBatch) -> list[torch.Tensor]:
    assert batch.visibility.document_starts is not None
    return [*(getattr(batch, name) for name in TENSORS), batch.visibility.document_starts]


def batches(seed: int, micro: int, kind: MaskedUnit) -> TrainingBatches:
    """Batches as a new process makes them."""
    reader = TokenReader(Index.open(shards_folder()))
    tokens, names = reader.index.train_tokens, reader.index.languages
    mix = Mix(tokens, [(0, 0.3), (BATCH * 5000, 0.9)], None, [None, 40_000, None, None])
    order = SampleOrder(tokens, names, SEQ_LEN, mix, seed)
    masking = Masking(0.15, reader.index.vocab_size, ((20, 0.4),), kind)
    return TrainingBatches(reader, order, masking, seed, micro, BATCH, isolated=True)


@cache
def in_one_process(seed: int, kind: MaskedUnit, step: int) -> tuple[list[torch.Tensor], int]:
    """The rows of a step, and its hash."""
    batch = whole(seed, kind).micro_batch(step, 0)
    return tensors_of(batch), batch.digest


@cache
def whole(seed: int, kind: MaskedUnit) -> TrainingBatches:
    return batches(seed, BATCH, kind)


def of_ranks(made: TrainingBatches, dp: int, rank: int, first: int, steps: int) -> list[list]:
    """The micro-batches of one data rank in some steps, prefetched in a thread as in a run."""
    grid: Any = SimpleNamespace(layout=Layout(dp=dp), dp_rank=rank)
    task: Any = SimpleNamespace(batches=made.of_step, micro_batches=made.micro_batches)
    unused: Any = None
    run = TrainingRun(unused, task, grid, unused, unused)
    with Prefetcher(run.micro_batches, first) as feed:
        return [feed.next() for _ in range(steps)]


def joined(by_rank: list[list[MicroBatch]], dp: int) -> tuple[list[torch.Tensor], int]:
    """The global batch and its hash: micro-batch k is the (k // dp)-th of data rank k mod dp."""
    count = sum(map(len, by_rank))
    ordered = [by_rank[k % dp][k // dp] for k in range(count)]
    digest = int(np.int64(np.uint64(sum(one.digest for one in ordered) % 2**64)))
    columns = zip(*map(tensors_of, ordered), strict=True)
    return [torch.cat(tensors) for tensors in columns], digest


@st.composite
def starts(draw):
    """The data ranks, sequences in a micro-batch, and steps of each start of a run."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        dp = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
        rows = BATCH // dp
        micro = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 8, 12, 24) if rows % n == 0]))
        found.append((dp, micro, draw(st.integers(1, 3))))
    return found


@given(
    starts(),
    st.sampled_from([1, 2]),
    st.sampled_from(["token", "span"]),
    st.sampled_from([0, 5, 2725, 2729, 10**7]),  # 2730 steps are a round of the mix
)
@settings(max_examples=30, deadline=None)
def test_batches_are_independent_of_ranks_batching_and_restarts(given_starts, seed, kind, first):
    step = first
    for dp, micro, steps in given_starts:
        ranks = [of_ranks(batches(seed, micro, kind), dp, rank, step, steps) for rank in range(dp)]
        for at in range(steps):
            found, digest = joined([rank[at] for rank in ranks], dp)
            expected, expected_digest = in_one_process(seed, kind, step)
            assert all(map(torch.equal, found, expected))
            assert digest == expected_digest
            step += 1
