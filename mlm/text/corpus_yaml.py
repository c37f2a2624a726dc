"""A corpus in a YAML file: the sources of each language, of any kind and in any place."""

import re
from collections import Counter
from collections.abc import Iterator
from glob import glob, has_magic
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from mlm.errors import DataError
from mlm.text.corpus_folder import LANGUAGE, is_utf8, no_language, of_folder, shown
from mlm.text.sources import Source, Sources, saved_dataset, source
from mlm.text.streams import is_remote

_RANGE = re.compile(r"(\{\w+\.\.\w+(?:\.\.\d+)?\})")  # {000..099}
_SAVED = {"datasets", "split", "column"}  # keys of a saved dataset


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"{key.value} is given a second time in line {line}")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def yaml_languages(path: Path) -> dict[str, Sources]:
    """The sources of each language of a YAML corpus; raises DataError as `languages` does."""
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"the corpus {path} cannot be read as YAML ({' '.join(str(error).split())}); correct it"
        ) from None
    if not isinstance(content, dict) or not content:
        raise DataError(
            f"the corpus {path} is not a mapping of languages to sources; write lines such as "
            f"en: text/en-*.txt.gz"
        )
    made = {}
    for language, given in content.items():
        if not isinstance(language, str) or not LANGUAGE.fullmatch(language):
            # YAML's `no` is not Norwegian but false.
            raise DataError(f"{path} {no_language(language)}; put it in quotes, or rename it")
        listed = given if isinstance(given, list) else [given]
        made[language] = tuple(one for item in listed for one in _sources(path, language, item))
        if not made[language]:
            raise DataError(f"{path} gives {language} no source; add one, or remove {language}")
        again = [one.place for one, times in Counter(made[language]).items() if times > 1]
        if again:
            raise DataError(
                f"{path} gives {language} the source {again[0]} twice; remove one, or have the "
                f"language read more often with data.weights"
            )
    return made


def _sources(path: Path, language: str, item: Any) -> Iterator[Source]:
    """The sources of an item of a YAML corpus; paths are relative to its folder."""
    if isinstance(item, dict):
        yield _saved(path, language, item)
        return
    if not isinstance(item, str):
        raise DataError(
            f"{path} gives {language} the source {item!r}, which is neither text nor a mapping; "
            f"write a path, a URL, pipe:COMMAND or {{datasets: PATH}}"
        )
    for one in _expanded(item):
        if is_remote(one):
            yield _known(path, language, one, source(one))
        else:
            yield from _files(path, language, one)


def _expanded(item: str) -> Iterator[str]:
    """All that braces stand for, as in webdataset; in a command only ranges are expanded, since
    the command may have braces with another meaning, as awk does."""
    from braceexpand import braceexpand  # webdataset depends on it

    if item.startswith("pipe:"):
        parts = _RANGE.split(item)  # a range is every second one
        ways = [braceexpand(part) if n % 2 else [part] for n, part in enumerate(parts)]
        yield from map("".join, product(*ways))
        return
    try:
        yield from braceexpand(item)
    except ValueError:  # braces that are not balanced
        yield item


def _files(path: Path, language: str, given: str) -> Iterator[Source]:
    place = path.parent / given
    places = [str(place)]
    if has_magic(given) and not place.exists():  # a name itself can have brackets
        # The folder of the YAML file is no pattern. `**` finds files at any depth, not folders.
        names = sorted(glob(given, root_dir=path.parent, recursive=True))
        found = (path.parent / name for name in names)
        places = [str(one) for one in found if "**" not in given or one.is_file()]
        for one in places:
            if not is_utf8(Path(one)):
                raise DataError(
                    f"{path} gives {language} the source {shown(Path(one))}, whose name is not "
                    f"UTF-8; rename it"
                )
    if not places:
        raise DataError(
            f"{path} gives {language} the source {place}, which matches no file; correct it"
        )
    for one in places:
        if Path(one).is_dir():
            yield from of_folder(Path(one))
        elif Path(one).is_file():
            yield _known(path, language, one, source(one))
        else:
            raise DataError(
                f"{path} gives {language} the source {one}, which does not exist; correct it"
            )


def _known(path: Path, language: str, place: str, found: Source | None) -> Source:
    if found is None:
        raise DataError(
            f"{path} gives {language} the source {place}, which is of an unknown kind; give names "
            f"that end in .txt, .jsonl or .tar, or in one of these and .xz, .gz, .bz2 or .zst"
        )
    return found


def _saved(path: Path, language: str, item: dict) -> Source:
    if "datasets" not in item or not item.keys() <= _SAVED or not _all_text(item.values()):
        raise DataError(
            f"{path} gives {language} the source {item}, which is not of the form {{datasets: "
            f"PATH, split: train, column: text}}, of which the last two can be omitted; correct it"
        )
    folder = path.parent / item["datasets"]
    if not saved_dataset(folder):
        raise DataError(
            f"{path} gives {language} the saved dataset {folder}, which save_to_disk has not "
            f"written; give the folder that it wrote"
        )
    rest = {name: value for name, value in item.items() if name != "datasets"}
    return Source(str(folder), "datasets", **rest)


def _all_text(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
