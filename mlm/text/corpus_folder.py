"""A corpus in a folder: files and folders that are named after languages."""

import os
import re
from pathlib import Path

from mlm.errors import DataError
from mlm.text.parts import check_not_parts, language_of
from mlm.text.sources import Source, Sources, saved_dataset, source, stem

LANGUAGE = re.compile(r"[A-Za-z0-9_-]+")
_ABOUT = re.compile(r"\.|(README|LICEN[CS]E|NOTICE)\b", re.IGNORECASE)


def folder_languages(corpus: Path) -> dict[str, Sources]:
    """The sources of each language of a corpus folder; raises DataError as `languages` does."""
    found: dict[str, list[tuple[Path, Sources]]] = {}
    for path in sorted(corpus.iterdir()):
        language, text = _entry(path)
        if not text:
            continue
        if not LANGUAGE.fullmatch(language):
            raise DataError(f"{path} {no_language(language)}; rename the file")
        found.setdefault(language, []).append((path, text))
    check_not_parts(found, corpus)
    for language, parts in found.items():
        alone = [path for path, _ in parts if path.is_dir() or not _of_name(path)[1]]
        if alone and len(parts) > 1:
            one, other = sorted({alone[0].name, next(p.name for p, _ in parts if p != alone[0])})
            raise DataError(
                f"{one} and {other} in {corpus} are both of the language {language}, which can "
                f"have one file, one folder, or files with numbers such as {language}-0000.txt; "
                f"rename or join them"
            )
    if not found:
        raise DataError(
            f"the corpus {corpus} holds no text; put a <language>.txt or <language>.jsonl there "
            f"for each language, plain or compressed as .xz, .gz, .bz2 or .zst"
        )
    return {name: sum((text for _, text in found[name]), ()) for name in sorted(found)}


def skipped_files(corpus: Path) -> list[str]:
    """The files in a corpus folder that are not text by their names, or whose names are not UTF-8,
    except hidden files and files about the corpus; sorted paths in the folder."""
    skipped = []
    for path in sorted(corpus.iterdir()):
        _, text = _entry(path)
        if not text:
            skipped.append(path)
        elif path.is_dir() and text[0].kind != "datasets":
            read = {source.place for source in text}
            skipped += [file for file in sorted(path.iterdir()) if str(file) not in read]
    return [shown(file.relative_to(corpus)) for file in skipped if not _ABOUT.match(file.name)]


def _entry(path: Path) -> tuple[str, Sources]:
    """The language and the sources of an entry of a corpus folder; no sources: it is not text."""
    if path.name.startswith(".") or not is_utf8(path):
        return "", ()
    if path.is_dir():
        return path.name, of_folder(path)
    found = source(str(path))
    if found is None or not path.is_file():
        return "", ()
    return _of_name(path)[0], (found,)


def _of_name(path: Path) -> tuple[str, bool]:
    """The language of a file, and whether it is one of several parts."""
    return language_of(stem(path.name) or "")


def of_folder(folder: Path) -> Sources:
    """The sources in a folder of one language."""
    if saved_dataset(folder):
        return (Source(str(folder), "datasets"),)
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and is_utf8(path)
    )
    return tuple(found for path in files if (found := source(str(path))))


def no_language(name: object) -> str:
    """A part of a sentence, for a name that cannot be that of a language."""
    return (
        f"names the language {name!r}, and such a name can only have ASCII letters, digits, - and _"
    )


def is_utf8(path: Path) -> bool:
    """Whether the last part of a path is UTF-8, whatever the locale takes names to be."""
    try:
        os.fsencode(path.name).decode()
    except UnicodeDecodeError:
        return False
    return True


def shown(path: Path) -> str:
    r"""A path as it can be printed and written: bytes that are not UTF-8 as \xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
