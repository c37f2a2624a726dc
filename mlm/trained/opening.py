"""A trained model where it lies: a run folder, a checkpoint, an import or a Hugging Face folder."""

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
from mlm.weights.dtypes import FLOATS, name_of
from mlm.weights.load import full_shapes, load_parameters
from mlm.weights.source import Weights, open_weights


@dataclass(frozen=True)
class TrainedModel:
    """What a folder of a trained model holds; its weights are read when they are asked for.

    head: the name of its class; tokenizer: None where the folder has none
    cut: tokens to which its tokenizer cuts a text, as it says; None where it does not
    weights: under the names of its class, in the dtypes that an export has
    """

    path: Path
    head: str
    config: XLMRobertaXLConfig
    tokenizer: Tokenizer | None
    weights: Weights
    cut: int | None = None

    @property
    def tokens_of_a_text(self) -> int:
        """To which a text is to be cut."""
        return self.cut or self.max_tokens

    @property
    def max_tokens(self) -> int:
        """Tokens that a sequence may have."""
        return self.config.max_position_embeddings - self.config.pad_token_id - 1

    def empty(self) -> nn.Module:
        """The model on the meta device, without weights."""
        options: dict[str, Any] = {"seed": 0}  # of nothing, on the meta device
        if self.head == BARE:  # the only class whose pooler may be left out
            options["add_pooling_layer"] = any("pooler" in name for name in self.weights.shapes)
        try:
            with torch.device("meta"):
                return HEADS[self.head].model(self.config, **options)
        except ValueError as error:  # a config that the class cannot be made of
            raise DataError(f"{self.path} cannot be opened: {error}") from None

    def model(self) -> nn.Module:
        """The model of its class with these weights, on the CPU in fp32, for inference."""
        model = self.empty()
        stored = {name: name for name in self.weights.shapes}
        load_parameters(model, self.weights, stored, dtype=torch.float32)
        return model.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class TrainedCheckpoint(TrainedModel):
    """A trained model that is a checkpoint of a run, with all that its run tells of it."""

    run: Path
    manifest: checkpoint.Manifest
    settings: TrainConfig


def open_trained(path: Path, verify: bool = True) -> TrainedModel:
    """The model in a run folder (its newest checkpoint), a checkpoint, what `mlm import` wrote, or
    a Hugging Face folder of any head; raises UserError.

    verify: whether the files of a checkpoint are read to see that they are as they were written
    """
    if (path / HF_CONFIG).is_file():
        made = replace(open_folder(path), tokenizer=tokenizer_of(path))
        check(made)
        return made
    return open_checkpoint(path, verify)


def open_checkpoint(path: Path, verify: bool = True) -> TrainedModel:
    """The same of all but a Hugging Face folder."""
    made = _opened(path, verify)
    check(made)
    return made


def common_dtype(weights: Weights) -> str:
    """The name of the dtype that most weights have, as a config.json has it."""
    return name_of(Counter(weights.dtypes.values()).most_common(1)[0][0])


def in_dtypes(weights: Weights, dtypes: dict[str, torch.dtype]) -> Weights:
    """The same weights, each cast to another dtype as it is read."""

    def part(name: str, dim: int, start: int, stop: int) -> Tensor:
        return weights.part(name, dim, start, stop).to(dtypes[name])

    return replace(weights, dtypes=dtypes, part=part, copies={})


def _opened(path: Path, verify: bool) -> TrainedModel:
    folder = _checkpoint_folder(path)
    manifest = checkpoint.read_manifest(folder)
    if verify:
        checkpoint.verify(folder)
    run, weights = folder.absolute().parent.parent, stored.open_weights(folder)
    if manifest.imported is not None:
        return _imported(folder, run / "tokenizer", manifest.imported, weights)
    settings = load(TrainConfig, manifest.config)
    return TrainedCheckpoint(
        folder,
        MASKED_LM,
        family_config(settings.model),
        _tokenizer_of(settings, run),
        weights,
        settings.data.seq_len,  # what it was trained on
        run=run,
        manifest=manifest,
        settings=settings,
    )


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
            raise DataError(
                f"{tokenizer.model_path} is not the tokenizer that was imported (its hash is "
                f"{tokenizer.hash[:12]}, not {source.tokenizer[:12]}); put the old one back"
            )
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
    """The tokenizer that a run was trained with, from wherever a copy of it is."""
    data = settings.data
    places = [Path(data.tokenizer)] if data.tokenizer else []
    if data.shards and not is_url(data.shards):
        places.append(Path(data.shards) / "tokenizer")
    elif data.shards and not any(map(Tokenizer.is_in, places)):  # it has gone from the cache
        beside = tokenizer_beside(open_index(data.shards, data.cache))
        places += [beside] if beside is not None else []
    expected = _tokenizer_hash(settings, run)
    found = [Tokenizer.load(place) for place in places if Tokenizer.is_in(place)]
    for tokenizer in found:
        if expected in (None, tokenizer.hash):
            return tokenizer
    if found:
        raise DataError(
            f"{found[0].model_path} is not the tokenizer that {run} was trained with (its hash is "
            f"{found[0].hash[:12]}, not {str(expected)[:12]}); put the old one back"
        )
    raise DataError(
        f"the tokenizer of {run} is in none of {', '.join(map(str, places))}; put the folder that "
        f"`mlm tokenizer` wrote there"
    )


def _tokenizer_hash(settings: TrainConfig, run: Path) -> str | None:
    """As the run's `data.json` or the index of its shards says; None where both are gone."""
    try:
        return json.loads((run / "data.json").read_text("utf-8"))["tokenizer"]
    except (OSError, ValueError, KeyError):
        pass
    try:
        index = Path(str(settings.data.shards)) / INDEX
        return json.loads(index.read_text("utf-8"))["tokenizer"]["sha256"]
    except (OSError, ValueError, KeyError):
        return None


def open_folder(folder: Path) -> TrainedModel:
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


def check(made: TrainedModel) -> None:
    """Raises DataError unless tokenizer and weights are those of this class and config."""
    vocabulary, tokenizer = made.config.vocab_size, made.tokenizer
    if tokenizer is not None and vocabulary < tokenizer.size:
        raise DataError(
            f"{made.path} has a vocab_size of {vocabulary}, below the {tokenizer.size} ids of its "
            f"tokenizer {tokenizer.model_path}; give the tokenizer that belongs to the model"
        )
    if tokenizer is not None and made.config.pad_token_id != tokenizer.pad:
        raise DataError(
            f"{made.path} has pad_token_id={made.config.pad_token_id}, and its tokenizer "
            f"{tokenizer.model_path} has {tokenizer.pad}, as all of this family; give the "
            f"tokenizer that belongs to the model"
        )
    expected = full_shapes(made.empty())
    found = made.weights.shapes
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise DataError(_misfit(made, name, expected.get(name), found.get(name)))
    for name, dtype in made.weights.dtypes.items():
        if dtype not in FLOATS:
            raise DataError(
                f"{made.weights.where(name)} holds {name} as {made.weights.dtype_name(name)}, and "
                f"weights are float32, float16, bfloat16 or float64; give a model that is not "
                f"quantised"
            )


def _misfit(
    made: TrainedModel, name: str, expected: tuple[int, ...] | None, found: tuple[int, ...] | None
) -> str:
    file = made.weights.where(name)
    if found is None:
        return (
            f"{made.path} has no {name}, which an {made.head} of its config has; copy it again "
            f"from where it came"
        )
    if expected is None:
        return (
            f"{file} has {name}, which an {made.head} of its config has not; give a folder of this "
            f"family, or the config that belongs to it"
        )
    return (
        f"{file} has {name} with the shape {found}, and its config asks for {expected}; give the "
        f"config that belongs to it"
    )
