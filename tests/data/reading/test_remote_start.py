"""Checks of remote shards before a run starts."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlm.config import DataConfig
from mlm.data.checks import check_data, with_tokenizer
from mlm.data.index import Index
from mlm.data.reading.remote import cache_folder, open_index
from mlm.errors import BadShard, DataError, UserError
from tests.data.reading.remote_fixtures import (
    offered,
    ranges,
)
from tests.places import ROOT


def test_check_data_compares_sizes_of_remote_shards(nginx, copy, tmp_path):
    made = offered(nginx, tmp_path / "cache")
    facts = check_data(made)
    assert facts.index_hash == Index.open(copy).hash
    shards = len(list(copy.glob("*.tar")))
    assert len(ranges(nginx)) == shards
    size = (copy / "sw-000001.tar").stat().st_size
    for change, found in ((-512, "fewer"), (512, "more")):
        os.truncate(copy / "sw-000001.tar", size + change)
        with pytest.raises(
            BadShard, match=rf"sw-000001\.tar has {found} than the {size} bytes of the index; copy"
        ):
            check_data(made)
    (copy / "sw-000001.tar").unlink()
    with pytest.raises(BadShard, match=rf"{nginx.url}/sw-000001\.tar is not there"):
        check_data(made)


def test_check_data_compares_sizes_of_some_of_many_shards(nginx, copy, tmp_path, monkeypatch):
    monkeypatch.setattr("mlm.data.reading.remote.SIZES_CHECKED", 5)
    check_data(offered(nginx, tmp_path / "cache"))
    checked = sorted(path for path, _ in ranges(nginx))
    index = Index.open(copy)
    last = len(index.shards) - 1
    evenly = [round(n * last / 4 - 0.5 + 1e-9) if n * last % 4 else n * last // 4 for n in range(5)]
    assert checked == sorted(f"/{index.shard_name(n)}" for n in evenly)


def test_remote_index_verify_deep_compares_all_bytes(nginx, copy, tmp_path):
    index = open_index(nginx.url, str(tmp_path / "cache"))
    index.verify(deep=True)
    content = bytearray((copy / "ja-000000.tar").read_bytes())
    content[700] ^= 1
    (copy / "ja-000000.tar").write_bytes(content)
    index.verify()
    with pytest.raises(DataError, match=rf"{nginx.url}/ja-000000\.tar .* not the one in the index"):
        index.verify(deep=True)


def test_remote_index_keeps_a_changed_index_apart_and_refuses_a_wrong_array(nginx, copy, tmp_path):
    cache = tmp_path / "cache"
    first = open_index(nginx.url, str(cache))
    text = (copy / "index.json").read_text()
    (copy / "index.json").write_text(text + "\n")
    second = open_index(nginx.url, str(cache))
    folders = sorted(path.name for path in cache.iterdir())
    assert folders == sorted([first.hash[:16], second.hash[:16]])
    (copy / "index.json").write_text(text + "\n\n")
    (copy / "samples.npy").write_bytes(b"\0" + (copy / "samples.npy").read_bytes()[1:])
    with pytest.raises(DataError, match=rf"{nginx.url}/samples\.npy .* not the one in index\.json"):
        open_index(nginx.url, str(cache))
    assert len(list(cache.glob("*/samples.npy"))) == 2
    (copy / "index.json").write_text("{}")
    with pytest.raises(DataError, match=rf"{nginx.url}/index\.json is not an index of shards"):
        open_index(nginx.url, str(cache))


def test_remote_index_writes_only_into_its_folder(nginx, copy, tmp_path):
    content = json.loads((copy / "index.json").read_text())
    content["arrays"]["../../other"] = hashlib.sha256(b"x").hexdigest()
    (copy / "index.json").write_text(json.dumps(content))
    nginx.requests()
    check_data(offered(nginx, tmp_path / "cache"))
    assert not any("other" in row.path for row in nginx.requests())
    assert {path.parent.name for path in tmp_path.rglob("samples.npy")} == {
        "copy",
        open_index(nginx.url, str(tmp_path / "cache")).hash[:16],
    }


def test_with_tokenizer_finds_the_one_beside_remote_shards(nginx, copy, tmp_path):
    made = offered(nginx, tmp_path / "cache")
    assert made.data.shards == nginx.url
    folder = Path(str(made.data.tokenizer))
    assert folder.is_relative_to(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")  # the config of an old run still names it
    assert with_tokenizer(made.data) == made.data
    check_data(made)
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UserError, match=rf"data.shards={nginx.url} holds no tokenizer; add data"):
        offered(nginx, tmp_path / "cache")


def test_check_room_refuses_a_cache_that_is_too_small(nginx, tmp_path):
    made = offered(nginx, tmp_path / "cache", cache_gb=1e-4)
    with pytest.raises(UserError, match=r"data.cache_gb=0.0001 is less than the ") as caught:
        check_data(made)
    needed = float(str(caught.value).partition("give data.cache_gb=")[2].split()[0])
    assert 1e-4 < needed < 1e-2
    check_data(replace(made, data=replace(made.data, cache_gb=needed)))
    with pytest.raises(UserError, match="is less than the"):
        check_data(replace(made, data=replace(made.data, cache_gb=needed - 1e-4)))
    one = dict.fromkeys(("el", "en", "ja"), 0.0)  # the others are not read
    check_data(replace(made, data=replace(made.data, cache_gb=needed - 1e-4, weights=one)))


def test_check_room_refuses_a_cache_larger_than_the_disk(nginx, tmp_path, monkeypatch):
    made = offered(nginx, tmp_path / "cache")
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"data.cache_gb=64.0 is more than .* has room for, with"):
        check_data(made)


def test_remote_folder_refuses_unsupported_urls(tmp_path, monkeypatch):
    for url, sentence in {
        "memory://x": "has the unsupported protocol memory; give a folder",
        "gopher://x/y": "has the unsupported protocol gopher",
        "https://host/x?key=1": "is not the plain URL of a folder; give one like",
        "simplecache::https://host/x": "is not the plain URL of a folder",
        "https://me:secret@host/x": r"=https://\.\.\.@host/x has a password in it",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            open_index(url, str(tmp_path))
        assert "secret" not in str(caught.value)
    program = (
        "import sys; sys.modules['s3fs'] = None; from mlm.data.reading.remote_files import *\n"
    )
    program += "try: RemoteFolder('s3://bucket/x')\nexcept UserError as error: print(error)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == (
        "data.shards=s3://bucket/x needs a package that is not installed here; pip install "
        "'polymlm[s3]'\n"
    ), ran.stderr


def test_cache_folder_is_the_users_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(DataConfig().cache) == tmp_path / "polymlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "polymlm"
    assert cache_folder(str(tmp_path / "x")) == tmp_path / "x"
