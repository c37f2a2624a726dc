"""The ids of a tokenizer: their pieces, their special ones, and the text that they make."""

from typing import Any

from mlm.tokenizer.family.texts import checked_ids
from mlm.tokenizer.ids import BOS, EOS, PAD, SPACE, UNK
from mlm.tokenizer.published_files import ROLES
from mlm.tokenizer.tokenizer import Tokenizer

CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Vocabulary:
    """The part of the tokenizer's interface that needs no text."""

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
        """The id of a piece, or of each; that of `<unk>` for what is none."""
        if isinstance(tokens, str):
            return self.tokenizer.ids.get(tokens, UNK)
        return [self.tokenizer.ids.get(token, UNK) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The piece of an id, or of each; None for a row of an embedding that is no id."""
        found = checked_ids(ids)
        if isinstance(ids, int):
            return self._pieces(found)[0]
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return self._pieces([id for id in found if id not in skipped])

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
        """The text of ids; a list of texts for rows of ids. Rows of an embedding that are no ids
        have none. Raises ValueError for what are no ids."""
        found = checked_ids(token_ids)
        if found and isinstance(found[0], list):
            options = skip_special_tokens, clean_up_tokenization_spaces
            return [self.decode(row, *options) for row in found]
        pieces = self.convert_ids_to_tokens(found, skip_special_tokens)
        text = self.convert_tokens_to_string([piece for piece in pieces if piece is not None])
        clean = clean_up_tokenization_spaces
        for blank in (
            CLEANED if (self.clean_up_tokenization_spaces if clean is None else clean) else ()
        ):
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
        """1 for special tokens, 0 for others, of a row that has them or before it is given them."""
        if not already_has_special_tokens:
            second = None if token_ids_1 is None else [UNK + 1] * len(token_ids_1)
            row = self.build_inputs_with_special_tokens([UNK + 1] * len(token_ids_0), second)
        elif token_ids_1 is not None:
            raise ValueError("a row that has its special tokens is one; leave token_ids_1 out")
        else:
            row = checked_ids(token_ids_0)
        special = set(self.all_special_ids)
        return [int(id in special) for id in row]

    def _pieces(self, ids: list[int]) -> list[str | None]:
        vocabulary, size = self.tokenizer.vocabulary, self.tokenizer.size
        return [vocabulary[id] if id < size else None for id in ids]
