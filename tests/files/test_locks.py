"""Locks: held by one, free again when the last process that inherited the file has ended."""

import errno
import fcntl
import subprocess
import sys

import pytest

from mlm.files.locks import lock, lock_file


def test_lock_is_held_by_one_open_file_at_a_time(tmp_path):
    with (tmp_path / "log").open("ab") as one, (tmp_path / "log").open("ab") as other:
        assert lock(one)
        assert not lock(other, wait=False)
        one.close()
        assert lock(other, wait=False)


def test_lock_ends_with_the_last_process_that_inherited_the_file(tmp_path):
    path = tmp_path / "log"
    with path.open("ab") as log:
        assert lock(log)
        program = [sys.executable, "-c", "input()"]
        child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=log)
    with path.open("ab") as log:
        assert not lock(log, wait=False)
        child.communicate(b"\n")
        assert lock(log, wait=False)


def test_lock_lets_pass_on_a_file_system_without_locks_only(tmp_path, monkeypatch):
    def refuse(code):
        def flock(file, how):
            raise OSError(code, "no")

        monkeypatch.setattr(fcntl, "flock", flock)

    with (tmp_path / "log").open("ab") as log:
        refuse(errno.ENOLCK)
        assert lock(log)
        refuse(errno.EIO)
        with pytest.raises(OSError, match="no"):
            lock(log)


def test_lock_file_is_there_only_while_it_is_held(tmp_path):
    path = tmp_path / "lock"
    with lock_file(path) as locked:
        assert locked
        with lock_file(path) as again:
            assert not again
        assert path.exists()
    assert not path.exists()


def test_lock_file_that_its_holder_has_just_deleted_is_created_again(tmp_path, monkeypatch):
    path, held = tmp_path / "lock", []

    def lock_as_the_holder_ends(file, wait):
        if not held:
            path.unlink()
        held.append(file)
        return lock(file, wait)

    monkeypatch.setattr("mlm.files.locks.lock", lock_as_the_holder_ends)
    with lock_file(path) as locked:
        assert locked
        assert path.exists()
    assert len(held) == 2
