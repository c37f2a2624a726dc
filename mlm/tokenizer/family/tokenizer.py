"""The tokenizer of the family, with the interface of transformers' tokenizers."""

from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from mlm.tokenizer.family.batch_encoding import BatchEncoding
from mlm.tokenizer.family.encoded_texts import EncodedTexts
from mlm.tokenizer.family.files import NO_LIMIT, Settings, open_tokenizer, write_folder
from mlm.tokenizer.family.inputs import texts_of
from mlm.tokenizer.family.options import Options, checked_options
from mlm.tokenizer.family.padding import pad_batch
from mlm.tokenizer.family.rows import encode_plain, encode_rows, ids_and_mask
from mlm.tokenizer.family.segments import segments_of, segments_of_words
from mlm.tokenizer.family.vocabulary import Vocabulary
from mlm.tokenizer.tokenizer import Tokenizer

# Further arguments of transformers, with the values that have no effect here.
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

    The ids are those of sentencepiece with the same model file. transformers computes them with
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
        """The tokenizer of a Hugging Face folder or of the folder that `mlm tokenizer` wrote.

        changes: of model_max_length, padding_side, truncation_side, clean_up_tokenization_spaces
        Raises ValueError.
        """
        changes = checked_changes(changes)
        tokenizer, settings = open_tokenizer(Path(path))
        return cls(tokenizer, Settings(**{**settings, **changes}), str(path))

    def save_pretrained(self, folder: str | PathLike) -> tuple[str, ...]:
        """Writes a Hugging Face folder, which transformers reads, too; returns its files.

        Raises UserError.
        """
        settings = {name: getattr(self, name) for name in Settings.names()}
        return write_folder(self.tokenizer, Settings(**settings, extra=self._extra), Path(folder))

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
        Raises ValueError for what is unsupported; warns of an option without effect.
        """
        _check_arguments(others)
        texts, pairs, batched = texts_of(text, text_pair, is_split_into_words)
        overflow = bool(return_overflowing_tokens)
        options = self._options(
            padding, truncation, max_length, stride, pad_to_multiple_of, padding_side, overflow
        )
        cut = segments_of_words if is_split_into_words else segments_of
        segments = cut(texts + pairs, self.tokenizer.special)
        source = EncodedTexts(self.tokenizer, segments, len(texts))
        special, tensors = bool(add_special_tokens), return_tensors is not None
        batch = BatchEncoding(encodings=partial(encode_rows, source, special, options))
        general = pairs or overflow or options.truncation == "only_second" or not special
        general = general or return_offsets_mapping or return_special_tokens_mask
        if source.plain and not general:
            ids, mask = encode_plain(source, options, tensors)
        else:
            ids, mask = ids_and_mask(batch.encodings, tensors)
        batch["input_ids"] = ids
        if return_token_type_ids:
            batch["token_type_ids"] = [[0] * len(row) for row in ids]
        if return_attention_mask or return_attention_mask is None:
            batch["attention_mask"] = mask
        if return_special_tokens_mask:
            batch["special_tokens_mask"] = [row.special_tokens_mask for row in batch.encodings]
        if return_offsets_mapping:
            batch["offset_mapping"] = [row.offsets for row in batch.encodings]
        if not (batched or overflow or return_tensors):
            batch.update({name: value[0] for name, value in batch.items()})
        if return_length:
            batch["length"] = list(map(len, ids))
        if overflow:
            batch["overflow_to_sample_mapping"] = [row.sample for row in batch.encodings]
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
        options = self._options(
            padding, False, max_length, 0, pad_to_multiple_of, padding_side, overflow=False
        )
        mask = return_attention_mask is not False
        return pad_batch(encoded_inputs, options, mask, return_tensors)

    @property
    def max_len_single_sentence(self) -> int:
        """The tokens of a text that fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """The tokens of a text and its pair that fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def _options(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        stride: int,
        multiple: int | None,
        padding_side: str | None,
        overflow: bool,
    ) -> Options:
        side = self.padding_side if padding_side is None else padding_side
        return checked_options(
            padding,
            truncation,
            max_length,
            stride,
            multiple,
            (side, self.truncation_side),
            overflow,
            None if self.model_max_length >= NO_LIMIT else self.model_max_length,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, "
            f"vocab_size={self.vocab_size}, model_max_length={self.model_max_length}, "
            f"padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r})"
        )


def checked_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the arguments of `from_pretrained`; raises ValueError for arguments that
    would have another effect."""
    settings = Settings.names()
    found = {name: value for name, value in changes.items() if name in settings}
    others = {name: value for name, value in changes.items() if name not in settings}
    _check_arguments(others, f"choose from {', '.join(sorted(settings))}, or ")
    return found


def _check_arguments(given: Mapping[str, Any], choice: str = "") -> None:
    """Raises ValueError for an argument that would have an effect in transformers."""
    for name, value in given.items():
        if name not in IDLE or value not in IDLE[name]:
            raise ValueError(f"{name}={value!r} is unsupported; {choice}omit it")
