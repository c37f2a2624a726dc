"""Rows beside a skipped shard, and rows of the last sample, which none follows."""

from pathlib import Path

import numpy as np
import pytest

from mlm.data.index import Index
from mlm.data.reading.reader import TokenReader
from tests.text_fixtures import small_shards


@pytest.fixture
def folder(tmp_path) -> Path:
    return small_shards(tmp_path / "shards", 700, 2)


def test_gather_returns_the_rows_beside_a_skipped_shard_as_they_are(folder):
    index = Index.open(folder)
    language = max(range(len(index.languages)), key=lambda n: index.train_tokens[n])
    first = next(r for r in range(len(index.shards)) if index.split_of(r) == (language, "train"))
    whole, skipping = TokenReader(index), TokenReader(index)
    skipping.skip_shard(index.shard_name(first), 0)  # it has 1400 ids
    starts = np.array([1500, 0, 1400, 1399, 1700])
    languages = np.full(len(starts), language)
    expected = whole.gather("train", languages, starts, 31)
    expected[[1, 3]] = 0
    assert np.array_equal(skipping.gather("train", languages, starts, 31), expected)


def test_gather_reads_the_last_sample_beside_a_skipped_shard(folder):
    index = Index.open(folder)
    language = len(index.languages) - 1
    tokens = index.totals["heldout"][language].tokens
    whole, skipping = TokenReader(index), TokenReader(index)
    skipping.skip_shard(index.shard_name(0), 0)
    row = np.array([language]), np.array([tokens - 31]), 31
    assert np.array_equal(skipping.gather("heldout", *row), whole.gather("heldout", *row))
