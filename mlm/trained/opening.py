"""A trained model in a run folder, a checkpoint, an import or a Hugging Face folder."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlm import checkpoint
from mlm.config import TrainConfig, load
from mlm.data.index import FILE as INDEX
from mlm.data.reading.remote import is_url, open_index, tokenizer_beside
from mlm.errors import DataError, UserError
from mlm.family.config import FILE as HF_CONFIG
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.folder import config_values
from mlm.family.heads import BARE, HEADS, MASKED_LM
from mlm.model.config import ModelConfig
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.trained.published import head_of, model_max_length, tokenizer_of
from mlm.weights import stored
from mlm.weights.dtypes import name_of
from mlm.weights.load import full_shapes, load_parameters
from mlm.weights.source import Weights, open_weights


@dataclass(frozen=True)
class TrainedModel:
    """The contents of a folder of a trained model; its weights are read on request.

    head: the name of its class; tokenizer: None where the folder has none
    max_text_tokens: to which its tokenizer truncates a text; None where the folder has no limit
    weights: under the names of its class, in the dtypes of an export
    """

    path: Path
    head: str
    config: XLMRobertaXLConfig
    tokenizer: Tokenizer | None
    weights: Weights
    max_text_tokens: int | None = None

    @property
    def text_tokens(self) -> int:
        """Tokens to which a text is truncated."""
        return self.max_text_tokens or self.max_tokens

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens in a sequence."""
        return self.config.max_position_embeddings - self.config.pad_token_id - 1

    def empty(self) -> nn.Module:
        """The model on the meta device, without weights."""
        options: dict[str, Any] = {"seed": 0}  # no weights are drawn on the meta device
        if self.head == BARE:  # the only class without a pooler in some folders
            options["add_pooling_layer"] = any("pooler" in name for name in self.weights.shapes)
        try:
            with torch.device("meta"):
                return HEADS[self.head].model(self.config, **options)
        except ValueError as error:  # a config that does not fit the class
            raise DataError(f"{self.path} cannot be opened: {error}") from None

    def model(self) -> nn.Module:
        """The model of its class with these weights, on the CPU in fp32, for inference."""
        model = self.empty()
        stored = {name: name for name in self.weights.shapes}
        load_parameters(model, self.weights, stored, dtype=torch.float32)
        return model.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class TrainedCheckpoint(TrainedModel):
    """A trained model that is a checkpoint of a run, with the run's folder and settings."""

    run: Path
    manifest: checkpoint.Manifest
    settings: TrainConfig


def open_trained(path: Path, verify: bool = True) -> TrainedModel:
    """The model in a run folder (its newest checkpoint), a checkpoint, what `mlm import` wrote, or
    a Hugging Face folder of any head; raises UserError.

    verify: whether the checksums of a checkpoint's files are verified
    """
    if not (path / HF_CONFIG).is_file():
        return open_checkpoint(path, verify)
    model = replace(open_hf_folder(path), tokenizer=tokenizer_of(path))
    check(model)
    return model


def open_checkpoint(path: Path, verify: bool = True) -> TrainedModel:
    """As `open_trained`, of all but a Hugging Face folder."""
    folder = _checkpoint_folder(path)
    manifest = checkpoint.read_manifest(folder)
    if verify:
        checkpoint.verify(folder)
    run, weights = folder.absolute().parent.parent, stored.open_checkpoint(folder)
    if manifest.imported is not None:
        model = _imported(folder, run / "tokenizer", manifest.imported, weights)
    else:
        settings = load(TrainConfig, manifest.config)
        model = TrainedCheckpoint(
            folder,
            MASKED_LM,
            family_config(settings.model),
            _tokenizer_of(settings, run),
            weights,
            settings.data.seq_len,  # of its training
            run=run,
            manifest=manifest,
            settings=settings,
        )
    check(model)
    return model


def common_dtype(weights: Weights) -> str:
    """The dtype of most weights, as a config.json names it."""
    return name_of(Counter(weights.dtypes.values()).most_common(1)[0][0])


def in_dtypes(weights: Weights, dtypes: dict[str, torch.dtype]) -> Weights:
    """The same weights, each cast to another dtype when it is read."""

    def read_part(name: str, dim: int, start: int, stop: int) -> Tensor:
        return weights.part(name, dim, start, stop).to(dtypes[name])

    return replace(weights, dtypes=dtypes, read_part=read_part, copies={})


def family_config(model: ModelConfig) -> XLMRobertaXLConfig:
    """The config of a model that was pretrained here."""
    config = XLMRobertaXLConfig.of(model)
    config.architectures = [MASKED_LM]
    return config


def _imported(
    folder: Path, beside: Path, source: checkpoint.Imported, weights: Weights
) -> TrainedModel:
    tokenizer = None
    if source.tokenizer is not None:
        tokenizer = Tokenizer.load(beside)
        if tokenizer.hash != source.tokenizer:
            raise _other_tokenizer(tokenizer, "was imported", source.tokenizer)
    dtypes = {
        name: getattr(torch, source.dtypes.get(name, source.dtype)) for name in weights.shapes
    }
    config = XLMRobertaXLConfig.from_dict(source.config)
    return TrainedModel(
        folder, source.head, config, tokenizer, in_dtypes(weights, dtypes), source.model_max_length
    )


def _checkpoint_folder(path: Path) -> Path:
    if (path / checkpoint.MANIFEST).is_file():
        return path
    if newest := checkpoint.newest(path):
        return newest
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; give a run folder, one of its {checkpoint.FOLDER}/step-..., "
            f"or a Hugging Face folder (`mlm import` reads original checkpoints)"
        )
    raise UserError(
        f"{path} holds no whole checkpoint and no {HF_CONFIG}; give a run folder that has saved "
        f"one, one of its {checkpoint.FOLDER}/step-..., or a Hugging Face folder (`mlm import` "
        f"reads original checkpoints)"
    )


def _tokenizer_of(settings: TrainConfig, run: Path) -> Tokenizer:
    """The tokenizer that a run was trained with, from wherever there is a copy."""
    data = settings.data
    places = [Path(data.tokenizer)] if data.tokenizer else []
    if data.shards and not is_url(data.shards):
        places.append(Path(data.shards) / "tokenizer")
    elif data.shards and not any(map(Tokenizer.is_in, places)):  # it was deleted from the cache
        beside = tokenizer_beside(open_index(data.shards, data.cache))
        places += [beside] if beside is not None else []
    expected = _tokenizer_hash(settings, run)
    found = [Tokenizer.load(place) for place in places if Tokenizer.is_in(place)]
    for tokenizer in found:
        if expected in (None, tokenizer.hash):
            return tokenizer
    if found:
        raise _other_tokenizer(found[0], f"{run} was trained with", str(expected))
    raise DataError(
        f"the tokenizer of {run} is in none of {', '.join(map(str, places))}; put the folder that "
        f"`mlm tokenizer` wrote there"
    )


def _other_tokenizer(tokenizer: Tokenizer, of: str, expected: str) -> DataError:
    return DataError(
        f"{tokenizer.model_path} is not the tokenizer that {of} (its hash is "
        f"{tokenizer.hash[:12]}, not {expected[:12]}); put the old one back"
    )


def _tokenizer_hash(settings: TrainConfig, run: Path) -> str | None:
    """From the run's `data.json` or the index of its shards; None where both are gone."""
    try:
        return json.loads((run / "data.json").read_text("utf-8"))["tokenizer"]
    except (OSError, ValueError, KeyError):
        pass
    try:
        index = Path(str(settings.data.shards)) / INDEX
        return json.loads(index.read_text("utf-8"))["tokenizer"]["sha256"]
    except (OSError, ValueError, KeyError):
        return None


def open_hf_folder(folder: Path) -> TrainedModel:
    """The model in a Hugging Face folder, without its tokenizer, unchecked; raises UserError."""
    values = config_values(folder)
    try:
        config = XLMRobertaXLConfig.from_dict(values)
        config.shape()
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / HF_CONFIG} has {error}") from None
    weights = open_weights(folder)
    head = head_of(folder, config, weights.shapes)
    return TrainedModel(folder, head, config, None, weights, model_max_length(folder))


def check(model: TrainedModel) -> None:
    """Raises DataError unless tokenizer and weights are those of this class and config."""
    vocabulary, tokenizer = model.config.vocab_size, model.tokenizer
    if tokenizer is not None and vocabulary < tokenizer.size:
        raise DataError(
            f"{model.path} has a vocab_size of {vocabulary}, below the {tokenizer.size} ids of its "
            f"tokenizer {tokenizer.model_path}; give the tokenizer that belongs to the model"
        )
    if tokenizer is not None and model.config.pad_token_id != tokenizer.pad:
        raise DataError(
            f"{model.path} has pad_token_id={model.config.pad_token_id}, and its tokenizer "
            f"{tokenizer.model_path} has {tokenizer.pad}, as all of this family; give the "
            f"tokenizer that belongs to the model"
        )
    expected = full_shapes(model.empty())
    found = model.weights.shapes
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise DataError(_misfit(model, name, expected.get(name), found.get(name)))
    for name in found:
        model.weights.check_dtype(name)


def _misfit(
    model: TrainedModel, name: str, expected: tuple[int, ...] | None, found: tuple[int, ...] | None
) -> str:
    file = model.weights.file_of(name)
    if found is None:
        return (
            f"{model.path} has no {name}, which an {model.head} of its config has; copy it again "
            f"from where it came"
        )
    if expected is None:
        return (
            f"{file} has {name}, which an {model.head} of its config lacks; give a folder of this "
            f"family, or the config that belongs to it"
        )
    return (
        f"{file} has {name} with the shape {found}, and its config asks for {expected}; give the "
        f"config that belongs to it"
    )
