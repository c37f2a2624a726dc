"""`AutoTokenizer`, and the tokenizer that it gives."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from mlm.tokenizer.encoding import encode, encode_words
from mlm.tokenizer.family.encoding import BatchEncoding
from mlm.tokenizer.family.files import NO_LIMIT, Settings, open_tokenizer, write_folder
from mlm.tokenizer.family.padding import pad_batch
from mlm.tokenizer.family.rows import Rows
from mlm.tokenizer.family.shape import checked_shape
from mlm.tokenizer.family.texts import texts_of
from mlm.tokenizer.family.vocabulary import Vocabulary
from mlm.tokenizer.tokenizer import Tokenizer

# What the reference also takes, with the values that ask for nothing here.
IDLE = {
    "cache_dir": (None,),
    "force_download": (False,),
    "local_files_only": (True, False),
    "revision": (None, "main"),
    "split_special_tokens": (None, False),
    "subfolder": (None, ""),
    "text_pair_target": (None,),
    "text_target": (None,),
    "token": (None, False),
    "trust_remote_code": (None, False),
    "use_fast": (True, False),
    "verbose": (True, False),
}


class XLMRobertaTokenizer(Vocabulary):
    """Texts to rows of ids, and back. Made by `from_pretrained`.

    The ids are those of sentencepiece with the same model file. The reference computes them with
    another library, which differs from it in lines of Yoruba or Burmese, and where scores tie.
    """

    is_fast = True

    def __init__(self, tokenizer: Tokenizer, settings: Settings, name_or_path: str = "") -> None:
        self.tokenizer, self.name_or_path = tokenizer, name_or_path
        self.model_max_length = settings.model_max_length
        self.padding_side = settings.padding_side
        self.truncation_side = settings.truncation_side
        self.clean_up_tokenization_spaces = settings.clean_up_tokenization_spaces
        self.model_input_names = ["input_ids", "attention_mask"]
        self._extra = settings.extra

    @classmethod
    def from_pretrained(cls, path: str | PathLike, **changes: Any) -> "XLMRobertaTokenizer":
        """The tokenizer of a Hugging Face folder, of the folder that `mlm tokenizer` wrote, of a
        run folder or of a checkpoint.

        changes: of model_max_length, padding_side, truncation_side, clean_up_tokenization_spaces
        Raises ValueError.
        """
        changes = _served(changes, Settings.names())
        tokenizer, settings = open_tokenizer(Path(path))
        return cls(tokenizer, Settings(**{**settings, **changes}), str(path))

    def save_pretrained(self, folder: str | PathLike) -> tuple[str, ...]:
        """Writes a Hugging Face folder, which transformers reads, too; returns its files.

        Raises UserError.
        """
        own = {name: getattr(self, name) for name in Settings.names()}
        return write_folder(self.tokenizer, Settings(**own, extra=self._extra), Path(folder))

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        **others: Any,
    ) -> BatchEncoding:
        """The rows of a text, or of a list of texts, each with its pair where there is one.

        text, text_pair: a text or a list of texts; with is_split_into_words a text is a list of
        words, each of which is tokenized by itself
        Raises ValueError for what cannot be served; warns of an option without effect.
        """
        _served(others, set())
        texts, pairs, batched = texts_of(text, text_pair, is_split_into_words)
        overflow = bool(return_overflowing_tokens)
        shape = checked_shape(
            padding,
            truncation,
            max_length,
            stride,
            pad_to_multiple_of,
            self.padding_side if padding_side is None else padding_side,
            overflow,
            self._limit,
        )
        source = (encode_words if is_split_into_words else encode)(self.tokenizer, texts + pairs)
        special, places = bool(add_special_tokens), return_offsets_mapping
        places = places or return_special_tokens_mask
        rows = Rows(source, len(texts), special, shape, self.truncation_side, places)
        batch = BatchEncoding(encodings=rows.encodings)
        lists = not (return_tensors and rows.pads and rows.even)
        batch["input_ids"] = rows.lists() if lists else rows.array()
        if return_token_type_ids:
            batch["token_type_ids"] = [[0] * len(row) for row in batch["input_ids"]]
        if return_attention_mask or return_attention_mask is None:
            ids = batch["input_ids"]
            batch["attention_mask"] = rows.masks(ids) if lists else rows.mask()
        if return_special_tokens_mask:
            batch["special_tokens_mask"] = [row.special_tokens_mask for row in batch.encodings]
        if return_offsets_mapping:
            batch["offset_mapping"] = [row.offsets for row in batch.encodings]
        if not (batched or overflow or return_tensors):
            batch.update({name: value[0] for name, value in batch.items()})
        if return_length:
            batch["length"] = rows.totals.tolist()
        if overflow:
            batch["overflow_to_sample_mapping"] = rows.samples
        return batch.convert_to_tensors(return_tensors)

    def encode(
        self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any
    ) -> Any:
        """The `input_ids` of a call with these options."""
        return self(text, text_pair, add_special_tokens, **options)["input_ids"]

    def tokenize(
        self, text: Any, pair: Any = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The pieces of a text; for `<unk>` the characters that it stands for."""
        return self(text, pair, add_special_tokens, **options).tokens()

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Rows of ids padded to one length, as when samples are collated to a batch.

        encoded_inputs: rows by name, or a list of samples by name; input_ids, attention_mask,
        token_type_ids and special_tokens_mask are padded, others stay as they are
        Raises ValueError.
        """
        side = self.padding_side if padding_side is None else padding_side
        shape = checked_shape(
            padding, False, max_length, 0, pad_to_multiple_of, side, False, self._limit
        )
        return pad_batch(encoded_inputs, shape, return_attention_mask is not False, return_tensors)

    @property
    def max_len_single_sentence(self) -> int:
        """The tokens of a text that fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """The tokens of a text and its pair that fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    @property
    def _limit(self) -> int | None:
        return None if self.model_max_length >= NO_LIMIT else self.model_max_length

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, "
            f"vocab_size={self.vocab_size}, model_max_length={self.model_max_length}, "
            f"padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r})"
        )


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(folder)`: the tokenizer that is in a folder."""

    def __init__(self) -> None:
        raise TypeError("an AutoTokenizer is not made; use AutoTokenizer.from_pretrained(folder)")

    @staticmethod
    def from_pretrained(path: str | PathLike, **changes: Any) -> XLMRobertaTokenizer:
        """As `XLMRobertaTokenizer.from_pretrained`."""
        return XLMRobertaTokenizer.from_pretrained(path, **changes)


def _served(given: Mapping[str, Any], served: set[str]) -> dict[str, Any]:
    """`given` without what asks for nothing; raises ValueError for what is not served."""
    found = {}
    for name, value in given.items():
        if name in served:
            found[name] = value
        elif name not in IDLE or value not in IDLE[name]:
            choice = f"choose from {', '.join(sorted(served))}, or " if served else ""
            raise ValueError(f"{name}={value!r} is not served; {choice}leave it out")
    return found
