"""Shards behind a URL, read from real servers, which may fail."""

import shutil
import time
from collections import Counter
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from launch.cli import main
from mlm.data.checks import check_data
from mlm.data.index import Index
from mlm.data.reading import remote_files
from mlm.data.reading.reader import TokenReader
from mlm.data.reading.remote import open_index
from mlm.errors import DATA, DONE, BadShard, DataError
from tests.data.reading.remote_fixtures import (
    Nginx,
    add_tokenizer,
    everything,
    offered,
    plain_server,
    ranges,
    reader,
    request_of,
)
from tests.launch.launch_fixtures import SMALL
from tests.ranks import run_ranks
from tests.text_fixtures import shards_folder
from tests.training_fixtures import config, metrics, run

FILES = [
    "/index.json",
    "/index.json",
    "/samples.npy",
    "/shards.npy",
]  # once to check for ranges


def rows_of(server, cache: Path) -> list[int]:
    """The sums of 64 rows, which all ranks read at the same time."""
    import torch.distributed as dist

    made = reader(server, cache)
    languages = np.arange(64) % 4
    starts = np.arange(64) // 4 * 40
    dist.barrier()
    return made.gather("train", languages, starts, 31).sum(axis=1).tolist()


@pytest.mark.ranks
def test_remote_ranks_and_a_second_start_download_each_sample_once(nginx, copy, tmp_path):
    found = run_ranks(4, rows_of, nginx, tmp_path / "cache")
    sent = nginx.requests()
    tars = Counter((row.path, row.span) for row in sent if row.path.endswith(".tar"))
    assert set(tars.values()) == {1}
    assert len(tars) > 20
    others = [row.path for row in sent if not row.path.endswith(".tar")]
    assert sorted(others) == ["/index.json"] * 3 + sorted([*FILES, "/index.json"])
    local = TokenReader(Index.open(copy))
    rows = local.gather("train", np.arange(64) % 4, np.arange(64) // 4 * 40, 31)
    assert found == [rows.sum(axis=1).tolist()] * 4
    assert run_ranks(2, rows_of, nginx, tmp_path / "cache") == found[:2]
    assert [row.path for row in nginx.requests()] == ["/index.json"] * 2


def test_remote_store_fetches_the_samples_of_rows_in_parallel(nginx, tmp_path):
    made = reader(nginx, tmp_path / "cache")
    nginx.requests()
    made.gather("train", np.arange(12) % 4, np.arange(12) * 100, 31)
    sent = [row for row in nginx.requests() if row.path.endswith(".tar")]
    assert len(sent) == 12
    assert len({row.connection for row in sent}) > 1  # sequential requests would share one


def test_remote_samples_are_one_request_each_and_equal_those_of_the_folder(nginx, copy, tmp_path):
    made, local = reader(nginx, tmp_path / "cache"), TokenReader(Index.open(copy))
    for mine, theirs in zip(everything(made), everything(local), strict=True):
        assert np.array_equal(mine, theirs)
    index = local.index
    rows = [index.sample_rows("train", n) for n in range(len(index.languages))]
    wanted = [request_of(index, sample) for row in rows for sample in range(row.start, row.stop)]
    assert ranges(nginx) == dict.fromkeys(wanted, 1)
    assert made.index.hash == index.hash
    assert str(made.index.folder) == nginx.url


def test_remote_reader_names_a_bad_sample(nginx, copy, tmp_path):
    index = Index.open(copy)
    language = index.languages.index("ja")
    offset = int(index.samples["offset"][index.sample_rows("train", language).start + 2])
    path = copy / "ja-000000.tar"
    content = bytearray(path.read_bytes())
    content[offset + 7] ^= 1
    path.write_bytes(content)
    made = reader(nginx, tmp_path / "cache")
    made.read("train", language, 0, 200)
    with pytest.raises(BadShard) as caught:
        made.read("train", language, 190, 50)
    assert (caught.value.shard, caught.value.offset) == ("ja-000000.tar", offset)
    assert f"{nginx.url}/ja-000000.tar is bad at byte {offset}: the ids there" in str(caught.value)
    assert max(ranges(nginx).values()) == 3
    path.write_bytes(content[:offset])
    with pytest.raises(BadShard, match=rf"bad at byte {offset}: 0 bytes are there in place of 400"):
        made.read("train", language, 190, 50)
    path.unlink()
    with pytest.raises(BadShard, match=rf"{nginx.url}/ja-000000.tar is not there; copy"):
        made.read("train", language, 190, 50)


def test_remote_reader_waits_for_a_server_that_is_killed_and_restarted(tmp_path):
    folder = add_tokenizer(shutil.copytree(shards_folder(), tmp_path / "shards"))
    server = Nginx(tmp_path / "nginx", folder)
    server.start()
    try:
        made, local = reader(server, tmp_path / "cache"), TokenReader(Index.open(folder))
        server.stop()
        server.configure("limit_rate 10k;")  # a sample takes seconds
        server.start()
        server.requests()
        server.configure("")

        def again() -> None:
            server.stop()
            Timer(0.4, server.start).start()

        Timer(0.5, again).start()
        assert np.array_equal(made.read("train", 1, 0, 9000), local.read("train", 1, 0, 9000))
        assert sum(ranges(server).values()) in (
            1,
            2,
        )  # the interrupted one may be logged
    finally:
        time.sleep(0.5)
        server.stop()


def test_remote_reader_waits_for_a_server_with_temporary_errors(nginx, tmp_path):
    made = reader(nginx, tmp_path / "cache")
    nginx.requests()
    nginx.down(True)
    Timer(0.6, nginx.down, [False]).start()
    assert len(made.read("train", 0, 0, 50)) == 50
    states = [row.status for row in nginx.requests()]
    assert states[:2] == ["503", "503"]
    assert states[-1] == "206"


def test_remote_reader_reports_a_server_that_stays_away(nginx, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_files, "WAITS", (0.05, 0.1))
    made = reader(nginx, tmp_path / "cache")
    nginx.down(True)
    offset = int(made.index.samples["offset"][0])
    with pytest.raises(DataError, match=rf"el-000000\.tar .* at byte {offset} \(status 503\), for"):
        made.read("train", 0, 0, 50)
    nginx.stop()
    with pytest.raises(
        DataError, match=r"check that the server is reachable, then start the"
    ) as caught:
        made.read("train", 0, 0, 50)
    assert not isinstance(caught.value, BadShard)
    assert caught.value.code == DATA
    with pytest.raises(DataError, match=rf"{nginx.url}/index\.json cannot be read at byte 0"):
        reader(nginx, tmp_path / "cache")


def test_remote_reader_reports_permanent_errors_at_once(nginx, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_files, "WAITS", (100,))
    for path, sentence in {
        "forbidden/x": r"may not be read at byte 0 \(status 403\); give this user the right",
        "none": r"/none/index\.json is not there; copy the shards to .*/none again, or correct",
    }.items():
        with pytest.raises(DataError, match=sentence):
            open_index(f"{nginx.url}/{path}", str(tmp_path / "cache"))


def test_remote_index_refuses_a_server_without_ranges_and_reads_no_shard(copy, tmp_path):
    server = plain_server(tmp_path / "plain", copy)
    server.start()
    try:
        with pytest.raises(DataError, match=rf"the server of {server.url} sends a whole file"):
            offered(server, tmp_path / "cache")
    finally:
        server.stop()
    log = (tmp_path / "plain" / "output.log").read_text()
    assert "index.json" in log
    assert ".tar" not in log
    assert ".npy" not in log


def test_remote_reader_refuses_a_server_that_stops_serving_ranges(nginx, tmp_path):
    made = reader(nginx, tmp_path / "cache")
    nginx.stop()
    nginx.configure("max_ranges 0;")
    nginx.start()
    with pytest.raises(DataError, match="use a server that supports them"):
        made.read("train", 0, 0, 50)
    with pytest.raises(DataError, match="use a server that supports them"):
        check_data(offered(nginx, tmp_path / "cache"))


@pytest.mark.ranks
def test_training_over_http_equals_training_from_the_folder(nginx, copy, tmp_path):
    made = {"parallel": {"dp": 2}, "train": {"steps": 3}, "eval": {"every": 0}}
    local = config(data={"shards": str(copy)}, **made)
    far = config(data={"shards": nginx.url, "cache": str(tmp_path / "cache")}, **made)
    assert run(tmp_path / "local", local)["code"] == DONE
    assert run(tmp_path / "far", far)["code"] == DONE
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("local", "far")]
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    ledgers = [(tmp_path / name / "ledger.bin").read_bytes() for name in ("local", "far")]
    assert ledgers[0] == ledgers[1]
    assert set(ranges(nginx).values()) == {1}


@pytest.mark.slow
@pytest.mark.ranks
def test_train_command_over_http_equals_the_one_from_the_folder(
    nginx, copy, tmp_path, monkeypatch, capfd
):
    """It resumes without a download, and audit and export work without the cache."""
    cache = tmp_path / "cache"
    monkeypatch.chdir(tmp_path)
    given = [text for text in SMALL if "vocab_size" not in text]
    given += ["parallel.dp=2", "train.global_batch_size=8", "train.micro_batch_size=2"]
    given += ["eval.blocks_per_language=1", "checkpoint.every=0", "train.log_every=1"]
    far = [f"data.shards={nginx.url}", f"data.cache={cache}", "run.name=far", *given]
    assert main(["train", *far, "train.steps=3"]) == DONE
    near = [f"data.shards={copy}", "run.name=near", *given]
    assert main(["train", *near, "train.steps=3"]) == DONE
    runs = [Path("runs", name) for name in ("far", "near")]
    losses = [[row["loss"] for row in metrics(folder)] for folder in runs]
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    far_ledger, near_ledger = ((folder / "ledger.bin").read_bytes() for folder in runs)
    assert far_ledger == near_ledger
    sent = {row: n for row, n in ranges(nginx).items() if not checks_size(row)}
    assert set(sent.values()) == {1}
    # A second start reads the samples of the first from the cache.
    assert main(["train", *far, "train.steps=6"]) == DONE
    assert not sent.keys() & ranges(nginx).keys()
    capfd.readouterr()
    shutil.rmtree(cache)
    assert main(["export", "runs/far", "exported"]) == DONE
    shutil.rmtree(cache)
    assert main(["audit", "runs/far", "every=true"]) == DONE
    assert "The ledger of 6 steps agrees, in all 6 that" in capfd.readouterr().out
    shutil.rmtree(cache)
    assert main(["audit", "runs/far", "step=2", "rows=1"]) == DONE


def checks_size(row: tuple[str, str]) -> bool:
    """Whether a range is the last byte of a tar and the one after it."""
    first, last = row[1].removeprefix("bytes=").split("-")
    return int(last) - int(first) == 1
