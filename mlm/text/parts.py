"""Names of files that are parts of the text of one language, as programs number them."""

import re
from collections import defaultdict
from collections.abc import Iterable

from mlm.errors import DataError

# en-0000, en_000012, en-00000-of-00003, en_part_3, en.shard-12
_PART = re.compile(
    r"(?P<language>.+?)[-_.]"
    r"(\d{4,}|\d+[-_.]?of[-_.]?\d+|(part|shard|chunk|split|file)[-_.]?\d+([-_.]?of[-_.]?\d+)?)",
    re.IGNORECASE,
)
_ENDS_IN_A_NUMBER = re.compile(r"(?P<before>.*?[^\d])\d{1,3}")


def language_of(stem: str) -> tuple[str, bool]:
    """The language of a file by its name without endings, and whether it is one of several parts.

    Fewer than four digits alone can belong to the language, as in es-419.
    """
    match = _PART.fullmatch(stem)
    return (match["language"], True) if match else (stem, False)


def check_not_parts(languages: Iterable[str], where: object) -> None:
    """Raises DataError for languages that differ in a last number only: they are parts of one."""
    alike = defaultdict(list)
    for language in languages:
        if match := _ENDS_IN_A_NUMBER.fullmatch(language):
            alike[match["before"]].append(language)
    for before, names in alike.items():
        if len(names) > 1:
            one, other = sorted(names)[:2]
            name = before.rstrip("-_.") or "en"
            raise DataError(
                f"{one} and {other} in {where} differ in a number only, and files of one language "
                f"are numbered with at least four digits; rename them to {name}-0000, {name}-0001 "
                f"..., or, if they are languages, name their files in a YAML corpus"
            )
