"""Weights of a checkpoint: read in parts, and written a part at a time."""

import math
from pathlib import Path

import pytest
import torch

from mlm.errors import DataError
from mlm.weights import stored
from mlm.weights.source import Weights, open_weights
from mlm.weights.write import write_weights
from tests.ranks import run_ranks

MEGABYTE = 1 << 20


def weights_of(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Weights:
    """Random weights, each made when it is read."""

    def part(name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        whole = torch.randn(shapes[name], generator=generator).to(dtype)
        return whole.narrow(dim, start, stop - start).clone() if shapes[name] else whole

    return Weights(Path("made up"), shapes, dict.fromkeys(shapes, dtype), part)


@pytest.mark.parametrize("numbers", [100, 1 << 24], ids=["parts", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoint_weights_are_read_whole_and_in_slices(numbers, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PART", numbers)
    weights = weights_of({"a.weight": (33, 12), "a.bias": (333,), "b": (2, 3, 4), "c": ()}, dtype)
    seen = []
    stored.write_checkpoint(weights, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (33 * 12 + 333 + 24 + 1,) * 2
    found = stored.open_checkpoint(tmp_path)
    assert found.shapes == weights.shapes
    for name, shape in weights.shapes.items():
        assert torch.equal(found.read(name), weights.read(name).float())
        for dim, length in enumerate(shape):
            for start, stop in ((0, 1), (length // 3, length), (length - 1, length)):
                one = found.part(name, dim, start, stop)
                assert torch.equal(one, weights.part(name, dim, start, stop).float())


def test_write_weights_raises_the_error_of_reading(tmp_path):
    def part(name: str, *_) -> torch.Tensor:
        raise DataError("the source is gone")

    with pytest.raises(DataError, match="the source is gone"):
        stored.write_checkpoint(
            Weights(Path(), {"a": (2,)}, {"a": torch.float32}, part), tmp_path / "one"
        )
    stored.write_checkpoint(weights_of({"a": (2, 2)}), tmp_path / "two")
    found = stored.open_checkpoint(tmp_path / "two")
    next((tmp_path / "two").glob("*.distcp")).unlink()
    with pytest.raises(DataError, match=r"two cannot be read \(.*No such file"):
        found.read("a")


def peak(source: str, folder: str) -> float:
    """Megabytes that a process holds at most while it writes, beyond what it held before."""
    weights = open_weights(Path(source))
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = _status("VmRSS")
    stored.write_checkpoint(weights, Path(folder))
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


@pytest.mark.ranks
def test_write_weights_holds_one_weight_in_memory(tmp_path):
    shapes = {f"layer.{number}": (1500, 1500) for number in range(40)}
    (tmp_path / "source").mkdir()
    write_weights(shapes, lambda name: torch.ones(shapes[name]), tmp_path / "source")
    (found,) = run_ranks(1, peak, str(tmp_path / "source"), str(tmp_path / "out"))
    one = 4 * math.prod(shapes["layer.0"]) / MEGABYTE
    assert found < 4 * one  # what is read, a buffer for torch's writer, and a little more
