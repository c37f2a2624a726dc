"""What a call of the tokenizer is given: one text or many, with pairs, whole or as words."""

from collections.abc import Sequence
from typing import Any

SEVERAL = (list, tuple)


def texts_of(text: Any, pair: Any, in_words: bool) -> tuple[list[Any], list[Any], bool]:
    """The texts, their pairs (none or as many), and whether they were given as a list.

    A list may also hold the pairs themselves, as (text, pair). Raises ValueError.
    """
    whole = "lists of words" if in_words else "strings"
    if text is None:
        raise ValueError(f"no text was given; give {whole}")
    if not _several(text, in_words):
        if pair is not None and _several(pair, in_words):
            raise ValueError(
                f"text_pair is a list and text is one text; give {whole}, of both as many"
            )
        return [text], [] if pair is None else [pair], False
    if pair is not None:
        if not _several(pair, in_words) and pair != []:
            raise ValueError(f"text is a list and text_pair is one text; give {whole} for both")
        if len(text) != len(pair):
            raise ValueError(
                f"text has {len(text)} texts and text_pair {len(pair)}; give as many of both"
            )
        return list(text), list(pair), True
    if any(_is_pair(each, in_words) for each in text):
        if not all(_is_pair(each, in_words) for each in text):
            raise ValueError("some texts of the list are pairs and others not; give two lists")
        return [first for first, _ in text], [second for _, second in text], True
    return list(text), [], True


def _several(given: Any, in_words: bool) -> bool:
    """Whether it is a list of texts and no text."""
    if not in_words:
        return isinstance(given, SEVERAL)
    if not isinstance(given, SEVERAL):
        raise ValueError(
            f"{given!r:.80} is no list of words, as is_split_into_words=True needs it; give one"
        )
    return len(given) > 0 and isinstance(given[0], SEVERAL)


def _is_pair(given: Any, in_words: bool) -> bool:
    if not isinstance(given, SEVERAL) or len(given) != 2:
        return False
    return not in_words or all(isinstance(each, SEVERAL) for each in given)


def checked_ids(ids: Any) -> list[int] | list[list[int]]:
    """Ids as a list, or a list of lists, from an id, a sequence or a tensor; raises ValueError."""
    found = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(found, int):
        found = [found]
    if isinstance(found, Sequence) and not isinstance(found, str):
        found = [each.tolist() if hasattr(each, "tolist") else each for each in found]
        flat = found
        if found and isinstance(found[0], SEVERAL):
            found = [list(map(int, row)) for row in found]
            flat = [id for row in found for id in row]
        if all(isinstance(id, int) and id >= 0 for id in flat):
            return found
    raise ValueError(f"{ids!r:.80} are no ids; give numbers from 0, or a list or tensor of them")
