"""The cache of remote shards: its bound, what leaves it, and what is wrong in it."""

import errno
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlm.data.checks import check_data
from mlm.data.reading.remote_store import RemoteStore
from mlm.data.reading.sample_cache import SampleCache
from mlm.errors import UserError
from tests.data.reading.remote_fixtures import (
    everything,
    offered,
    ranges,
    reader,
    request_of,
    used,
)
from tests.places import ROOT

GB = 10**9
SAMPLE_BYTES = 400  # of the samples of `cut`


def files_but_samples(cache: Path) -> set[str]:
    return {str(p) for p in cache.rglob("*") if p.is_file() and p.parent.name != "samples"}


def test_sample_cache_stays_within_its_limit(nginx, tmp_path):
    cache = tmp_path / "cache"
    local = everything(reader(nginx, cache, 1.0))
    held = used(cache)
    shutil.rmtree(cache)
    limit = held // 3
    made, most = reader(nginx, cache, limit / GB), 0
    others = files_but_samples(cache)
    for n, tokens in enumerate(made.index.train_tokens):
        for start in range(0, tokens - 1000, 1000):
            ids = made.read("train", n, start, 1000)
            assert np.array_equal(ids, local[n][start : start + 1000])
            most = max(most, used(cache))
            assert most <= limit
    assert most > 0.8 * limit
    assert files_but_samples(cache) >= others
    # What is mapped stays on the disk, even after its deletion.
    store = made._store
    assert isinstance(store, RemoteStore)
    assert len(store._maps) <= store.max_samples
    assert store.max_samples * SAMPLE_BYTES <= limit
    # The oldest have gone, and the newest are there: they are read again without a request.
    nginx.requests()
    again = reader(nginx, cache, limit / GB)
    last = len(again.index.languages) - 1
    tokens = again.index.train_tokens[last]
    again.read("train", last, tokens - 1500, 500)
    assert not ranges(nginx)
    again.read("train", 0, 0, 500)
    assert len(ranges(nginx)) == 5


@pytest.mark.parametrize("maps", [1, 10**6])
def test_sample_cache_keeps_samples_in_use(nginx, tmp_path, monkeypatch, maps):
    """The sample that is read again and again outlives those that were fetched after it, whether
    it stays mapped or is found in the cache each time."""
    monkeypatch.setattr("mlm.data.reading.remote_store.USED_AGAIN", 0)
    monkeypatch.setattr("mlm.data.reading.sample_cache.USED_AGAIN", 0)
    cache = tmp_path / "cache"
    everything(reader(nginx, cache))
    limit = used(cache) // 3
    shutil.rmtree(cache)
    made = reader(nginx, cache, limit / GB)
    made._store.max_samples = maps
    nginx.requests()
    tokens = made.index.train_tokens[1]
    for start in range(1000, tokens - 100, 100):
        made.read("train", 1, 0, 10)
        made.read("train", 1, start, 10)
    first = made.index.sample_rows("train", 1).start
    kept = {int(path.name) for path in cache.glob("*/samples/*")}
    assert first in kept
    assert first + 12 not in kept
    assert ranges(nginx)[request_of(made.index, first)] == 1


def test_remote_store_fetches_a_damaged_file_of_the_cache_again(nginx, tmp_path):
    before = everything(reader(nginx, tmp_path / "cache"))
    nginx.requests()
    samples = sorted((tmp_path / "cache").glob("*/samples/*"))
    samples[3].write_bytes(b"x" * samples[3].stat().st_size)
    samples[5].write_bytes(b"")
    for mine, theirs in zip(everything(reader(nginx, tmp_path / "cache")), before, strict=True):
        assert np.array_equal(mine, theirs)
    assert list(ranges(nginx).values()) == [1, 1]
    for name in ("samples.npy", "shards.npy"):
        (path,) = (tmp_path / "cache").glob(f"*/{name}")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        check_data(offered(nginx, tmp_path / "cache"))
        sent = [row.path for row in nginx.requests()]
        assert sent.count(f"/{name}") == 1
        assert sent.count("/samples.npy") + sent.count("/shards.npy") == 1
    path.write_bytes(b"")
    check_data(offered(nginx, tmp_path / "cache"))


LIMITED = """
import resource, signal, sys
from mlm.data.reading.remote import open_index, open_store
from mlm.errors import UserError
index = open_index(sys.argv[1], sys.argv[2])
store = open_store(index, 1.0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
    store.ids(0)
except UserError as error:
    print(error.code, error)
"""


def test_sample_cache_reports_a_full_disk_in_one_sentence(nginx, tmp_path):
    program = [sys.executable, "-c", LIMITED, nginx.url, str(tmp_path / "cache")]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout == (
        f"2 the cache {tmp_path / 'cache'} cannot be written (File too large); free space there, "
        f"or give another folder as data.cache\n"
    ), ran.stderr
    assert list((tmp_path / "cache").glob("*/samples/*")) == []


def test_sample_cache_reports_indexes_that_fill_it_in_one_sentence(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "samples.npy").write_bytes(bytes(90_000))
    cache = SampleCache(tmp_path, "own", 100_000)
    for sample in range(3):
        with pytest.raises(UserError, match=r"holds [0-9,]+ bytes of indexes, and data\.cache_gb"):
            cache.put(sample, bytes(20_000))
    assert (tmp_path / "other" / "samples.npy").stat().st_size == 90_000


def test_sample_cache_works_without_locks_only_where_there_are_none(tmp_path, monkeypatch):
    def refused(code):
        def flock(file, how):
            raise OSError(code, "no")

        monkeypatch.setattr(fcntl, "flock", flock)

    cache = SampleCache(tmp_path, "own", 100_000)
    refused(errno.ENOLCK)
    with cache.lock(3):
        cache.put(3, bytes(400))
    assert cache.path(3).read_bytes() == bytes(400)
    refused(errno.EIO)
    with pytest.raises(UserError, match=r"cannot be written \(no\)"), cache.lock(3):
        pass
