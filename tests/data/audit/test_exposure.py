"""What a run has seen, compared with counts over all samples one by one."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.cli import main
from mlm.data.audit.exposure import Document, Exposure
from mlm.data.index import Index
from mlm.data.order.mix import Mix
from mlm.data.order.order import SampleOrder
from mlm.data.reading.reader import TokenReader
from mlm.training.audit import Audit
from tests.data.audit.test_audit import STEPS
from tests.text_fixtures import small_shards

BATCH, SIZE = 8, 15


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> TokenReader:
    out = small_shards(tmp_path_factory.mktemp("exposure") / "shards", 350, 2)
    return TokenReader(Index.open(out))


def order_of(reader: TokenReader, alpha: float) -> SampleOrder:
    tokens = reader.index.train_tokens
    mix = Mix(tokens, [(0, alpha)])
    return SampleOrder(tokens, reader.index.languages, SIZE + 1, mix, 3)


def counted(reader, order, steps, skipped, bad, batch=BATCH) -> list[np.ndarray]:
    """How often each token of each language was seen, counted over all samples."""
    index = reader.index
    firsts = index.first_tokens("train")
    seen = [np.zeros(tokens, int) for tokens in index.train_tokens]
    shard_of = np.repeat(index.samples["shard"], index.samples["tokens"])
    for step in range(steps):
        if step in skipped:
            continue
        languages, blocks = order.samples(np.arange(step * batch, (step + 1) * batch))
        for language, block in zip(languages.tolist(), blocks.tolist(), strict=True):
            place = slice(block * SIZE, (block + 1) * SIZE)
            read = shard_of[firsts[language] + place.start : firsts[language] + place.stop]
            if not any(bad.get(row, steps) <= step for row in set(read.tolist())):
                seen[language][place] += 1
    return seen


@given(
    alpha=st.floats(0, 1),
    steps=st.integers(1, 120),
    skipped=st.sets(st.integers(0, 130), max_size=4),
    bad=st.dictionaries(st.integers(0, 9), st.integers(0, 130), max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_exposure_counts_blocks_samples_and_documents(reader, alpha, steps, skipped, bad):
    index, order = reader.index, order_of(reader, alpha)
    trained = [row for row in range(len(index.shards)) if index.split_of(row)[1] == "train"]
    bad = {trained[row % len(trained)]: step for row, step in bad.items()}
    exposure = Exposure(order, reader, BATCH, steps, skipped, bad)
    seen = counted(reader, order, steps, skipped, bad)
    assert exposure.samples().tolist() == [int(tokens.sum()) // SIZE for tokens in seen]
    for language, tokens in enumerate(seen):
        blocks = tokens[: len(tokens) // SIZE * SIZE].reshape(-1, SIZE)
        assert (blocks == blocks[:, :1]).all()
        assert exposure.blocks(language).tolist() == blocks[:, 0].tolist()
        ids, start = reader.read("train", language, 0, len(tokens)), 0
        for document in exposure.documents(language):
            end = start + document.tokens
            assert (ids[start : end - 1] != 2).all()
            assert ids[end - 1] == 2
            own = tokens[start:end]
            assert document == Document(start, end - start, own.min(), own.max())
            start = end
        assert start == len(ids)


def test_exposure_counts_a_block_twice_in_a_skipped_batch(reader):
    """As in a batch with several epochs of a small language."""
    batch, steps, skipped = 4000, 4, {1, 3, 4}
    index, order = reader.index, order_of(reader, 0.0)
    language = int(np.argmin(order.blocks))
    assert order.blocks[language] * 2 < batch / len(order.blocks)
    own = [r for r in range(len(index.shards)) if index.split_of(r) == (language, "train")]
    for bad in ({}, {own[0]: 2}, {own[0]: 3}):
        exposure = Exposure(order, reader, batch, steps, skipped, bad)
        seen = counted(reader, order, steps, skipped, bad, batch)
        assert exposure.samples().tolist() == [int(tokens.sum()) // SIZE for tokens in seen]
        blocks = seen[language][: len(seen[language]) // SIZE * SIZE].reshape(-1, SIZE)
        assert exposure.blocks(language).tolist() == blocks[:, 0].tolist()


@pytest.mark.ranks
def test_audit_writes_a_line_for_each_document(whole, tmp_path, capsys):
    out = tmp_path / "documents.jsonl"
    assert main(["audit", str(whole), f"documents={out}"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    audit = Audit(whole)
    totals = audit.index.totals["train"]
    for language, name in enumerate(audit.index.languages):
        own = [row for row in rows if row["language"] == name]
        assert [row["document"] for row in own] == list(range(totals[language].documents))
        assert sum(row["tokens"] for row in own) == totals[language].tokens
    seen = sum(row["most"] > 0 for row in rows)
    assert 0 < seen < len(rows) or STEPS > 100
    out_text = capsys.readouterr().out
    assert f"The run has seen {seen:,} of {len(rows):,} documents" in out_text


def test_exposure_counts_skipped_steps_and_shards_that_overlap(reader):
    index, order = reader.index, order_of(reader, 0.3)
    language = max(range(len(index.languages)), key=lambda n: index.train_tokens[n])
    own = [r for r in range(len(index.shards)) if index.split_of(r) == (language, "train")]
    cases = [(range(0), {own[0]: a, own[1]: b}) for a, b in ((3, 90), (90, 3))]
    cases += [({40}, dict.fromkeys(own[:-1], 40)), ({40}, dict.fromkeys(own[:-1], 41))]
    for skipped, bad in cases:
        exposure = Exposure(order, reader, BATCH, 120, skipped, bad)
        seen = counted(reader, order, 120, skipped, bad)[language]
        blocks = seen[: len(seen) // SIZE * SIZE].reshape(-1, SIZE)
        assert exposure.blocks(language).tolist() == blocks[:, 0].tolist()


def test_exposure_lists_readable_documents_of_a_skipped_shard(reader, tmp_path):
    folder = shutil.copytree(reader.index.folder, tmp_path / "shards")
    own, order = TokenReader(Index.open(folder)), order_of(reader, 0.3)
    index, language = own.index, 0
    rows = [r for r in range(len(index.shards)) if index.split_of(r) == (language, "train")]
    expected = list(Exposure(order, own, BATCH, 5).documents(language))
    own.skip_shard(index.shard_name(rows[1]), 0)
    left = Exposure(order, own, BATCH, 5, (), own.skipped_shards)
    places = [(one.start, one.tokens) for one in expected]
    assert [(one.start, one.tokens) for one in left.documents(language)] == places
    index.shard_path(rows[1]).unlink()
    fresh = TokenReader(Index.open(folder))
    found = list(Exposure(order, fresh, BATCH, 5, (), {rows[1]: 0}).documents(language))
    gap = range(700, 1400)  # tokens of the shard
    whole = [p for p in places if p[0] + p[1] <= gap.start or p[0] >= gap.stop]
    assert set(whole) < {(one.start, one.tokens) for one in found}
    cut = [one for one in found if (one.start, one.tokens) not in places]
    assert [one.start + one.tokens for one in cut if one.start < gap.start] == [gap.start]
    assert [one.start for one in cut if one.start >= gap.start] == [gap.stop]
