"""Import of a trained model from elsewhere, as a checkpoint of ours, compared on the spot."""

import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlm import checkpoint
from mlm.console import plain_console
from mlm.errors import DataError, UserError
from mlm.family.config import XLMRobertaXLConfig
from mlm.files.folders import check_absent, new_folder
from mlm.hf.check import check_import
from mlm.tokenizer.folder import AddedTokens
from mlm.tokenizer.ids import JSON_FILE, MODEL_FILE
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.tokenizer_json import sentencepiece_model
from mlm.tracking.progress import progress
from mlm.trained.opening import (
    HF_CONFIG,
    TrainedModel,
    check,
    common_dtype,
    open_hf_folder,
    open_trained,
)
from mlm.trained.published import tokenizer_of
from mlm.weights.source import Weights

NO_TOKENIZER = "none"  # in place of a tokenizer's folder
FP32 = 4  # bytes
SPARE = 1024  # embeddings without an id; the published models have 878


def import_model(
    path: str, out: str, tokenizer: str | None = None, head: str | None = None
) -> None:
    """Writes a model as the folder `out`, with a checkpoint of step 0 and the tokenizer.

    path: a Hugging Face folder of any head, or an original checkpoint: its folder, or a file
    tokenizer: the folder of the sentencepiece model; None: the folder of the weights; `none`: only
        weights and config are imported
    head: the name of a classification head in an original checkpoint, to import in place of the
        language model's

    Weights pass through memory in parts. The result is read again and compared with the source,
    including ids, before the folder gets its name. Raises UserError, and then `out` does not exist.
    """
    folder, place = Path(out), Path(path)
    check_absent(folder)
    console = plain_console()
    source, notes = _opened(place, head)
    original = notes is not None
    source = replace(source, tokenizer=_tokenizer(place, tokenizer))
    check(source)
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
        *(notes or ()),
        *_spare_rows(source),
    ):
        console.print(sentence, soft_wrap=True)


def _opened(path: Path, head: str | None) -> tuple[TrainedModel, list[str] | None]:
    """The model without a tokenizer, and the notes on an original checkpoint; None for a Hugging
    Face folder."""
    if (path / HF_CONFIG).is_file():
        if head is not None:
            raise UserError(
                f"head={head} names a head of an original checkpoint, and {path} is a Hugging Face "
                f"folder, which is imported with its own head; remove head={head}"
            )
        return open_hf_folder(path), None
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
    """Raises DataError where a path is clearly not an original checkpoint."""
    if not path.exists():
        raise DataError(
            f"{path} does not exist, and nothing is downloaded; give a Hugging Face folder, or an "
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
    if given == NO_TOKENIZER:
        return None
    folder = path if path.is_dir() else path.parent
    if given is not None:
        return _given(given, folder)
    if not Tokenizer.is_in(folder):
        raise DataError(
            f"{folder} has no {MODEL_FILE}, the sentencepiece model of the tokenizer, and no "
            f"{JSON_FILE}; add tokenizer=DIR for the folder that has one, or "
            f"tokenizer={NO_TOKENIZER} to import the weights alone"
        )
    try:
        return tokenizer_of(folder)
    except AddedTokens as error:
        raise DataError(
            f"{str(error).partition(';')[0]}; add tokenizer={folder} to import the model without "
            f"them, or tokenizer={NO_TOKENIZER}"
        ) from None


def _given(tokenizer: str, beside: Path) -> Tokenizer:
    """The tokenizer that the user chose.

    Raises DataError where its files contradict each other, or a readable tokenizer in the folder
    `beside` of the weights gives other ids.
    """
    found = Tokenizer.load(Path(tokenizer))
    found.check_beside(Path(tokenizer))
    for other in _beside(beside):
        if not found.same_ids(other):
            raise DataError(
                f"tokenizer={tokenizer} gives other ids than {other.model_path}, which the model "
                f"was trained with; remove this setting, or move that file away if it is not the "
                f"model's"
            )
    return found


def _beside(folder: Path) -> Iterator[Tokenizer]:
    """The tokenizers in a folder that can be read: a damaged one is a reason to choose another."""
    with suppress(DataError):
        if (folder / MODEL_FILE).is_file():
            yield Tokenizer.load(folder)
    with suppress(DataError):
        if (path := folder / JSON_FILE).is_file():
            yield Tokenizer(sentencepiece_model(path), path)


def _imported(source: TrainedModel) -> checkpoint.Imported:
    def stored(dtype: str) -> str:
        return "float32" if dtype == "float64" else dtype  # the largest of a checkpoint

    most = stored(common_dtype(source.weights))
    named = {name: stored(source.weights.dtype_name(name)) for name in source.weights.shapes}
    return checkpoint.Imported(
        source=str(source.path.absolute()),
        head=source.head,
        config=source.config.to_dict(),
        dtype=most,
        dtypes={name: dtype for name, dtype in named.items() if dtype != most},
        tokenizer=source.tokenizer and source.tokenizer.hash,
        model_max_length=source.max_text_tokens,
    )


def _check_room(weights: Weights, out: Path) -> None:
    """Raises UserError where the disk has no room for the weights in fp32."""
    needed = FP32 * sum(math.prod(shape) for shape in weights.shapes.values())
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{out} needs {needed / 1e9:.1f} GB for the weights in fp32, and {free / 1e9:.1f} "
            f"GB are free there; free some space, or choose another folder"
        )


def _spare_rows(source: TrainedModel) -> list[str]:
    """A sentence about embeddings without an id of the tokenizer, where padding cannot explain
    them."""
    if source.tokenizer is None:
        return []
    rows, ids = source.config.vocab_size, source.tokenizer.size
    if rows - ids < SPARE:
        return []
    return [
        f"The model has {rows:,} embeddings and the tokenizer {ids:,} ids: check that it is the "
        f"tokenizer of this model."
    ]
