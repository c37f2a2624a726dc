"""`mlm shards` with small samples and tars, which can be made to kill itself.

    python -m tests.data.writing.small_shards corpus=... tokenizer=... out=...

KILL=before|torn|after NUMBER kills all processes of the command at that line of a journal: before,
in the middle of or after writing it. KILL=first|index|rename kills them at the end of the first
pass, once the index is written, and before the folder gets its name. At its end the command prints
how many lines of text it tokenized. Spawned workers import this module, and so behave alike.
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
_append_row, _encode = journal.append_row, Tokenizer.encode
_save_first_pass = staging.save_first_pass
_write_index, _replace = shards.write_index, os.replace


def kill() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def append_row(path: Path, row: dict) -> None:
    global _appended
    _appended += 1
    reached = _number and _appended == int(_number)
    if reached and _point == "before":
        kill()
    _append_row(path, row)
    if reached and _point == "torn":
        os.truncate(path, path.stat().st_size - 20)
        kill()
    if reached and _point == "after":
        kill()


def encode(self: Tokenizer, lines: list[str], threads: int = 1) -> list:
    global tokenized
    tokenized += len(lines)
    return _encode(self, lines, threads)


def save_first_pass(*arguments) -> None:
    if _point == "first":
        kill()
    _save_first_pass(*arguments)


def write_index(*arguments) -> None:
    _write_index(*arguments)
    if _point == "index":
        kill()


def replace(source, target) -> None:
    if _point == "rename" and Path(source).name.endswith(".partial"):
        kill()
    _replace(source, target)


journal.append_row, Tokenizer.encode = append_row, encode
staging.save_first_pass = save_first_pass
shards.write_index, os.replace = write_index, replace


def run(arguments: list[str]) -> int:
    code = main(["shards", *arguments])
    print(f"{tokenized} lines were tokenized", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
