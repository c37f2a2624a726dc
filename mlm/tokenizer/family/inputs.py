"""What a call of the tokenizer is given: one text or many, with pairs, whole or as words."""

from typing import Any

SEQUENCES = (list, tuple)


def texts_of(text: Any, pair: Any, in_words: bool) -> tuple[list[Any], list[Any], bool]:
    """The texts, their pairs (none or as many), and whether they were given as a list.

    A list may also hold the pairs themselves, as (text, pair). Raises ValueError.
    """
    whole = "lists of words" if in_words else "strings"
    if text is None:
        raise ValueError(f"no text was given; give {whole}")
    if not _is_list_of_texts(text, in_words):
        if pair is not None and _is_list_of_texts(pair, in_words):
            raise ValueError(
                f"text_pair is a list and text is one text; give {whole}, as many of both"
            )
        return [text], [] if pair is None else [pair], False
    if pair is not None:
        if not _is_list_of_texts(pair, in_words) and pair != []:
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


def _is_list_of_texts(given: Any, in_words: bool) -> bool:
    """Whether it is a list of texts rather than a text."""
    if not in_words:
        return isinstance(given, SEQUENCES)
    if not isinstance(given, SEQUENCES):
        raise ValueError(
            f"{given!r:.80} is not a list of words, which is_split_into_words=True needs; give one"
        )
    return len(given) > 0 and isinstance(given[0], SEQUENCES)


def _is_pair(given: Any, in_words: bool) -> bool:
    if not isinstance(given, SEQUENCES) or len(given) != 2:
        return False
    return not in_words or all(isinstance(each, SEQUENCES) for each in given)
