"""A model where it lies, for the classes of the family: its config's values and its weights."""

import json
from pathlib import Path
from typing import Any

from mlm import checkpoint
from mlm.config import TrainConfig, load
from mlm.errors import DataError, UserError
from mlm.model.config import ModelConfig
from mlm.weights import stored
from mlm.weights.source import Weights, open_weights

FILE = "config.json"


def stored_config(path: Path) -> dict[str, Any] | ModelConfig:
    """The values of `config.json` in a Hugging Face folder or of an import, or the shape of the
    model of a run folder (its newest checkpoint) or a checkpoint; raises UserError."""
    folder = _checkpoint(path)
    if folder is None:
        return config_values(path)
    manifest = checkpoint.read_manifest(folder)
    if manifest.imported is not None:
        return dict(manifest.imported.config)
    return load(TrainConfig, manifest.config).model


def config_values(path: Path) -> dict[str, Any]:
    """The values of `config.json`, or of the one in a Hugging Face folder; raises DataError."""
    file = path if path.name == FILE else path / FILE
    try:
        values = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror or error}); give a folder with the config of "
            f"a model in it"
        ) from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{file} is damaged: it is not a JSON object; copy it again")
    return values


def model_weights(path: Path) -> Weights:
    """The weights of that model; raises UserError."""
    folder = _checkpoint(path)
    if folder is None:
        return open_weights(path)
    checkpoint.verify(folder)
    return stored.open_checkpoint(folder)


def _checkpoint(path: Path) -> Path | None:
    """The checkpoint that a path is or has; None for a Hugging Face folder; raises UserError."""
    if not path.is_dir() and path.name != FILE:
        what = "a file" if path.exists() else "no folder here"
        raise UserError(
            f"{path} is {what}, and nothing is downloaded; give the folder of a model, such as "
            f"`mlm import` makes of an original checkpoint"
        )
    if (path / FILE).is_file() or path.name == FILE:
        return None
    if (path / checkpoint.MANIFEST).is_file():
        return path
    return checkpoint.newest(path)
