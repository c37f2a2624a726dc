"""Export of a trained model to a Hugging Face folder, compared on the spot."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from mlm.errors import DataError, UserError
from mlm.files.folders import new_folder
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

NOT_PASSED_ON = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # of a source


def export(path: str, out: str, dtype: str | None = None) -> None:
    """Writes the Hugging Face folder `out` of a run folder (its newest checkpoint), a checkpoint,
    an import, or another Hugging Face folder; of any head.

    dtype: fp32, bf16 or fp16; None: that of an import's or a folder's own weights, fp32 of a run.
    The files are read again by other code, and their logits, weights and ids compared, before the
    folder gets its name. Raises UserError, and then `out` is not there.
    """
    folder = Path(out)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{out} exists, and nothing is written over; choose another folder")
    console = Console(highlight=False)
    opened = open_trained(Path(path))
    made = replace(opened, weights=_as_asked(opened.weights, dtype))
    with new_folder(folder) as aside:
        write_json(aside / HF_CONFIG, hf_config(made))
        write_weights(made.weights.shapes, made.weights.read, aside, made.weights.dtypes)
        if made.tokenizer is not None:
            write_tokenizer(made.tokenizer, made.tokens_of_a_text, aside)
        (aside / "README.md").write_text(model_card(made, folder.name), encoding="utf-8")
        checked = check_export(made, aside)
    dtypes, before = made.weights.dtypes, opened.weights.dtypes
    if any(torch.promote_types(dtypes[name], before[name]) != dtypes[name] for name in dtypes):
        checked += f" {rounding(made, opened)}"
    if made.tokenizer is None:
        checked += f" {opened.path} has no {MODEL_FILE} and no {JSON_FILE}, so there is no "
        checked += f"tokenizer in {out}."
    console.print(
        f"{out} holds the model of {opened.path}. {checked}", soft_wrap=True, markup=False
    )


def hf_config(trained: TrainedModel) -> dict[str, Any]:
    """config.json: the published keys. `vocab_size` counts the padded rows, too."""
    values = trained.config.to_dict()
    dtype = common_dtype(trained.weights)
    kept = {name: value for name, value in values.items() if name not in NOT_PASSED_ON}
    return {
        **kept,
        "architectures": [trained.head],
        "dtype": dtype,
        "torch_dtype": dtype,  # what transformers 4 calls it
    }


def _as_asked(weights: Weights, dtype: str | None) -> Weights:
    if dtype is None:
        return weights
    to = BY_SETTING[dtype]
    cast = in_dtypes(weights, dict.fromkeys(weights.shapes, to))

    def part(name: str, dim: int, start: int, stop: int) -> Tensor:
        made = cast.part(name, dim, start, stop)
        if to == torch.float16 and not made.isfinite().all():
            raise DataError(
                f"{weights.where(name)} has numbers in {name} that are beyond 65504, where fp16 "
                f"ends; export with dtype=bf16 or fp32"
            )
        return made

    return replace(cast, part=part)
