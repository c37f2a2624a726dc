"""Dtypes by the names that settings, files of weights and config.json use."""

import torch

BY_SETTING = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS = (*BY_SETTING.values(), torch.float64)  # that weights may have
IN_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def name_of(dtype: torch.dtype) -> str:
    """The name in a config.json, `bfloat16` and the like."""
    return str(dtype).removeprefix("torch.")
