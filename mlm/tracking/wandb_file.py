"""What W&B keeps of a run on the disk, `run-ID.wandb`: which points it has.

After a header of 7 bytes the file is a log of blocks as LevelDB has it
(https://github.com/google/leveldb, doc/log_format.md), of W&B's protocol buffers. The package wandb
has no reader of it that a program can call.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32_768
FULL, FIRST, MIDDLE, LAST = range(1, 5)


def histories(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The step and the figures (as JSON) of each row, in order, up to the first damage."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # which is generated, without types
    for data in records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield (
                record.history.step.num,
                {item.key or ".".join(item.nested_key): item.value_json for item in items},
            )


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log, up to the first that is damaged or was not written whole."""
    position, parts = HEADER, b""
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # no record begins there
            position += left
            continue
        if len(content) - position < HEADER:
            return
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        position += HEADER
        part = content[position : position + length]
        if len(part) < length or zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            return
        position += length
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield parts
