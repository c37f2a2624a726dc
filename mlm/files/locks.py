"""Locks that one process at a time holds, and that end with it however it ends."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

POLL = 0.005  # seconds between two attempts
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of a file system without locks


def lock(file: IO, wait: bool = True) -> bool:
    """Locks an open file; returns False where another process or thread holds the lock.

    wait: for the lock, so that True is returned at all times

    The lock ends when the file is closed in every process that inherited it. On a file system
    without locks, as some clusters have, nothing is locked and True is returned: what needs the
    lock must be renamed into place as well. Raises OSError.
    """
    try:
        return lock_descriptor(file.fileno(), blocking=wait, poll_interval=POLL)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return True


@contextmanager
def lock_file(path: Path) -> Iterator[bool]:
    """Creates a file, locks it, and deletes it at the end; gives False where another holds it.

    Raises OSError.
    """
    with path.open("a") as file:
        if not lock(file, wait=False):
            yield False
            return
        if not _is_at(file, path):  # it was that of a process that has just deleted it
            with lock_file(path) as locked:
                yield locked
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _is_at(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
