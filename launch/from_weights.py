"""`mlm train weights=PATH`: settings that come from the model that a run begins with."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from launch.run_folder import CONFIG
from launch.verb import Composed
from mlm.errors import UserError
from mlm.model.config import ModelConfig

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def with_weights(composed: Composed) -> tuple[Composed, list[str]]:
    """The job with its shape and tokenizer from `weights`, and what to say of it.

    A run that resumes from a checkpoint of its own keeps what it began with, and `weights` is not
    read. Raises `UserError`.
    """
    settings = composed.settings
    given = settings.get("weights")
    if not isinstance(given, str) or not given:
        return composed, []
    from mlm.trained import start

    path = Path(given).absolute()
    before = _saved(composed)
    if before is not None and path in (kept := Path(before["weights"]), *kept.parents):
        shape = {name: before["model"][name] for name in start.SHAPE}
        tokenizer, notes = settings["data"]["tokenizer"] or _kept_tokenizer(before), []
    else:
        found = start.starting_model(path)
        kept, shape, notes = found.path, found.model, [found.message]
        tokenizer = start.tokenizer_for(found, settings["data"]["tokenizer"])
    _check_given(composed, shape)
    settings = settings | {
        "weights": str(kept),
        "model": settings["model"] | shape,
        "data": settings["data"] | {"tokenizer": tokenizer},
    }
    chosen = any(text.startswith("model=") for text in composed.overrides)
    return replace(composed, settings=settings, model=composed.model if chosen else None), notes


def _saved(composed: Composed) -> dict[str, Any] | None:
    """The settings of the run that this job resumes, if it began with weights and has a
    checkpoint."""
    from mlm.checkpoint import newest

    run = composed.settings["run"]
    name = composed.sweep or run["name"]
    if not isinstance(name, str) or run["fresh"]:
        return None
    folder = Path(str(run["dir"])) / name
    if newest(folder) is None:
        return None
    try:
        before = yaml.safe_load((folder / CONFIG).read_text("utf-8"))
        return before if isinstance(before["weights"], str) else None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None  # the check of the folder reports what is wrong with it


def _kept_tokenizer(before: dict[str, Any]) -> str | None:
    """The tokenizer of a run, from where it still is: the weights may be gone."""
    data = before["data"]
    places = [data["tokenizer"], f"{data['shards']}/tokenizer"]
    return next((place for place in places if place and Path(place).is_dir()), None)


def _check_given(composed: Composed, shape: dict[str, Any]) -> None:
    """Raises `UserError` for a shape that the user gave and the weights do not have."""
    given, weights = composed.settings["model"], composed.settings["weights"]
    default = ModelConfig()
    chosen = [text for text in composed.overrides if re.match(r"(model|experiment)=", text)]
    for name, value in shape.items():
        named = [t for t in composed.overrides if re.match(rf"\+{{0,2}}model\.{name}=", t)]
        # A recipe's number of rows is of its own tokenizer, and the weights bring theirs.
        chosen_here = chosen and name != "vocab_size"
        by_choice = chosen_here and (name in SIZES or given[name] != getattr(default, name))
        if (named or by_choice) and given[name] not in (None, value):
            raise UserError(
                f"{(named or chosen)[-1]} asks for {name}={given[name]}, and weights={weights} "
                f"has {value}; omit it: the shape comes from the weights"
            )
