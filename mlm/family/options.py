"""Options of the reference's `from_pretrained`, `save_pretrained` and `generate` that are not
served here.

A value that asks for nothing beyond what is done anyway is let pass.
"""

from typing import Any

import torch

from mlm.family.config_kinds import shown
from mlm.weights.dtypes import FLOATS
from mlm.weights.source import Weights

LOADING: dict[str, tuple[Any, ...]] = {
    "adapter_kwargs": (None,),
    "cache_dir": (None,),
    "force_download": (False,),
    "from_flax": (False,),
    "from_tf": (False,),
    "generation_config": (None,),
    "gguf_file": (None,),
    "key_mapping": (None,),
    "load_in_4bit": (False,),
    "load_in_8bit": (False,),
    "local_files_only": (True, False),
    "low_cpu_mem_usage": (None, True, False),
    "max_memory": (None,),
    "mirror": (None,),
    "offload_buffers": (False,),
    "offload_folder": (None,),
    "offload_state_dict": (None, False),
    "proxies": (None,),
    "quantization_config": (None,),
    "resume_download": (None, False),
    "revision": (None, "main"),
    "state_dict": (None,),
    "subfolder": (None, ""),
    "token": (None, False),
    "tp_plan": (None,),
    "trust_remote_code": (None, False),
    "use_auth_token": (None, False),
    "use_safetensors": (None,),
    "variant": (None,),
    "weights_only": (True,),
}
SAVING: dict[str, tuple[Any, ...]] = {
    "push_to_hub": (False,),
    "repo_id": (None,),
    "safe_serialization": (True,),
    "save_function": (None, torch.save),
    "save_peft_format": (None, True),
    "state_dict": (None,),
    "token": (None,),
    "variant": (None,),
}
GENERATING: dict[str, tuple[Any, ...]] = {
    "assistant_model": (None,),
    "bad_words_ids": (None,),
    "cache_implementation": (None, "dynamic"),
    "early_stopping": (None, False),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "generation_config": (None,),
    "length_penalty": (None, 1.0),
    "logits_processor": (None, []),
    "min_length": (None, 0),
    "min_p": (None,),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_logits": (None, False),
    "output_scores": (None, False),
    "penalty_alpha": (None,),
    "prefix_allowed_tokens_fn": (None,),
    "repetition_penalty": (None, 1.0),
    "return_dict_in_generate": (None, False),
    "stopping_criteria": (None, []),
    "streamer": (None,),
    "suppress_tokens": (None,),
    "typical_p": (None, 1.0),
}
# What a forward pass takes and generation makes itself, or has no use for.
PROMPT: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("head_mask", "inputs_embeds", "labels", "past_key_values", "position_ids", "token_type_ids"),
    (None,),
)
FOLDERS = "models are read from and written to folders on this machine, as they are"
NEXT_TOKEN = "the next token is the likeliest one, or drawn by temperature, top_k and top_p"
IDS_AND_MASK = "positions, token types and caches are made of input_ids and attention_mask"
PATHS = {None: "auto", "eager": "unfused", "sdpa": "fused"}  # by their names in the reference
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def without_unserved(
    given: dict[str, Any], known: dict[str, tuple[Any, ...]], served: str = FOLDERS
) -> dict[str, Any]:
    """`given` without the options in `known`; raises ValueError for one that asks for more than
    what is `served`."""
    for name, value in given.items():
        if name in known and not any(value is each or value == each for each in known[name]):
            raise ValueError(f"{name}={shown(value)} is not served: {served}; leave it out")
    return {name: value for name, value in given.items() if name not in known}


def attention_path(name: str | None) -> str:
    """Our name for the reference's `attn_implementation`."""
    if name not in PATHS:
        raise ValueError(
            f"attn_implementation={name!r} is not served; choose eager or sdpa, or leave it out"
        )
    return PATHS[name]


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
            f"device_map={device_map!r} is not served: a model lies on one device, or is split by "
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
            f"dtype={given} is not served; choose from auto, float32, bfloat16, float16, float64"
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
