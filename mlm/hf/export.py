"""Export of a trained model to a Hugging Face folder, verified before it gets its name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlm.console import plain_console
from mlm.errors import DataError
from mlm.files.folders import check_absent, new_folder
from mlm.hf.card import model_card
from mlm.hf.check import check_export, rounding
from mlm.tokenizer.ids import JSON_FILE, MODEL_FILE
from mlm.tokenizer.published_files import write_tokenizer
from mlm.trained.opening import (
    HF_CONFIG,
    TrainedModel,
    common_dtype,
    in_dtypes,
    open_trained,
)
from mlm.weights.dtypes import BY_SETTING
from mlm.weights.source import Weights
from mlm.weights.write import write_json, write_weights

DROPPED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # keys of a source


def export(path: str, out: str, dtype: str | None = None) -> None:
    """Writes the Hugging Face folder `out` of a run folder (its newest checkpoint), a checkpoint,
    an import, or another Hugging Face folder; of any head.

    dtype: fp32, bf16 or fp16; None: the dtype of the weights of an import or a folder, fp32 of a
        run

    The files are read again by other code, and their logits, weights and ids compared, before the
    folder gets its name. Raises UserError, and then `out` does not exist.
    """
    folder = Path(out)
    check_absent(folder)
    console = plain_console()
    opened = open_trained(Path(path))
    exported = replace(opened, weights=_converted(opened.weights, dtype))
    with new_folder(folder) as aside:
        write_json(aside / HF_CONFIG, hf_config(exported))
        write_weights(
            exported.weights.shapes, exported.weights.read, aside, exported.weights.dtypes
        )
        if exported.tokenizer is not None:
            write_tokenizer(exported.tokenizer, exported.text_tokens, aside)
        (aside / "README.md").write_text(model_card(exported, folder.name), encoding="utf-8")
        checked = check_export(exported, aside)
    dtypes, before = exported.weights.dtypes, opened.weights.dtypes
    if any(torch.promote_types(dtypes[name], before[name]) != dtypes[name] for name in dtypes):
        checked += f" {rounding(exported, opened)}"
    if exported.tokenizer is None:
        checked += f" {opened.path} has no {MODEL_FILE} and no {JSON_FILE}, so there is no "
        checked += f"tokenizer in {out}."
    console.print(f"{out} holds the model of {opened.path}. {checked}", soft_wrap=True)


def hf_config(trained: TrainedModel) -> dict[str, Any]:
    """config.json: the published keys, where `vocab_size` includes the padded rows."""
    values = trained.config.to_dict()
    dtype = common_dtype(trained.weights)
    kept = {name: value for name, value in values.items() if name not in DROPPED}
    return {
        **kept,
        "architectures": [trained.head],
        "dtype": dtype,
        "torch_dtype": dtype,  # its name in transformers 4
    }


def _converted(weights: Weights, dtype: str | None) -> Weights:
    if dtype is None:
        return weights
    to = BY_SETTING[dtype]
    cast = in_dtypes(weights, dict.fromkeys(weights.shapes, to))

    def read_part(name: str, dim: int, start: int, stop: int) -> Tensor:
        value = cast.part(name, dim, start, stop)
        if to == torch.float16 and not value.isfinite().all():
            raise DataError(
                f"{weights.file_of(name)} has numbers in {name} beyond 65504, the largest of "
                f"fp16; export with dtype=bf16 or fp32"
            )
        return value

    return replace(cast, read_part=read_part)
