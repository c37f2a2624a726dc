"""Shards in a bucket of a real S3-compatible server."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from mlm.data.checks import check_data
from mlm.data.index import Index
from mlm.data.reading.reader import TokenReader
from mlm.data.reading.remote import open_index, open_store
from mlm.errors import BadShard, DataError
from tests.data.reading.remote_fixtures import BUCKET, KEY, SECRET, SeaweedFS, config_of, cut_shards

URL = f"s3://{BUCKET}/some/shards"


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    return cut_shards(tmp_path_factory.mktemp("cut") / "shards")


@pytest.fixture(scope="module")
def bucket(cut, tmp_path_factory):
    """A filesystem of s3fs with all shards in `URL`, and the environment that leads to it."""
    import s3fs

    server = SeaweedFS(tmp_path_factory.mktemp("weed"))
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir(BUCKET)
        end = time.monotonic() + 30
        while True:  # its volumes are there a moment after S3 answers
            try:
                files.pipe_file(f"{BUCKET}/first", b"x")
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)
        files.put(f"{cut}/", f"{BUCKET}/some/shards/", recursive=True)
        yield files
    server.stop()


def reader(cache: Path) -> TokenReader:
    index = open_index(URL, str(cache))
    return TokenReader(index, open_store(index, 1.0))


def test_reader_reads_the_same_from_s3_and_from_the_folder(bucket, cut, tmp_path):
    made, local = reader(tmp_path), TokenReader(Index.open(cut))
    for n in range(len(local.index.languages)):
        assert np.array_equal(made.read("train", n, 50, 900), local.read("train", n, 50, 900))
    settings = config_of(f"{URL}/", tmp_path)
    assert settings.data.shards == URL
    assert check_data(settings).index_hash == local.index.hash


def test_reader_names_bad_and_missing_shards_of_s3(bucket, cut, tmp_path):
    index = Index.open(cut)
    language = index.languages.index("ja")
    offset = int(index.samples["offset"][index.sample_rows("train", language).start])
    whole = (cut / "ja-000000.tar").read_bytes()
    place = f"{BUCKET}/some/shards/ja-000000.tar"
    settings = config_of(URL, tmp_path)
    made = reader(tmp_path)
    try:
        wrong = bytearray(whole)
        wrong[offset] ^= 1
        bucket.pipe_file(place, bytes(wrong))
        with pytest.raises(BadShard, match=rf"{URL}/ja-000000\.tar is bad at byte {offset}: the"):
            made.read("train", language, 0, 10)
        bucket.pipe_file(place, whole[:-512])
        with pytest.raises(BadShard, match=rf"ja-000000\.tar has fewer than the {len(whole)} "):
            check_data(settings)
        bucket.pipe_file(place, whole + b"\0")
        with pytest.raises(BadShard, match=rf"ja-000000\.tar has more than the {len(whole)} "):
            check_data(settings)
        bucket.rm_file(place)
        with pytest.raises(BadShard, match=rf"{URL}/ja-000000\.tar is not there"):
            made.read("train", language, 0, 10)
    finally:
        bucket.pipe_file(place, whole)
    assert len(made.read("train", language, 0, 10)) == 10


def test_remote_folder_reports_what_s3_refuses_at_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("mlm.data.reading.remote_files.WAITS", (100,))
    with pytest.raises(DataError, match=r"s3://none/x/index\.json is not there; copy the shards"):
        open_index("s3://none/x", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    with pytest.raises(DataError, match=rf"{URL}/index\.json may not be read at byte 0 \(.*right"):
        open_index(URL, str(tmp_path))
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(DataError, match=r"\(Unable to locate credentials\); give them as to"):
        open_index(URL, str(tmp_path))
