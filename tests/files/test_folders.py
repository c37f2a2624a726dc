"""Folders that exist whole or not at all."""

from contextlib import contextmanager

import pytest

from mlm.errors import UserError
from mlm.files.folders import kept_folder, new_folder
from mlm.files.locks import lock_file


def test_new_folder_is_renamed_at_the_end_and_deleted_on_an_error(tmp_path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(UserError, match="out cannot be written: disk; free some"), new_folder(out):
        raise OSError("disk")
    assert list(out.parent.iterdir()) == []
    with new_folder(out) as aside:
        (aside / "ours").touch()
        assert not out.exists()
    assert [path.name for path in out.parent.rglob("*")] == ["out", "ours"]
    with pytest.raises(UserError, match="out exists and is not an empty folder"), new_folder(out):
        pass
    assert [path.name for path in out.parent.rglob("*")] == ["out", "ours"]


def test_kept_folder_refuses_what_another_process_has_finished_meanwhile(tmp_path, monkeypatch):
    """Between the first look and the lock."""
    out = tmp_path / "out"

    @contextmanager
    def locked_late(path):
        (out / "theirs").mkdir(parents=True)
        with lock_file(path) as locked:
            yield locked

    monkeypatch.setattr("mlm.files.folders.lock_file", locked_late)
    entered = []
    with (
        pytest.raises(UserError, match="out exists and is not an empty folder"),
        kept_folder(out, lambda folder: False, "work") as aside,
    ):
        entered.append(aside)
    assert entered == []
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]
