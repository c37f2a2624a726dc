"""Import of a trained model from elsewhere, as a checkpoint of ours, compared on the spot."""

import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from mlm import checkpoint
from mlm.errors import DataError, UserError
from mlm.family.config import XLMRobertaXLConfig
from mlm.files.folders import new_folder
from mlm.hf.check import check_import
from mlm.tokenizer.ids import JSON_FILE, MODEL_FILE
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.tokenizer_json import sentencepiece_model
from mlm.tracking.progress import progress
from mlm.trained.opening import (
    HF_CONFIG,
    TrainedModel,
    check,
    common_dtype,
    open_folder,
    open_trained,
)
from mlm.trained.published import AddedTokens, tokenizer_of
from mlm.weights.source import Weights
from mlm.weights.stored import parts_of

NONE = "none"  # in place of a tokenizer's folder
FP32 = 4  # bytes
SPARE = 1024  # embeddings without an id; the published models have 878


def import_model(
    path: str, out: str, tokenizer: str | None = None, head: str | None = None
) -> None:
    """Writes the folder `out`, with a checkpoint of step 0 and the tokenizer, of a model.

    path: a Hugging Face folder of any head, or an original checkpoint: its folder, or a file
    tokenizer: the folder of the sentencepiece model; None: it lies beside the weights; `none`:
        there is none, and only weights and config are imported
    head: the name of a classification head in an original checkpoint, to be taken in place of the
        language model's

    Weights go through memory in parts. What was written is read again and compared with the source,
    ids included, before the folder gets its name. Raises UserError, and then `out` is not there.
    """
    folder, place = Path(out), Path(path)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{out} exists, and nothing is written over; choose another folder")
    console = Console(highlight=False)
    source, said = _opened(place, head)
    original = said is not None
    source = replace(source, tokenizer=_tokenizer(place, tokenizer))
    check(source)
    _check_copies(source.weights)
    _check_room(source.weights, folder)
    with new_folder(folder) as aside:
        if source.tokenizer is not None:
            (aside / "tokenizer").mkdir()
            (aside / "tokenizer" / MODEL_FILE).write_bytes(source.tokenizer.model)
        with progress(console, f"Importing {path}") as show:
            checkpoint.save_import(source.weights, aside, _imported(source), show)
        checked = check_import(source, open_trained(aside), original)
    for sentence in (
        f"{out} holds the model of {path}, an {source.head}. {checked}",
        *(said or ()),
        *_spare_rows(source),
    ):
        console.print(sentence, soft_wrap=True, markup=False)


def _opened(path: Path, head: str | None) -> tuple[TrainedModel, list[str] | None]:
    """The model without a tokenizer, and what was decided of an original checkpoint; None for a
    Hugging Face folder."""
    if (path / HF_CONFIG).is_file():
        if head is not None:
            raise UserError(
                f"head={head} names a head of an original checkpoint, and {path} is a Hugging Face "
                f"folder, of which the head is imported that it has; leave it out"
            )
        return open_folder(path), None
    if (path / checkpoint.MANIFEST).is_file() or checkpoint.newest(path):
        raise UserError(
            f"{path} is a run, a checkpoint or an import of this project already; use it as it is, "
            f"or write a Hugging Face folder of it with `mlm export`"
        )
    _check_place(path)
    from mlm.weights.original import open_original

    found = open_original(path, head)
    config = XLMRobertaXLConfig.from_dict(found.config)
    return TrainedModel(path, found.head, config, None, found.weights), found.notes


def _check_place(path: Path) -> None:
    """Raises DataError where a path is no original checkpoint at first sight."""
    if not path.exists():
        raise DataError(
            f"{path} is not there, and nothing is downloaded; give a Hugging Face folder, or an "
            f"original checkpoint"
        )
    if path.suffix in (".safetensors", ".bin", ".json"):
        raise DataError(
            f"{path} is one file of a Hugging Face folder; give the folder, with its {HF_CONFIG}"
        )
    if path.is_dir() and not any(path.glob("*.pt")):
        raise DataError(
            f"{path} has neither {HF_CONFIG} nor a .pt file; give a Hugging Face folder, or the "
            f"folder of an original checkpoint"
        )


def _tokenizer(path: Path, given: str | None) -> Tokenizer | None:
    if given == NONE:
        return None
    folder = path if path.is_dir() else path.parent
    if given is not None:
        return _given(given, folder)
    if not Tokenizer.is_in(folder):
        raise DataError(
            f"{folder} has no {MODEL_FILE}, the sentencepiece model of the tokenizer, and no "
            f"{JSON_FILE}; add tokenizer=DIR for the folder that has one, or tokenizer={NONE} to "
            f"import the weights alone"
        )
    try:
        return tokenizer_of(folder)
    except AddedTokens as error:
        raise DataError(
            f"{str(error).partition(';')[0]}; add tokenizer={folder} to import the model without "
            f"them, or tokenizer={NONE}"
        ) from None


def _given(tokenizer: str, beside: Path) -> Tokenizer:
    """The tokenizer that was asked for; raises DataError where its own files contradict each other,
    or where it is not that of a file `beside` the weights, if one can be read there."""
    found = Tokenizer.load(Path(tokenizer))
    found.check_beside(Path(tokenizer))
    for own in _beside(beside):
        if not found.same_ids(own):
            raise DataError(
                f"tokenizer={tokenizer} gives other ids than {own.model_path}, which the model was "
                f"trained with; leave it out, or move that file away if it is not the model's"
            )
    return found


def _beside(folder: Path) -> Iterator[Tokenizer]:
    """The tokenizers of a folder's files, of those that can be read: others are damaged, maybe, and
    the reason why another one is given."""
    with suppress(DataError):
        if (folder / MODEL_FILE).is_file():
            yield Tokenizer.load(folder)
    with suppress(DataError):
        if (path := folder / JSON_FILE).is_file():
            yield Tokenizer(sentencepiece_model(path), path)


def _imported(source: TrainedModel) -> checkpoint.Imported:
    def kept(dtype: str) -> str:
        return "float32" if dtype == "float64" else dtype  # as which it is stored

    most = kept(common_dtype(source.weights))
    named = {name: kept(source.weights.dtype_name(name)) for name in source.weights.shapes}
    return checkpoint.Imported(
        source=str(source.path.absolute()),
        head=source.head,
        config=source.config.to_dict(),
        dtype=most,
        dtypes={name: dtype for name, dtype in named.items() if dtype != most},
        tokenizer=source.tokenizer and source.tokenizer.hash,
        model_max_length=source.cut,
    )


def _check_copies(weights: Weights) -> None:
    """Raises DataError where a weight that is tied was stored twice, with other numbers."""
    for name, copy in weights.copies.items():
        places = [(0, *ends) for ends in parts_of(weights.shapes[name])]
        if not all(torch.equal(weights.part(name, *p), weights.part(copy, *p)) for p in places):
            raise DataError(
                f"{weights.where(name)} has other numbers in {copy} than in "
                f"{name}, and the two are one weight in this model; give a model that ties them"
            )


def _check_room(weights: Weights, out: Path) -> None:
    """Raises UserError where the disk has no room for the weights in fp32."""
    needed = FP32 * sum(math.prod(shape) for shape in weights.shapes.values())
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{out} would take {needed / 1e9:.1f} GB for the weights in fp32, and {free / 1e9:.1f} "
            f"GB are free there; free some space, or choose another folder"
        )


def _spare_rows(source: TrainedModel) -> list[str]:
    """A sentence about embeddings that no id of the tokenizer has, where they are more than what
    padding adds."""
    if source.tokenizer is None:
        return []
    rows, ids = source.config.vocab_size, source.tokenizer.size
    if rows - ids < SPARE:
        return []
    return [
        f"The model has {rows:,} embeddings and the tokenizer {ids:,} ids: see that it is the "
        f"tokenizer of this model."
    ]
