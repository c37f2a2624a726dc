"""Files with a JSON object per line, to which rows are appended while others may read them."""

import json
import os
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def append_row(path: Path, row: Row, durable: bool = True) -> None:
    """Appends a row. durable: it is on the disk on return. Raises OSError."""
    with path.open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
        if durable:
            file.flush()
            os.fsync(file.fileno())


def read_rows(path: Path, skip_damaged: bool = False) -> list[Row]:
    """The rows of a file, none where there is no file.

    skip_damaged: skips lines that are not JSON, such as one that is being written, in place of
        raising ValueError
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            if not skip_damaged:
                raise
    return rows


def repair(path: Path) -> None:
    """Removes a last row that was only written in part."""
    drop_last_rows(path, lambda row: False)


def drop_last_rows(path: Path, dropped: Callable[[Row], bool]) -> None:
    """Removes the last rows for as long as `dropped` says so, and those written in part.

    No rows before them are read, so that it takes as long in a file of any length.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        end = len(content)
        while end:
            begin = content.rfind(b"\n", 0, end - 1) + 1
            if not _is_dropped(content[begin:end], dropped):
                break
            end = begin
        terminated = not end or content[end - 1 : end] == b"\n"
    with path.open("r+b") as file:
        file.truncate(end)
        if not terminated:
            file.seek(end)
            file.write(b"\n")


def _is_dropped(line: bytes, dropped: Callable[[Row], bool]) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return True  # written in part
    return dropped(row)
