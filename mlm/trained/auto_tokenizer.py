"""`AutoTokenizer`: the tokenizer of any folder that has one. Imports no torch."""

from os import PathLike
from pathlib import Path
from typing import Any

from mlm.errors import DataError
from mlm.tokenizer.family.files import MODEL_CONFIG, Settings
from mlm.tokenizer.family.tokenizer import XLMRobertaTokenizer, checked_changes
from mlm.tokenizer.tokenizer import Tokenizer


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(folder)`: the tokenizer that is in a folder."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer has no instances; use AutoTokenizer.from_pretrained(folder)")

    @staticmethod
    def from_pretrained(path: str | PathLike, **changes: Any) -> XLMRobertaTokenizer:
        """The tokenizer of a Hugging Face folder, of the folder that `mlm tokenizer` wrote, of a
        run folder, of a checkpoint or of what `mlm import` wrote.

        changes: of model_max_length, padding_side, truncation_side, clean_up_tokenization_spaces
        Raises ValueError.
        """
        folder = Path(path)
        has_files = Tokenizer.is_in(folder) or (folder / MODEL_CONFIG).is_file()
        if has_files or not folder.is_dir():
            return XLMRobertaTokenizer.from_pretrained(path, **changes)
        changes = checked_changes(changes)
        from mlm.trained.opening import open_checkpoint  # here, since it imports torch

        trained = open_checkpoint(folder, verify=False)  # no weight of it is read
        if trained.tokenizer is None:
            raise DataError(f"{path} has no tokenizer; give the folder that `mlm tokenizer` wrote")
        settings = {"model_max_length": trained.text_tokens, **changes}
        return XLMRobertaTokenizer(trained.tokenizer, Settings(**settings), str(path))
