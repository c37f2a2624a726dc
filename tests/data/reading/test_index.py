import json
import mmap
import shutil
import tarfile

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlm.data.index import Index
from mlm.data.reading.reader import TokenReader
from mlm.data.reading.store import FolderStore
from mlm.errors import DataError
from mlm.tokenizer.ids import BOS
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.training import train
from tests.data.writing.test_shards import webdataset_ids
from tests.text_fixtures import (
    LANGUAGES,
    corpus,
    documents_of,
    shards_folder,
    small_shards,
    tokenizer,
)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Shards of many small samples and tars."""
    return small_shards(tmp_path_factory.mktemp("cut") / "shards", 100, 5)


@pytest.fixture
def copy(cut, tmp_path):
    return shutil.copytree(cut, tmp_path / "copy")


def stream(folder, language, split) -> np.ndarray:
    pattern = f"{language}-*.tar" if split == "train" else f"{language}.heldout-*.tar"
    return webdataset_ids(sorted(folder.glob(pattern)))


def test_index_totals_are_those_of_text_and_tars(cut):
    index = Index.open(cut)
    assert index.languages == sorted(LANGUAGES)
    assert (index.vocab_size, index.tokenizer_hash) == (tokenizer().size, tokenizer().hash)
    for n, language in enumerate(index.languages):
        parts = index.totals["train"][n], index.totals["heldout"][n]
        lines = [line for document in documents_of(language) for line in document]
        assert sum(part.characters for part in parts) == sum(map(len, lines))
        assert sum(part.bytes for part in parts) == sum(len(line.encode()) for line in lines)
        for split, part in zip(("train", "heldout"), parts, strict=True):
            ids = stream(cut, language, split)
            assert part.tokens == len(ids)
            assert part.documents == np.count_nonzero(ids == 2)
            assert part.samples == -(-len(ids) // 100)
            assert part.shards == -(-part.samples // 5)
    assert index.train_tokens == [part.tokens for part in index.totals["train"]]
    assert index.heldout_tokens == [part.tokens for part in index.totals["heldout"]]


def test_index_rows_locate_the_ids(cut):
    index = Index.open(cut)
    for n, language in enumerate(index.languages):
        for split in ("train", "heldout"):
            rows = index.sample_rows(split, n)
            shards, offsets, tokens, starts, checks = (
                index.samples[name][rows]
                for name in ("shard", "offset", "tokens", "start", "check")
            )
            first = index.first_tokens(split)[n]
            assert (starts - first).tolist() == np.arange(0, len(starts) * 100, 100).tolist()
            ids = stream(cut, language, split)
            for row, shard in enumerate(shards):
                found = np.fromfile(index.shard_path(shard), "<i4", tokens[row], "", offsets[row])
                assert np.array_equal(found, ids[starts[row] - first :][: tokens[row]])
                assert (
                    np.uint64(xxhash.xxh3_64_intdigest(found.data)).astype(np.int64) == checks[row]
                )
    assert len(index.shards) == len(list(cut.glob("*.tar")))
    for row, shard in enumerate(index.shards):
        with tarfile.open(index.shard_path(row)) as tar:
            assert 1 <= len(tar.getmembers()) <= 5
        assert index.shard_path(row).stat().st_size == shard["bytes"]
    assert index.shards["documents"].sum() == sum(
        part.documents for parts in index.totals.values() for part in parts
    )


def test_index_open_maps_arrays_without_reading(cut):
    index = Index.open(cut)
    for array in (index.shards, *index.samples.values()):
        assert not array.flags.writeable
        while isinstance(array.base, np.ndarray):  # views of a map, not copies
            array = array.base
        assert isinstance(array.base, mmap.mmap)


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_reader_reads_any_range_as_webdataset_does(cut, data):
    reader = reader_of(cut)
    language = data.draw(st.integers(0, len(LANGUAGES) - 1))
    split = data.draw(st.sampled_from(["train", "heldout"]))
    ids = streams_of(cut)[split, language]
    start = data.draw(st.integers(0, len(ids)))
    count = data.draw(st.integers(0, len(ids) - start))
    found = reader.read(split, language, start, count)
    assert found.dtype == np.int32
    assert np.array_equal(found, ids[start : start + count])


READERS, STREAMS = {}, {}


def reader_of(folder) -> TokenReader:
    return READERS.setdefault(folder, TokenReader(Index.open(folder)))


def streams_of(folder) -> dict:
    if folder not in STREAMS:
        STREAMS[folder] = {
            (split, n): stream(folder, language, split)
            for n, language in enumerate(sorted(LANGUAGES))
            for split in ("train", "heldout")
        }
    return STREAMS[folder]


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_reader_gathers_rows_as_webdataset_reads_them(cut, data):
    """From the first id of a sample (100), from inside one, and across one to three of them."""
    split, streams = data.draw(st.sampled_from(["train", "heldout"])), streams_of(cut)
    count = data.draw(st.integers(0, min(len(ids) for ids in streams.values())))
    of_rows = data.draw(st.lists(st.integers(0, len(LANGUAGES) - 1), max_size=12))
    starts = [
        data.draw(st.integers(0, (len(streams[split, n]) - count) // 10)) * 10 for n in of_rows
    ]
    found = reader_of(cut).gather(
        split, np.array(of_rows, np.int32), np.array(starts, np.int64), count
    )
    assert (found.shape, found.dtype) == ((len(of_rows), 1 + count), np.int32)
    assert found.flags.c_contiguous
    for row, language, start in zip(found, of_rows, starts, strict=True):
        assert row.tolist() == [BOS, *streams[split, language][start : start + count]]


def test_reader_refuses_rows_past_the_last_sample(cut):
    index = Index.open(cut)
    reader, last = reader_of(cut), len(index.languages) - 1
    tokens = index.heldout_tokens[last]
    assert len(reader.read("heldout", last, tokens - 10, 10)) == 10
    with pytest.raises(IndexError):
        reader.read("heldout", last, tokens - 10, 11)
    with pytest.raises(IndexError):
        reader.gather("heldout", np.array([0, last]), np.array([0, tokens + 10**12]), 5)


def test_reader_gathers_rows_of_more_samples_than_it_keeps(cut, monkeypatch):
    """Samples stay mapped until their rows are copied."""
    monkeypatch.setattr("mlm.data.reading.store.MAX_MAPS", 1)
    monkeypatch.setattr("mlm.data.reading.store.FolderStore.max_samples", 1)
    reader = TokenReader(Index.open(cut))
    languages = np.arange(400) % len(LANGUAGES)
    starts = np.arange(400) // len(LANGUAGES) * 10
    for row, language, start in zip(
        reader.gather("train", languages, starts, 40), languages, starts, strict=True
    ):
        assert row.tolist() == [BOS, *streams_of(cut)["train", language][start : start + 40]]


def test_folder_store_bounds_its_maps(cut, monkeypatch):
    monkeypatch.setattr("mlm.data.reading.store.MAX_MAPS", 3)
    index = Index.open(cut)
    store = FolderStore(index)
    reader = TokenReader(index, store)
    for n, tokens in enumerate(index.train_tokens):
        reader.read("train", n, 0, tokens)
    assert store._tar.cache_info().currsize == 3


def test_index_hash_is_of_the_content(cut, copy):
    assert Index.open(cut).hash == Index.open(copy).hash
    assert Index.open(cut).hash != Index.open(shards_folder()).hash


def test_index_verify_accepts_undamaged_shards(cut):
    Index.open(cut).verify()
    Index.open(cut).verify(deep=True)


def test_index_verify_names_missing_and_truncated_shards(copy):
    index = Index.open(copy)
    with (copy / "sw-000001.tar").open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(
        DataError, match=r"sw-000001\.tar .* it has 1024 bytes in place of \d+; copy"
    ):
        index.verify()
    with pytest.raises(DataError, match=r"sw-000001\.tar has 1024 bytes"):
        TokenReader(index).read("train", index.languages.index("sw"), 500, 10)
    (copy / "sw-000001.tar").unlink()
    with pytest.raises(DataError, match=r"sw-000001\.tar .* it is missing"):
        index.verify()
    with pytest.raises(DataError, match=r"sw-000001\.tar cannot be read"):
        TokenReader(index).read("train", index.languages.index("sw"), 500, 10)


def test_index_verify_deep_finds_a_flipped_byte(copy):
    path = copy / "ja-000000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    Index.open(copy).verify()
    with pytest.raises(DataError, match=r"ja-000000\.tar .* its hash is not the one in the index"):
        Index.open(copy).verify(deep=True)


@pytest.mark.parametrize("array", ["samples.npy", "shards.npy"])
def test_index_names_changed_and_missing_arrays(copy, array):
    content = bytearray((copy / array).read_bytes())
    content[-1] ^= 1
    (copy / array).write_bytes(content)
    with pytest.raises(DataError, match=rf"{array} .* its hash is not the one in index.json"):
        Index.open(copy).verify()
    np.save(copy / array, np.zeros(3))
    with pytest.raises(DataError, match=rf"{array} .* does not have the shape"):
        Index.open(copy)
    (copy / array).unlink()
    with pytest.raises(DataError, match=rf"{array} .* cannot be read"):
        Index.open(copy)


def test_index_verify_finds_ids_outside_the_vocabulary(copy):
    content = json.loads((copy / "index.json").read_text())
    content["tokenizer"]["size"] = 50
    (copy / "index.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"tar .* it has ids outside the 50 of the tokenizer"):
        Index.open(copy).verify(deep=True)


def test_index_refuses_folders_without_shards(tmp_path, copy):
    with pytest.raises(DataError, match=r"has no index\.json .* `mlm shards` wrote"):
        Index.open(tmp_path)
    for content in ("", "{", "[]", "{}", '{"version": 2}'):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(DataError, match=r"index\.json is not an index of shards; write"):
            Index.open(tmp_path)
    content = json.loads((copy / "index.json").read_text()) | {"version": 9}
    (copy / "index.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is of version 9, and this polymlm reads 2"):
        Index.open(copy)


def test_index_refuses_another_tokenizer(tmp_path):
    index = Index.open(shards_folder())
    index.check_tokenizer(tokenizer())
    train(corpus(), tmp_path / "other", vocab_size=200)
    other = Tokenizer.load(tmp_path / "other")
    with pytest.raises(DataError, match=rf"{tokenizer().hash[:12]}.*{other.hash[:12]}; give the"):
        index.check_tokenizer(other)
