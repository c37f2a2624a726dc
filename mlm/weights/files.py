"""The two kinds of file that weights are published in, whose tensors are read in parts.

Safetensors are read by plain reads at an offset. The library's own slices would either map the
file, where a file that is cut under its reader ends the process by a signal, or read all of a
tensor for any part of it. Torch's files are mapped, and only plain tensors are taken from them.
"""

import errno
import json
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from mlm.errors import DataError
from mlm.weights.dtypes import IN_SAFETENSORS

LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
AT_ONCE = 1 << 30  # bytes; one read gives 2 GiB at most, and an embedding table may have more
COPY_AGAIN = "copy it again from where it came"

ReadPart = Callable[[str, int, int, int], Tensor]


@dataclass(frozen=True)
class OpenFile:
    """The tensors of a file.

    read_part: reads `(name, dim, start, stop)`, a new tensor of the stored dtype; raises DataError
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read_part: ReadPart


def open_file(path: Path) -> OpenFile:
    """A `.safetensors` file, or one of torch's under any other name; raises DataError."""
    try:
        return _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); see that it is a file and that "
            f"you may read it"
        ) from None


def _open_safetensors(path: Path) -> OpenFile:
    file = _BinaryFile(path)
    header, first = _header(file)
    shapes, dtypes, starts = {}, {}, {}
    for name, entry in header.items():
        try:
            shape, dtype = tuple(map(int, entry["shape"])), IN_SAFETENSORS.get(entry["dtype"])
            start, stop = map(int, entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise _damaged(path, f"where it describes {name}") from None
        if dtype is None:
            raise DataError(
                f"{path} holds {name} as {entry['dtype']}, which is unsupported; give weights of "
                f"the dtypes F64, F32, F16 or BF16"
            )
        if min(shape, default=0) < 0 or not 0 <= start == stop - math.prod(shape) * dtype.itemsize:
            raise _damaged(path, f"where it describes {name}")
        if first + stop > file.size:
            raise _cut_short(file, f"{name} ends at byte {first + stop}")
        shapes[name], dtypes[name], starts[name] = shape, dtype, first + start

    def read_part(name: str, dim: int, start: int, stop: int) -> Tensor:
        shape = shapes[name] or (1,)
        value = torch.empty(
            (*shape[:dim], stop - start, *shape[dim + 1 :]), dtype=dtypes[name], device="cpu"
        )
        inner = math.prod(shape[dim + 1 :]) * dtypes[name].itemsize  # bytes of one step along dim
        length, stride = (stop - start) * inner, shape[dim] * inner
        if value.numel():
            buffer = value.view(-1).view(torch.uint8).numpy().data
            for row in range(math.prod(shape[:dim])):
                place = starts[name] + row * stride + start * inner
                if not file.read_into(buffer[row * length : (row + 1) * length], place):
                    raise DataError(f"{path} ends in the middle of {name}; {COPY_AGAIN}")
        return value.view(()) if shapes[name] == () else value

    return OpenFile(path, shapes, dtypes, read_part)


class _BinaryFile:
    """A file that is read at any place, and closed when nothing refers to it any more."""

    def __init__(self, path: Path):
        self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, length: int, place: int) -> bytes:
        """The bytes at `place`, fewer where the file ends before."""
        return os.pread(self._descriptor, length, place)

    def read_into(self, buffer: memoryview, place: int) -> bool:
        """Fills a buffer with the bytes at `place`; returns False where the file ends before."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done : done + AT_ONCE]], place + done)
            if count == 0:
                return False
            done += count
        return True


def _header(file: _BinaryFile) -> tuple[dict[str, Any], int]:
    """The list of tensors of a safetensors file, and the place where their bytes begin."""
    start = file.read(8, 0)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= LONGEST_HEADER:
        raise DataError(
            f"{file.path} does not begin as a safetensors file does; give a model's file, or "
            f"{COPY_AGAIN}"
        )
    if 8 + length > file.size:
        raise _cut_short(file, f"its list of tensors ends at byte {8 + length}")
    try:
        header = json.loads(file.read(length, 8))
        header.pop("__metadata__", None)
    except (ValueError, AttributeError):
        raise _damaged(file.path, "in its list of tensors") from None
    return header, 8 + length


def _cut_short(file: _BinaryFile, end: str) -> DataError:
    return DataError(f"{file.path} is cut short: it has {file.size} bytes, and {end}; {COPY_AGAIN}")


def _damaged(path: Path, place: str) -> DataError:
    return DataError(f"{path} is damaged {place}; {COPY_AGAIN}")


def _open_bin(path: Path) -> OpenFile:
    tensors = load_pickle(path)
    remedy = "give the folder of a model, with `pytorch_model.bin` or safetensors in it"
    if not isinstance(tensors, dict):
        raise DataError(
            f"{path} holds one {type(tensors).__name__} in place of weights by name; {remedy}"
        )
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise DataError(
                f"{path} holds {name}, of the type {type(value).__name__}, and a file of weights "
                f"holds only tensors; {remedy}"
            )

    def read_part(name: str, dim: int, start: int, stop: int) -> Tensor:
        tensor = tensors[name].detach()
        if tensor.ndim:
            tensor = tensor.narrow(dim, start, stop - start)
        return tensor.clone(memory_format=torch.contiguous_format)

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return OpenFile(path, shapes, dtypes, read_part)


def load_pickle(path: Path, plain: Sequence[Any] = ()) -> Any:
    """The contents of a file of torch.save, mapped, with tensors on the CPU; no code in it is run.

    plain: classes that may be in it beside tensors, as torch.serialization.safe_globals takes them

    A file in the format of torch before 1.6 cannot be mapped, so it is read into memory as a whole,
    with a warning. Raises DataError, and OSError.
    """
    try:
        with torch.serialization.safe_globals(list(plain)):
            return _loaded(path)
    except OSError as error:
        # A file that names places after its end or before its beginning.
        if error.errno != errno.EINVAL:
            raise
        reason = "is cut short, or damaged"
    except UnpicklingError as error:
        if found := _REFUSED.search(str(error)):
            raise DataError(
                f"{path} names {found[1]}, which may be code, and only plain tensors are read; "
                f"load it where you trust it, and save its tensors by name"
            ) from None
        reason = "is not a file of torch.save, or is damaged"
    except Exception:  # the reader has no error of its own for what is not a pickle
        reason = "is cut short, or damaged"
    raise DataError(f"{path} {reason}; {COPY_AGAIN}")


_REFUSED = re.compile(r"unsupported (?:global: )?GLOBAL (\S+)", re.IGNORECASE)


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    warnings.warn(
        f"{path} is in the format of torch before 1.6, so all of it is in memory while it is read; "
        f"torch.load and torch.save it again to read it in parts",
        stacklevel=2,
    )
    return loaded
