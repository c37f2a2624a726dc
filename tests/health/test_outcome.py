"""The outcome file: written once and whole, by the first process that has an outcome."""

import errno
import json
import os

import pytest

from mlm.files.jsonl import append_row
from mlm.health.outcome import make_room, read_outcome, write_outcome, write_refusal


def test_outcome_keeps_the_first_and_leaves_no_other_file(tmp_path):
    make_room(tmp_path)
    write_outcome(tmp_path, 76, "the text is bad", 3, 2.5)
    write_outcome(tmp_path, 1, "a rank went away")
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
    assert json.loads((tmp_path / "outcome.json").read_text()) == {
        "code": 76,
        "sentence": "the text is bad",
        "step": 3,
        "eval_loss": 2.5,
        "attempt": None,
    }


def test_outcome_has_the_attempt_and_the_mode_of_other_files(tmp_path):
    append_row(tmp_path / "starts.jsonl", {"attempt": "first"})
    append_row(tmp_path / "starts.jsonl", {"attempt": "7.1"})
    write_outcome(tmp_path, 0, "done", 3, 2.5)
    found = read_outcome(tmp_path)
    assert found is not None
    assert found["attempt"] == "7.1"
    assert (tmp_path / "outcome.json").stat().st_mode == (tmp_path / "starts.jsonl").stat().st_mode


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_outcome_needs_no_hard_links(number, tmp_path, monkeypatch):
    """As on exFAT and in mounts of object stores."""

    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    write_outcome(tmp_path, 75, "saved")
    write_outcome(tmp_path, 1, "a rank went away")
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
    assert read_outcome(tmp_path) == {
        "code": 75,
        "sentence": "saved",
        "step": None,
        "eval_loss": None,
        "attempt": None,
    }


def test_refusal_keeps_the_outcome_of_the_run(tmp_path):
    write_outcome(tmp_path, 0, "done", 3, 2.5)
    of_run = read_outcome(tmp_path)
    for attempt in ("a", "b"):
        write_refusal(tmp_path, 2, "the setting is wrong", attempt)
        found = read_outcome(tmp_path)
        assert found is not None
        assert (found["code"], found["attempt"], found["before"]) == (2, attempt, of_run)
