"""Compares the result of an export or an import with its source: outputs on real text, and every
weight bit for bit.

The outputs are those of our own model, of a plain implementation of the published description
(`mlm.family.plain`), and of transformers, where it is installed and supports such a model.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import tokenizers
import torch
from safetensors import safe_open
from torch import Tensor

from mlm.errors import UserError
from mlm.family.folder import config_values
from mlm.family.heads import BARE, HEADS
from mlm.family.plain import Read, Sample, plain_outputs
from mlm.hf.ids import check_ids, check_source_ids, lines, sample_of
from mlm.tokenizer.ids import JSON_FILE
from mlm.trained.opening import HF_CONFIG, TrainedModel
from mlm.weights.source import Weights, same_bits
from mlm.weights.stored import parts_of

TOLERANCE = 1e-4  # of an output, absolute
RELATIVE = 1e-5  # of the largest output, where that is more: 48 layers in fp32 differ by 6e-6 of it
MEMORY = 1.2  # times a model's weights in fp32, which must be free before it is loaded whole
FP32 = 4  # bytes


def check_export(trained: TrainedModel, folder: Path) -> str:
    """Compares a Hugging Face folder with `trained`, whose weights are in the folder's dtypes.

    Returns a sentence about the comparison; raises UserError where something differs.
    """
    tokenizer, summary = trained.tokenizer, "Its files were read again: "
    if tokenizer is not None:
        file = str(folder / "tokenizer.json")
        check_ids(tokenizer, tokenizers.Tokenizer.from_file(file), lines())
        summary += f"ids are equal on {len(lines())} lines, and "
    read, sample = safetensors_reader(folder), sample_of(tokenizer, trained.config)
    expected = outputs(trained, sample)
    values = json.loads((folder / HF_CONFIG).read_text("utf-8"))
    found = _plain(trained, values, read, sample)
    of = f"those of {trained.path}"
    largest = _agree(found, expected, sample, "the exported model, read again from its files", of)
    _check_bits(trained.weights, read, trained.path)
    summary += _compared(trained, sample, largest)
    if reason := _reason_to_skip(trained):
        return f"{summary}. {reason}."
    version, found = _transformers(trained, folder, sample)
    if tokenizer is not None:
        check_ids(tokenizer, _their_tokenizer(folder), lines())
    how = f"the exported model, loaded in transformers {version}"
    largest = _agree(found, expected, sample, how, of)
    return f"{summary}; loaded in transformers {version}, by at most {largest:.1e}."


def check_import(source: TrainedModel, imported: TrainedModel, original: bool) -> str:
    """As `check_export`, for an import: `imported` is opened from the folder made of `source`.

    original: whether the source is an original checkpoint, which transformers cannot load
    """
    sample = sample_of(imported.tokenizer, imported.config)
    values = source.config.to_dict() if original else config_values(source.path)
    found = outputs(imported, sample)
    expected = _plain(source, values, _source_reader(source.weights), sample)
    how, of = "what was imported, read again from its files", f"those of {source.path}"
    largest = _agree(found, expected, sample, how, of)
    _check_bits(imported.weights, source.weights.read, source.path)
    ids = _same_ids(source, imported)
    summary = f"Its files were read again: {ids}{_compared(imported, sample, largest)}"
    reason = None if original else _reason_to_skip(imported)
    if original or reason:
        return f"{summary}. {reason}." if reason else f"{summary}."
    version, theirs = _transformers(source, source.path, sample)
    largest = _agree(found, theirs, sample, how, f"{of} in transformers {version}")
    return f"{summary}; from its source in transformers {version}, by at most {largest:.1e}."


def _same_ids(source: TrainedModel, imported: TrainedModel) -> str:
    """The part of the sentence about the ids that were compared; raises UserError."""
    if source.tokenizer is None or imported.tokenizer is None:
        return ""
    model_path = source.tokenizer.model_path
    beside = model_path.parent / JSON_FILE
    files = [model_path, *([beside] if beside != model_path and beside.is_file() else [])]
    for path in files:
        check_source_ids(imported.tokenizer, path, lines())
    names = " and ".join(path.name for path in files)
    return f"ids are equal to those of {names} on {len(lines())} lines, "


def rounding(trained: TrainedModel, before: TrainedModel) -> str:
    """A sentence about how much the outputs move when `before` is rounded to `trained`."""
    sample = sample_of(trained.tokenizer, trained.config)
    moved = _difference(outputs(trained, sample), outputs(before, sample), sample)
    return f"Rounding the weights moved the outputs by at most {moved:.1e}."


def outputs(trained: TrainedModel, sample: Sample) -> Tensor:
    """The outputs of our own model; of the plain implementation, where memory is too small."""
    if not _fits(trained):
        return _plain(trained, trained.config.to_dict(), trained.weights.read, sample)
    return model_outputs(trained.head, trained.model(), sample)


@torch.no_grad()
def model_outputs(head: str, model: Any, sample: Sample) -> Tensor:
    """The outputs of a model of ours or of transformers, in the form of `plain_outputs`."""
    inputs = {
        "input_ids": sample.input_ids,
        "attention_mask": sample.real.long(),
        "token_type_ids": sample.token_types,
    }
    if sample.source is not None and HEADS[head].source:
        inputs["encoder_hidden_states"] = sample.source
    return HEADS[head].outputs(model, inputs)


def safetensors_reader(folder: Path) -> Read:
    """Reads a tensor by name from the safetensors file of the folder that has it."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)

    def read(name: str) -> Tensor:
        if name not in files:
            raise UserError(f"{folder} has no {name} in its files; report this, with its model")
        with safe_open(files[name], framework="pt") as file:
            return file.get_tensor(name)

    return read


def _source_reader(weights: Weights) -> Read:
    """Reads the source of an import with the safetensors library, where its names are the same."""

    def read(name: str) -> Tensor:
        if weights.file_of(name).suffix == ".safetensors":
            with safe_open(weights.file_of(name), framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 (not a dict)
                    return file.get_tensor(name)
        return weights.read(name)

    return read


def _plain(trained: TrainedModel, values: dict[str, Any], read: Read, sample: Sample) -> Tensor:
    """The outputs of the plain implementation, with the values of a config.json."""
    head = HEADS[trained.head]
    if not head.source:
        values = values | {"add_cross_attention": False}
    pooler = "pooler.dense.weight" in trained.weights.shapes
    return plain_outputs(head.plain, values, lambda name: read(name).float(), sample, pooler)


def _fits(trained: TrainedModel) -> bool:
    """Whether all weights fit into free memory in fp32."""
    numbers = sum(math.prod(shape) for shape in trained.weights.shapes.values())
    return MEMORY * FP32 * numbers < psutil.virtual_memory().available


def _reason_to_skip(trained: TrainedModel) -> str | None:
    """Why transformers is not part of a comparison; None where it is."""
    if find_spec("transformers") is None:
        return "transformers is not installed, so it was not compared"
    if not _fits(trained):
        return "transformers was not compared: the model does not fit into free memory"
    import transformers

    if not hasattr(transformers, trained.head):
        return f"transformers has no {trained.head}, so it was not asked"
    kind, version = trained.config.position_embedding_type, transformers.__version__
    what = f"position_embedding_type={kind}" if kind != "absolute" else "pruned_heads"
    if int(version.split(".")[0]) < 5 or (kind == "absolute" and not trained.config.pruned_heads):
        return None
    return (
        f"transformers {version} was not compared: it ignores {what} and computes something else "
        f"(unlike 4.44)"
    )


def _transformers(trained: TrainedModel, folder: Path, sample: Sample) -> tuple[str, Tensor]:
    """The version of transformers, and the outputs of the model that it loads from a folder."""
    import transformers

    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    if trained.head == BARE:
        options["add_pooling_layer"] = "pooler.dense.weight" in trained.weights.shapes
    with _loading(folder):
        model = getattr(transformers, trained.head).from_pretrained(folder, **options)
        return transformers.__version__, model_outputs(trained.head, model.eval(), sample)


def _their_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer that transformers loads from a folder."""
    import transformers

    with _loading(folder):
        loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return loaded.backend_tokenizer


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Raises UserError where transformers cannot load a folder, and hides its warnings."""
    import transformers

    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # any error means that the folder does not load
        raise UserError(
            f"transformers {transformers.__version__} cannot load {folder.name} "
            f"({(str(error) or repr(error)).splitlines()[0]}), so nothing was written; report it, "
            f"or install another version"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _difference(found: Tensor, expected: Tensor, sample: Sample) -> float:
    """The largest difference before the padding; NaN where there is one."""
    if found.shape != expected.shape:
        return math.inf
    apart, real = (found - expected).abs(), sample.real
    if apart.dim() == 3:  # the pooled output is one position more
        more = apart.shape[1] - real.shape[1]
        apart = apart[torch.cat([real, real.new_ones(len(real), more)], 1)]
    return float(apart.max())


def _agree(found: Tensor, expected: Tensor, sample: Sample, how: str, of: str) -> float:
    """The largest difference; raises UserError where it is too large."""
    largest, allowed = _difference(found, expected, sample), TOLERANCE
    if math.isnan(largest):
        raise UserError(
            f"{how}, gives logits to compare with {of}, of which some are not finite, so nothing "
            f"was written; look for weights that are NaN or infinite, and give another checkpoint"
        )
    if expected.isfinite().all():
        allowed = max(allowed, RELATIVE * float(expected.abs().max()))
    if largest > allowed:
        raise UserError(
            f"{how}, gives logits that differ from {of} by up to {largest:.3g}, and {allowed:.1g} "
            f"is allowed, so nothing was written; check that model, and report this if it is "
            f"intact"
        )
    return largest


def _check_bits(weights: Weights, read: Read, origin: Path) -> None:
    """Raises UserError unless every weight equals, bit for bit, the one that `read` returns."""
    for name, shape in weights.shapes.items():
        other = read(name)
        for start, stop in parts_of(shape):
            part = weights.part(name, 0, start, stop)
            if not same_bits(part, (other[start:stop] if shape else other).to(part.dtype)):
                raise UserError(
                    f"what was written differs from {origin} in {name}, so nothing was kept; check "
                    f"the disk, and report this if it is intact"
                )


def _compared(trained: TrainedModel, sample: Sample, largest: float) -> str:
    tokens = int(sample.lengths.sum())
    if trained.tokenizer is None:
        on = f"{tokens} random ids (there is no tokenizer)"
    else:
        on = f"{tokens} tokens of {len(sample.lengths)} languages"
    return f"logits on {on} differ by at most {largest:.1e}, and all weights are equal"
