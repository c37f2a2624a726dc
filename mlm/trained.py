"""A trained model where it lies: a run folder, a checkpoint, or a Hugging Face folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mlm import checkpoint
from mlm.config import TrainConfig, load
from mlm.data.index import FILE as INDEX
from mlm.errors import DataError, UserError
from mlm.model.config import ModelConfig
from mlm.model.masked_lm import MaskedLM
from mlm.text.ids import MODEL_FILE
from mlm.text.tokenizer import Tokenizer

MODEL_TYPE = "xlm-roberta-xl"
HF_CONFIG, HF_WEIGHTS, HF_INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Trained:
    """What a folder of a trained model holds; its weights are read when they are asked for.

    shapes: of every weight, by its published name
    read: one weight by its name, fp32; raises DataError
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def model(self) -> MaskedLM:
        """The model with these weights, on the CPU in fp32, with no memory spent beside them."""
        with torch.device("meta"):
            model = MaskedLM(self.config)
        names = {id(parameter): name for name, parameter in model.canonical_parameters().items()}
        for module in model.modules():
            for local, parameter in list(module.named_parameters(recurse=False)):
                weight = self.read(names[id(parameter)])
                setattr(module, local, torch.nn.Parameter(weight, requires_grad=False))
        return model


@dataclass(frozen=True)
class Checkpoint(Trained):
    """A trained model that is a checkpoint, with all that its run tells of it."""

    run: Path
    manifest: checkpoint.Manifest
    settings: TrainConfig


def open_trained(path: Path) -> Trained:
    """The model in a run folder, a checkpoint or a Hugging Face folder; raises UserError."""
    if (path / HF_CONFIG).is_file():
        return _hugging_face(path)
    return open_checkpoint(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """The model in a run folder (its newest checkpoint) or in a checkpoint; raises UserError."""
    folder = _checkpoint_folder(path)
    manifest = checkpoint.read_manifest(folder)
    checkpoint.verify(folder)
    run, settings = folder.absolute().parent.parent, load(TrainConfig, manifest.config)
    tokenizer = _tokenizer_of(settings, run)
    shapes, read = checkpoint.open_weights(folder)
    made = Checkpoint(
        folder,
        settings.model,
        tokenizer,
        shapes,
        read,
        run=run,
        manifest=manifest,
        settings=settings,
    )
    _check(made)
    return made


def _checkpoint_folder(path: Path) -> Path:
    if (path / checkpoint.MANIFEST).is_file():
        return path
    if newest := checkpoint.newest(path):
        return newest
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; give a run folder, or one of its {checkpoint.FOLDER}/step-..."
        )
    if (path / HF_CONFIG).is_file():
        raise UserError(
            f"{path} is a Hugging Face folder already; give a run folder or a checkpoint"
        )
    raise UserError(
        f"{path} holds no whole checkpoint; give a run folder that has saved one, or one of its "
        f"{checkpoint.FOLDER}/step-..."
    )


def _tokenizer_of(settings: TrainConfig, run: Path) -> Tokenizer:
    """The tokenizer that a run was trained with, from wherever a copy of it is."""
    data = settings.data
    places = [Path(data.tokenizer)] if data.tokenizer else []
    places += [Path(data.shards) / "tokenizer"] if data.shards else []
    expected = _tokenizer_hash(settings, run)
    found = [Tokenizer.load(place) for place in places if (place / MODEL_FILE).is_file()]
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


def _hugging_face(folder: Path) -> Trained:
    try:
        values = json.loads((folder / HF_CONFIG).read_text("utf-8"))
        if values["model_type"] != MODEL_TYPE:
            raise UserError(
                f"{folder} holds a model of the type {values['model_type']}, and this command "
                f"reads {MODEL_TYPE}; give one that `mlm export` wrote"
            )
        known = {field.name for field in fields(ModelConfig)}
        shape = {name: value for name, value in values.items() if name in known}
        config = TypeAdapter(ModelConfig).validate_python(shape)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise DataError(
            f"{folder / HF_CONFIG} does not describe a model of the type {MODEL_TYPE}; give a "
            f"folder that `mlm export` wrote"
        ) from None
    tokenizer = Tokenizer.load(folder)
    files = safetensors_files(folder)
    shapes = {name: tuple(_slice(path, name).get_shape()) for name, path in files.items()}
    made = Trained(
        folder, config, tokenizer, shapes, lambda name: read_safetensors(files[name], name)
    )
    _check(made)
    return made


def safetensors_files(folder: Path) -> dict[str, Path]:
    """The file of every weight in a Hugging Face folder; raises DataError."""
    try:
        if (folder / HF_INDEX).is_file():
            listed = json.loads((folder / HF_INDEX).read_text("utf-8"))["weight_map"]
            return {name: folder / file for name, file in listed.items()}
        with safe_open(folder / HF_WEIGHTS, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / HF_WEIGHTS)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{folder} has no weights that can be read ({error}); give a folder that `mlm export` "
            f"wrote"
        ) from None


def read_safetensors(path: Path, name: str) -> Tensor:
    """One weight of a file, in fp32; raises DataError."""
    return _slice(path, name)[:].float()


def _slice(path: Path, name: str) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice(name)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); write it again with `mlm export`"
        ) from None


def _check(trained: Trained) -> None:
    """Raises DataError unless the weights are those of a model of this config."""
    if trained.config.vocab_size is None or trained.config.vocab_size < trained.tokenizer.size:
        raise DataError(
            f"{trained.path} has a vocab_size of {trained.config.vocab_size}, below the "
            f"{trained.tokenizer.size} ids of its tokenizer; choose another"
        )
    with torch.device("meta"):
        named = MaskedLM(trained.config).canonical_parameters()
    expected = {name: tuple(parameter.shape) for name, parameter in named.items()}
    for name in expected.keys() | trained.shapes.keys():
        if expected.get(name) != trained.shapes.get(name):
            raise DataError(
                f"{trained.path} has {name} with the shape {trained.shapes.get(name)}, and its "
                f"config asks for {expected.get(name)}; choose another"
            )
