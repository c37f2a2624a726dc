"""Rows of JSON: appended, read while one is being written, repaired after a kill."""

import json
import os

import pytest

from mlm.files.jsonl import append_row, drop_last_rows, read_rows, repair

ROWS = [{"step": 1}, {"step": 2}, {"step": 4, "text": "ü\n"}]


@pytest.fixture
def path(tmp_path):
    for row in ROWS:
        append_row(tmp_path / "rows.jsonl", row)
    return tmp_path / "rows.jsonl"


def test_read_rows_gives_what_was_appended(path, tmp_path):
    assert read_rows(path) == ROWS
    assert read_rows(tmp_path / "none.jsonl") == []


def test_read_rows_skips_damaged_lines_only_if_asked(path):
    path.write_bytes(b'{"step": 0, "te\n' + path.read_bytes() + b'{"st')
    assert read_rows(path, skip_damaged=True) == ROWS
    with pytest.raises(ValueError, match="Unterminated string"):
        read_rows(path)


@pytest.mark.parametrize("tail", [b"", b"{", b'{"step": 5, "lo', b"\0\0\0"])
def test_repair_removes_a_row_written_in_part(path, tail):
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    repair(path)
    assert path.read_bytes() == whole


def test_repair_ends_a_whole_row_with_its_newline(path):
    path.write_bytes(path.read_bytes() + b'{"step": 5}')
    repair(path)
    append_row(path, {"step": 6})
    assert read_rows(path) == [*ROWS, {"step": 5}, {"step": 6}]


def test_drop_last_rows_reads_no_rows_before_them(path):
    first = b"not JSON\n"
    path.write_bytes(first + path.read_bytes())
    drop_last_rows(path, lambda row: row["step"] > 1)
    assert path.read_bytes() == first + json.dumps(ROWS[0]).encode() + b"\n"


def test_drop_last_rows_of_no_or_an_empty_file_does_nothing(tmp_path):
    drop_last_rows(tmp_path / "none.jsonl", lambda row: True)
    (tmp_path / "empty.jsonl").touch()
    drop_last_rows(tmp_path / "empty.jsonl", lambda row: True)
    assert [each.name for each in tmp_path.iterdir()] == ["empty.jsonl"]


@pytest.mark.parametrize("durable", [True, False])
def test_append_row_is_on_the_disk_on_return_where_it_is_durable(durable, path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    append_row(path, {"step": 5}, durable=durable)
    assert synced == [path.stat().st_size] * durable
