"""The ids of a tokenizer: their pieces, the special ones, and the text that they make."""

from collections.abc import Sequence
from typing import Any

from mlm.tokenizer.ids import BOS, EOS, PAD, SPACE, UNK
from mlm.tokenizer.published_files import ROLES
from mlm.tokenizer.tokenizer import Tokenizer

CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Vocabulary:
    """The part of the tokenizer's interface that encodes nothing."""

    tokenizer: Tokenizer
    clean_up_tokenization_spaces: bool

    pad_token_type_id = 0
    bos_token, eos_token, unk_token = ROLES["bos_token"], ROLES["eos_token"], ROLES["unk_token"]
    sep_token, cls_token = ROLES["sep_token"], ROLES["cls_token"]
    pad_token, mask_token = ROLES["pad_token"], ROLES["mask_token"]
    bos_token_id = cls_token_id = BOS
    eos_token_id = sep_token_id = EOS
    pad_token_id, unk_token_id = PAD, UNK

    @property
    def all_special_tokens(self) -> list[str]:
        return ["<s>", "</s>", "<unk>", "<pad>", "<mask>"]

    @property
    def mask_token_id(self) -> int:
        return self.tokenizer.mask

    @property
    def all_special_ids(self) -> list[int]:
        return [self.tokenizer.special[token] for token in self.all_special_tokens]

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special token of each role."""
        return dict(ROLES)

    @property
    def vocab_size(self) -> int:
        """All ids, special ones included; an embedding may have more rows."""
        return self.tokenizer.size

    def __len__(self) -> int:
        return self.tokenizer.size

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        return {piece: id for id, piece in enumerate(self.tokenizer.vocabulary)}

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """The id of a piece, or of each; that of `<unk>` for what is not a piece."""
        if isinstance(tokens, str):
            return self.tokenizer.ids.get(tokens, UNK)
        return [self.tokenizer.ids.get(token, UNK) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The piece of an id, or of each; None for a row of an embedding without an id."""
        if isinstance(ids, int):
            return self._pieces(checked_ids(ids), skip_special_tokens=False)[0]
        return self._pieces(checked_ids(ids), skip_special_tokens)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces; the blank before the first is not part of it."""
        first, rest = "".join(tokens[:1]), "".join(tokens[1:])
        return first.replace(SPACE, "") + rest.replace(SPACE, " ")

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of ids; a list of texts for rows of ids. Rows of an embedding without ids
        have none. Raises ValueError for what is not ids."""
        if rows := _rows(token_ids):
            options = skip_special_tokens, clean_up_tokenization_spaces
            return [self.decode(row, *options) for row in rows]
        pieces = self._pieces(checked_ids(token_ids), skip_special_tokens)
        text = self.convert_tokens_to_string([piece for piece in pieces if piece is not None])
        clean = clean_up_tokenization_spaces
        if self.clean_up_tokenization_spaces if clean is None else clean:
            for blank in CLEANED:
                text = text.replace(blank, blank.strip())
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of each row of ids."""
        options = skip_special_tokens, clean_up_tokenization_spaces
        return [self.decode(row, *options) for row in sequences]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 4 if pair else 2

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`<s> A </s>`, or `<s> A </s></s> B </s>`."""
        first = [BOS, *token_ids_0, EOS]
        return first if token_ids_1 is None else [*first, EOS, *token_ids_1, EOS]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others, of a row with special tokens or of texts without."""
        if not already_has_special_tokens:
            second = None if token_ids_1 is None else [UNK + 1] * len(token_ids_1)
            row = self.build_inputs_with_special_tokens([UNK + 1] * len(token_ids_0), second)
        elif token_ids_1 is not None:
            raise ValueError("a row with its special tokens is one row; omit token_ids_1")
        else:
            row = checked_ids(token_ids_0)
        special = set(self.all_special_ids)
        return [int(id in special) for id in row]

    def _pieces(self, ids: list[int], skip_special_tokens: bool) -> list[str | None]:
        vocabulary, size = self.tokenizer.vocabulary, self.tokenizer.size
        skipped = set(self.all_special_ids if skip_special_tokens else ())
        return [vocabulary[id] if id < size else None for id in ids if id not in skipped]


def checked_ids(ids: Any) -> list[int]:
    """Ids as a list, from an id, a sequence or a tensor; raises ValueError."""
    found = _as_list(ids)
    if isinstance(found, int):
        found = [found]
    if isinstance(found, Sequence) and not isinstance(found, str):
        found = list(map(_as_list, found))
        if all(isinstance(id, int) and id >= 0 for id in found):
            return found
    raise ValueError(f"{ids!r:.80} are not ids; give numbers from 0, or a list or tensor of them")


def _rows(ids: Any) -> list[Any]:
    """The rows of a list or tensor of rows of ids; none of a row."""
    found = _as_list(ids)
    if isinstance(found, list | tuple) and found and isinstance(_as_list(found[0]), list | tuple):
        return list(found)
    return []


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
