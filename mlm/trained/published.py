"""The parts of a Hugging Face folder beside weights: the class of its model, and its tokenizer."""

import json
from collections.abc import Collection
from pathlib import Path

from mlm.errors import DataError
from mlm.family.config import FILE as HF_CONFIG
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.heads import HEADS, Head
from mlm.tokenizer.folder import open_consistent
from mlm.tokenizer.published_files import CONFIG, NO_LIMIT
from mlm.tokenizer.tokenizer import Tokenizer


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder, None where it has none.

    Raises as `open_consistent`.
    """
    return open_consistent(folder) if Tokenizer.is_in(folder) else None


def model_max_length(folder: Path) -> int | None:
    """Tokens to which the tokenizer of a Hugging Face folder truncates a text; None: no limit."""
    try:
        length = json.loads((folder / CONFIG).read_text("utf-8"))["model_max_length"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(length) if isinstance(length, int | float) and 0 < length < NO_LIMIT else None


def head_of(folder: Path, config: XLMRobertaXLConfig, names: Collection[str]) -> str:
    """The class of a folder's model, from its config, or else from the `names` of its weights.

    Raises DataError.
    """
    if config.architectures:
        if config.architectures[0] not in HEADS:
            raise DataError(
                f"{folder / HF_CONFIG} names the class {config.architectures[0]}, which is not one "
                f"of the family; give a folder of {', '.join(HEADS)}"
            )
        return config.architectures[0]

    def fits(head: Head) -> bool:
        has_all = all(name in names for name in head.weights)
        return has_all and (config.is_decoder or not head.decoder)

    found = [head for head in HEADS.values() if fits(head)]
    return max(found, key=lambda head: len(head.weights)).model.__name__
