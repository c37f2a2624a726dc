"""`mlm shards` with small samples and tars, that can be made to kill itself.

    python -m tests.data.writing.small_shards corpus=... tokenizer=... out=...

KILL=before|torn|after NUMBER kills every process of the command at that line of a journal, before
it, in its middle or behind it; KILL=first, index and rename do at the end of the first pass, when
the index is written, and before the folder gets its name. At its end it prints how many lines of
text were tokenized. Workers that are spawned import this, and so are the same.
"""

import os
import signal
import sys
from pathlib import Path

from launch.cli import main
from mlm.data.writing import journal, shards, staging, tars, tokenizing
from mlm.tokenizer.tokenizer import Tokenizer

tars.SAMPLE_IDS, tars.SHARD_SAMPLES, tokenizing.BATCH_CHARACTERS = 300, 3, 700

_point, _, _number = os.environ.get("KILL", "").partition(" ")
_appended = tokenized = 0
_append_row, _encode, _save = journal.append_row, Tokenizer.encode, staging.save
_write_index, _replace = shards.write_index, os.replace


def kill() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def append_row(path: Path, row: dict) -> None:
    global _appended
    _appended += 1
    due = _number and _appended == int(_number)
    if due and _point == "before":
        kill()
    _append_row(path, row)
    if due and _point == "torn":
        os.truncate(path, path.stat().st_size - 20)
        kill()
    if due and _point == "after":
        kill()


def encode(self: Tokenizer, lines: list[str], threads: int = 1) -> list:
    global tokenized
    tokenized += len(lines)
    return _encode(self, lines, threads)


def save(*arguments) -> None:
    if _point == "first":
        kill()
    _save(*arguments)


def write_index(*arguments) -> None:
    _write_index(*arguments)
    if _point == "index":
        kill()


def replace(source, target) -> None:
    if _point == "rename" and Path(source).name.endswith(".partial"):
        kill()
    _replace(source, target)


journal.append_row, Tokenizer.encode, staging.save = append_row, encode, save
shards.write_index, os.replace = write_index, replace


def run(arguments: list[str]) -> int:
    code = main(["shards", *arguments])
    print(f"{tokenized} lines were tokenized", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
