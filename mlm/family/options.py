"""Options of transformers' `from_pretrained` and `save_pretrained`, in our terms."""

from typing import Any

import torch

from mlm.family.config_kinds import shown
from mlm.weights.dtypes import FLOATS
from mlm.weights.source import Weights

# Options of transformers' `from_pretrained` that change nothing here, and all their values.
WITHOUT_EFFECT = ("local_files_only", "low_cpu_mem_usage")
# By their names in transformers.
KERNEL_BY_NAME = {None: "auto", "eager": "unfused", "sdpa": "fused"}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def refuse(function: str, given: dict[str, Any], does: str = "") -> None:
    """Raises ValueError for the first argument that is not one of a function's; None asks for
    nothing."""
    why = f", which {does}" if does else ""
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}={shown(value)} is unsupported by {function}{why}; leave it out"
            )


def attention_kernel(name: str | None) -> str:
    """Our name for transformers' `attn_implementation`."""
    if name not in KERNEL_BY_NAME:
        raise ValueError(
            f"attn_implementation={name!r} is unsupported; choose eager or sdpa, or leave it out"
        )
    return KERNEL_BY_NAME[name]


def chosen_device(device_map: Any) -> torch.device:
    """The one device that `device_map` names; `auto`: the GPU, where there is one; None: torch's
    default. A model is spread over devices by a group, never by a map."""
    if device_map is None:
        default = torch.get_default_device()
        return torch.device("cpu") if default.type == "meta" else default
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device_map={device_map!r} is unsupported: a model lies on one device, or is split by "
            f"`group`; give auto, cpu or cuda, or leave it out"
        ) from None


def chosen_dtype(given: Any, extra: dict[str, Any], weights: Weights) -> torch.dtype:
    """fp32 where none is given; `auto`: that of the config, or else that of the first weight."""
    if given is None:
        return torch.float32
    if given == "auto":
        stored = next((each for each in weights.dtypes.values() if each in FLOATS), torch.float32)
        given = extra.get("dtype") or extra.get("torch_dtype") or stored
    if isinstance(given, str):
        given = getattr(torch, given.removeprefix("torch."), given)
    if given not in FLOATS:
        raise ValueError(
            f"dtype={given} is unsupported; choose from auto, float32, bfloat16, float16, float64"
        )
    return given


def shard_bytes(given: int | str) -> int:
    """`max_shard_size` in bytes; raises ValueError."""
    text = str(given).strip().upper()
    unit = next((unit for unit in sorted(UNITS, key=len, reverse=True) if text.endswith(unit)), "")
    try:
        size = int(float(text.removesuffix(unit)) * UNITS.get(unit, 1))
    except ValueError:
        size = 0
    if size < 1:
        raise ValueError(
            f"max_shard_size={given!r} is no number of bytes; give one such as 5GB or 500MB"
        )
    return size
