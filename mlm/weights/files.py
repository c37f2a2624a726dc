"""The two kinds of file that weights are published in, opened as tensors that are read in parts.

Safetensors are read by plain reads at an offset, not mapped: the memory of a rank then holds what
it asked for and nothing beside it, and a file that is cut under its reader is an error and no
signal. Torch's files are mapped, and nothing but plain tensors is taken from them.
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
AGAIN = "copy it again from where it came"

Part = Callable[[str, int, int, int], Tensor]


@dataclass(frozen=True)
class OpenFile:
    """A file's tensors.

    part: reads `(name, dim, start, stop)`, a new tensor of the stored dtype; raises DataError
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    part: Part


def open_file(path: Path) -> OpenFile:
    """A `.safetensors` file, or one of torch's under any other name; raises DataError."""
    try:
        return _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); see that it is a file and that "
            f"you may read it"
        ) from None


class _Handle:
    """An open file, closed when nothing reads from it any more."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _open_safetensors(path: Path) -> OpenFile:
    file = _Handle(path)
    size = os.fstat(file.number).st_size
    header, first = _header(path, file, size)
    shapes, dtypes, starts = {}, {}, {}
    for name, entry in header.items():
        try:
            shape, dtype = tuple(map(int, entry["shape"])), IN_SAFETENSORS.get(entry["dtype"])
            start, stop = map(int, entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path} is damaged where it describes {name}; {AGAIN}") from None
        if dtype is None:
            raise DataError(
                f"{path} holds {name} as {entry['dtype']}, which is not read here; give weights "
                f"of the dtypes F64, F32, F16 or BF16"
            )
        if min(shape, default=0) < 0 or not 0 <= start == stop - math.prod(shape) * dtype.itemsize:
            raise DataError(f"{path} is damaged where it describes {name}; {AGAIN}")
        if first + stop > size:
            raise DataError(
                f"{path} is cut short: it has {size} bytes, and {name} goes on to byte "
                f"{first + stop}; {AGAIN}"
            )
        shapes[name], dtypes[name], starts[name] = shape, dtype, first + start

    def part(name: str, dim: int, start: int, stop: int) -> Tensor:
        shape = shapes[name] or (1,)
        made = torch.empty(
            (*shape[:dim], stop - start, *shape[dim + 1 :]), dtype=dtypes[name], device="cpu"
        )
        inner = math.prod(shape[dim + 1 :]) * dtypes[name].itemsize  # bytes of one step along dim
        length, stride = (stop - start) * inner, shape[dim] * inner
        if made.numel():
            into = memoryview(made.view(-1).view(torch.uint8).numpy())
            for row in range(math.prod(shape[:dim])):
                place = starts[name] + row * stride + start * inner
                if not _read_into(file, into[row * length : (row + 1) * length], place):
                    raise DataError(f"{path} ends in the midst of {name}; {AGAIN}")
        return made.view(()) if shapes[name] == () else made

    return OpenFile(path, shapes, dtypes, part)


def _header(path: Path, file: _Handle, size: int) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and the place where they begin."""
    start = os.pread(file.number, 8, 0)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= LONGEST_HEADER:
        raise DataError(
            f"{path} does not begin as a safetensors file does; give a model's, or {AGAIN}"
        )
    if 8 + length > size:
        raise DataError(
            f"{path} is cut short: its list of tensors ends at byte {8 + length}, and it has "
            f"{size}; {AGAIN}"
        )
    try:
        header = json.loads(os.pread(file.number, length, 8))
        header.pop("__metadata__", None)
    except (ValueError, AttributeError):
        raise DataError(f"{path} is damaged in its list of tensors; {AGAIN}") from None
    return header, 8 + length


def _read_into(file: _Handle, into: memoryview, place: int) -> bool:
    """Fills `into` with the bytes at `place`; false where the file ends before."""
    done = 0
    while done < len(into):
        count = os.preadv(file.number, [into[done : done + AT_ONCE]], place + done)
        if count == 0:
            return False
        done += count
    return True


def _open_bin(path: Path) -> OpenFile:
    tensors = load_pickle(path)
    if not isinstance(tensors, dict):
        raise DataError(f"{path} holds one {_kind(tensors)} in place of weights by name; {_GIVE}")
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise DataError(
                f"{path} holds {name}, of the type {_kind(value)}, and a file of weights holds "
                f"tensors only; {_GIVE}"
            )

    def part(name: str, dim: int, start: int, stop: int) -> Tensor:
        tensor = tensors[name].detach()
        if tensor.ndim:
            tensor = tensor.narrow(dim, start, stop - start)
        return tensor.clone(memory_format=torch.contiguous_format)

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return OpenFile(path, shapes, {name: each.dtype for name, each in tensors.items()}, part)


_GIVE = "give the folder of a model, with `pytorch_model.bin` or safetensors in it"


def load_pickle(path: Path, plain: Sequence[Any] = ()) -> Any:
    """What torch.save wrote, mapped, its tensors on the CPU; nothing in it is run.

    plain: classes beside tensors that may be in it, as torch.serialization.safe_globals takes them

    A file in the format of torch before 1.6 cannot be mapped and is read into memory as a whole,
    with a warning. Raises DataError, and OSError.
    """
    try:
        with torch.serialization.safe_globals(list(plain)):
            return _loaded(path)
    except OSError as error:
        # Places that a file names behind its end, or before its beginning, are no place to go to.
        if error.errno != errno.EINVAL:
            raise
        raise DataError(f"{path} is cut short, or damaged; {AGAIN}") from None
    except UnpicklingError as error:
        if (found := _REFUSED.search(str(error))) is None:
            raise DataError(f"{path} is no file of torch.save, or damaged; {AGAIN}") from None
        raise DataError(
            f"{path} names {found[1]}, which may be code, and nothing but plain tensors is read; "
            f"load it where you trust it, and save its tensors by name"
        ) from None
    except Exception:  # the reader has no error of its own for what is not a pickle
        raise DataError(f"{path} is cut short, or damaged; {AGAIN}") from None


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
    made = torch.load(path, map_location="cpu", weights_only=True)
    warnings.warn(
        f"{path} is in the format of torch before 1.6, so all of it is in memory while it is read; "
        f"torch.load and torch.save it again to read it in parts",
        stacklevel=2,
    )
    return made


_REFUSED = re.compile(r"unsupported (?:global: )?GLOBAL (\S+)", re.IGNORECASE)


def _kind(value: object) -> str:
    return type(value).__name__
