"""Export of a trained model to a Hugging Face folder, compared on the spot."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from mlm.errors import UserError
from mlm.hf.card import model_card
from mlm.hf.check import check_export
from mlm.hf.tokenizer import write_tokenizer
from mlm.text.folder import new_folder
from mlm.trained import HF_CONFIG, HF_INDEX, HF_WEIGHTS, MODEL_TYPE, Checkpoint, open_checkpoint

SHARD_BYTES = 5_000_000_000  # at most, unless one tensor alone is larger
FP32 = 4  # bytes


def export(path: str, out: str) -> None:
    """Writes the Hugging Face folder `out` of a run folder (its newest checkpoint) or a checkpoint.

    The files are read again by other code, and their logits and ids compared with those of the
    checkpoint, before the folder gets its name. Raises UserError, and then `out` is not there.
    """
    folder = Path(out)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{out} exists, and nothing is written over; choose another folder")
    console = Console(highlight=False)
    trained = open_checkpoint(Path(path))
    with new_folder(folder) as aside:
        _write_json(aside / HF_CONFIG, hf_config(trained))
        write_weights(trained.shapes, trained.read, aside)
        write_tokenizer(trained.tokenizer, trained.settings.data.seq_len, aside)
        (aside / "README.md").write_text(model_card(trained, folder.name), encoding="utf-8")
        checked = check_export(trained, aside)
    console.print(
        f"{out} holds the model of {trained.path}. {checked}", soft_wrap=True, markup=False
    )


def hf_config(trained: Checkpoint) -> dict[str, Any]:
    """config.json: the published keys. `vocab_size` counts the padded rows, too."""
    shape = asdict(trained.config)
    del shape["output_dropout"]  # of training here; transformers has no such switch
    return {
        "architectures": ["XLMRobertaXLForMaskedLM"],
        "model_type": MODEL_TYPE,
        **shape,
        "classifier_dropout": None,
        "dtype": "float32",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",  # what transformers 4 calls dtype
        "use_cache": True,
    }


def write_weights(
    shapes: dict[str, tuple[int, ...]], read: Callable[[str], Tensor], folder: Path
) -> None:
    """Writes model.safetensors, or shards of it and their index; holds one tensor at a time.

    `lm_head.decoder` is not among them: it is tied to the embeddings and to `lm_head.bias`.
    """
    shards = _shards(shapes)
    if len(shards) == 1:
        write_safetensors(folder / HF_WEIGHTS, shards[0], read)
        return
    files = {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }
    for file, shard in files.items():
        write_safetensors(folder / file, shard, read)
    index = {
        "metadata": {"total_size": sum(map(_bytes, shapes.values()))},
        "weight_map": {name: file for file, shard in files.items() for name in shard},
    }
    _write_json(folder / HF_INDEX, index)


def write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], read: Callable[[str], Tensor]
) -> None:
    """A safetensors file of fp32 tensors: length of the header, header, tensors one after another.

    `safetensors.save_file` would hold all of them in memory, and reports a full disk as its own.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _bytes(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in shapes:
            file.write(memoryview(read(name).contiguous().numpy()).cast("B"))
        file.flush()
        os.fsync(file.fileno())


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + _bytes(shape) > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += _bytes(shape)
    return shards


def _bytes(shape: tuple[int, ...]) -> int:
    count = FP32
    for length in shape:
        count *= length
    return count


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
