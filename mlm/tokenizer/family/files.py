"""The folder of a tokenizer: reading and writing it, with the settings in tokenizer_config.json."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mlm.errors import DataError, UserError
from mlm.tokenizer.family.options import check_side
from mlm.tokenizer.ids import JSON_FILE, MODEL_FILE
from mlm.tokenizer.published_files import CONFIG, NO_LIMIT, ROLES, SPECIAL, write_tokenizer
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.tokenizer_json import read_head

MODEL_CONFIG = "config.json"
# Keys that would change the ids, with the values that leave them as they are.
FIXED = {
    "add_prefix_space": (True, None),
    "additional_special_tokens": ([], {}, None),
    "do_lower_case": (False, None),
    "extra_special_tokens": ([], {}, None),
    "model_input_names": (["input_ids", "attention_mask"], None),
    "pad_token_type_id": (0, None),
    "sp_model_kwargs": ({}, None),
    "split_special_tokens": (False, None),
}
# Where transformers had the files, which has no effect on the ids.
IDLE = {"is_local", "local_files_only", "name_or_path", "special_tokens_map_file", "tokenizer_file"}


@dataclass
class Settings:
    """What a folder says of its tokenizer besides the model; raises ValueError.

    model_max_length: tokens that the model takes
    padding_side, truncation_side: left or right
    clean_up_tokenization_spaces: whether decoding takes away blanks before punctuation
    extra: the other keys of tokenizer_config.json, which are written again
    """

    model_max_length: int = NO_LIMIT
    padding_side: str = "right"
    truncation_side: str = "right"
    clean_up_tokenization_spaces: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def names(cls) -> set[str]:
        """The settings that a user may choose."""
        return {each.name for each in fields(cls)} - {"extra"}

    def __post_init__(self) -> None:
        for name in ("padding_side", "truncation_side"):
            check_side(name, getattr(self, name))
        length = self.model_max_length
        if not isinstance(length, int | float) or length < 1:
            raise ValueError(
                f"model_max_length={length!r} is not a number of tokens; give 1 or more"
            )
        self.model_max_length = int(length)
        self.clean_up_tokenization_spaces = bool(self.clean_up_tokenization_spaces)


def open_tokenizer(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a Hugging Face folder or of the folder that `mlm tokenizer` wrote, and the
    Settings that are given there; raises UserError.

    Where a folder has the sentencepiece model, the vocabulary of a `tokenizer.json` beside it is
    skipped: megabytes, which `mlm import` has compared with the model.
    """
    if not path.is_dir():
        what = "a file" if path.exists() else "not a folder here"
        raise UserError(
            f"{path} is {what}, and nothing is downloaded; give the folder of a tokenizer or of a "
            f"model"
        )
    if not Tokenizer.is_in(path):
        raise DataError(
            f"{path} has no {MODEL_FILE} and no {JSON_FILE}, which the ids are made with; copy one "
            f"there from where the model came from"
        )
    return Tokenizer.load(path), _settings(path)


def write_folder(tokenizer: Tokenizer, settings: Settings, folder: Path) -> tuple[str, ...]:
    """Writes what transformers and `open_tokenizer` read; returns the files. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(tokenizer, settings.model_max_length, folder)
        given = {name: getattr(settings, name) for name in Settings.names()}
        values = {**settings.extra, **_values(folder / CONFIG), **given}
        text = json.dumps(values, indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; free some space or choose "
            f"another"
        ) from None
    return tuple(str(folder / name) for name in (MODEL_FILE, JSON_FILE, CONFIG, SPECIAL))


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder; raises DataError for a key that would change the ids."""
    config = folder / CONFIG
    given = {name: value for name, value in _values(config).items() if name not in IDLE}
    for name in [*FIXED, *ROLES]:
        value = given.pop(name, None)
        value = value["content"] if isinstance(value, dict) and "content" in value else value
        supported = (ROLES[name], None) if name in ROLES else FIXED[name]
        if value not in supported:
            raise DataError(
                f"{config} has {name}={value!r}, which would change the ids, and only "
                f"{supported[0]!r} is supported; use a tokenizer without it"
            )
    head = read_head(folder / JSON_FILE) if (folder / JSON_FILE).is_file() else {}
    _check_added(folder, given.pop("added_tokens_decoder", {}), head.get("added_tokens", []))
    found = {name: given.pop(name) for name in Settings.names() & given.keys()}
    for part in ("padding", "truncation"):
        if head.get(part) and f"{part}_side" not in found:
            found[f"{part}_side"] = head[part]["direction"].lower()
    if found.get("model_max_length") is None:
        found["model_max_length"] = _positions(folder)
    return {**found, "extra": given}


def _positions(folder: Path) -> int:
    """The tokens that the model in the folder takes; NO_LIMIT without one."""
    values = _values(folder / MODEL_CONFIG)
    try:
        return values["max_position_embeddings"] - values.get("pad_token_id", 1) - 1
    except (KeyError, TypeError):
        return NO_LIMIT


def _check_added(folder: Path, listed: dict[str, Any], others: list[dict[str, Any]]) -> None:
    """Raises DataError for tokens that were added to the published ones."""
    added = {token["content"] for token in [*listed.values(), *others]}
    added |= _values(folder / "added_tokens.json").keys()
    if unknown := added - {*ROLES.values()}:
        raise DataError(
            f"{folder} has tokens that were added, such as {min(unknown)!r}, and these are "
            f"unsupported; use a tokenizer without them"
        )


def _values(path: Path) -> dict[str, Any]:
    """The values of a JSON file, none where it is missing; raises DataError."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged: it is not a JSON object; copy it again")
    return values
