"""The tokenizer of a folder that a user gives, with all that is checked before it is used."""

import json
from pathlib import Path

from mlm.errors import DataError
from mlm.tokenizer.ids import JSON_FILE, MODEL_FILE
from mlm.tokenizer.published_files import check_publishable
from mlm.tokenizer.tokenizer import Tokenizer


class AddedTokens(DataError):
    """A tokenizer has tokens that its user added."""


def open_for_training(folder: Path) -> Tokenizer:
    """A tokenizer to write shards with and to train on.

    Raises DataError as `open_consistent` does, and for a model that `mlm export` could not write:
    the training would be in vain.
    """
    tokenizer = open_consistent(folder)
    check_publishable(tokenizer)
    return tokenizer


def open_consistent(folder: Path) -> Tokenizer:
    """The tokenizer of a folder.

    Raises DataError where it has none, or where its two files contradict each other, and
    AddedTokens where it has tokens that are missing in its sentencepiece model.
    """
    tokenizer, file = Tokenizer.load(folder), Path(folder) / JSON_FILE
    try:
        added = json.loads(file.read_text("utf-8"))["added_tokens"]
        found = {int(token["id"]): str(token["content"]) for token in added}
    except (OSError, ValueError, KeyError, TypeError):
        found = {}  # other faults of the file are reported below
    known = tokenizer.special.values()
    for id, text in sorted(found.items()):
        if id not in known:
            raise AddedTokens(
                f"{file} has tokens beside those of its sentencepiece model, such as {text!r} with "
                f"the id {id}, and they are unsupported; remove {JSON_FILE} from the folder, and "
                f"keep {MODEL_FILE} in it, to continue without them"
            )
    tokenizer.check_beside(folder)
    return tokenizer
