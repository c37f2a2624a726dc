"""A corpus: a folder with text for each language, or a YAML file that says where it is.

In a folder a language has `<lang>.txt`, `.jsonl`, `.ndjson` or `.tar`, plain or compressed as .xz,
.gz, .bz2 or .zst, or JSON lines as `.json.gz`; or several of them, `<lang>-0000.txt`,
`<lang>-0001.txt` ...; or a folder `<lang>/` with any of them, or one that `save_to_disk` of the
package datasets made.
"""

import re
from collections import Counter
from collections.abc import Iterator
from glob import glob, has_magic
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from mlm.errors import DataError
from mlm.text.parts import check_not_parts, language_of
from mlm.text.sources import Source, Sources, saved_dataset, source, stem
from mlm.text.streams import is_remote

SAMPLE = "sample"
YAML = (".yaml", ".yml")

_ABOUT = re.compile(r"\.|(README|LICEN[CS]E|NOTICE)\b", re.IGNORECASE)
_RANGE = re.compile(r"(\{\w+\.\.\w+(?:\.\.\d+)?\})")  # {000..099}
_LANGUAGE = re.compile(r"[A-Za-z0-9_-]+")
_SAVED = {"datasets", "split", "column"}  # keys of a saved dataset in YAML


def sample_corpus() -> Path:
    """The folder of the corpus that comes with the package."""
    return Path(__file__).resolve().parent.parent / "sample"


def resolve(corpus: str) -> Path:
    """The folder or file that `corpus` names; "sample" is the corpus in the package."""
    return sample_corpus() if corpus == SAMPLE else Path(corpus)


def languages(corpus: Path) -> dict[str, Sources]:
    """The sources of each language of a corpus, sorted by language.

    Raises DataError where the corpus is missing or has no text, where it gives a language in two
    ways or in an unknown form, and where a name cannot be that of a language. Files of other kinds
    in a folder are skipped: `skipped_files` names them.
    """
    corpus = Path(corpus)
    if corpus.suffix in YAML and corpus.is_file():
        return dict(sorted(_of_yaml(corpus).items()))
    if not corpus.is_dir():
        raise DataError(
            f"the corpus {corpus} is not a folder; give one that holds a file such as en.txt for "
            f"each language, a YAML file of sources, or the word {SAMPLE}"
        )
    found: dict[str, list[tuple[Path, Sources]]] = {}
    for path in sorted(corpus.iterdir()):
        language, text = _entry(path)
        if not text:
            continue
        if not _LANGUAGE.fullmatch(language):
            raise DataError(f"{path} {_no_language(language)}; rename the file")
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
    """The files in a corpus folder whose names are not those of text, except hidden files and files
    about the corpus; sorted paths in the folder."""
    if not corpus.is_dir():
        return []
    skipped = []
    for path in sorted(corpus.iterdir()):
        _, text = _entry(path)
        if not text:
            skipped.append(path)
        elif path.is_dir() and text[0].kind != "datasets":
            read = {source.place for source in text}
            skipped += [file for file in sorted(path.iterdir()) if str(file) not in read]
    return [str(file.relative_to(corpus)) for file in skipped if not _ABOUT.match(file.name)]


def _entry(path: Path) -> tuple[str, Sources]:
    """The language and the sources of an entry of a corpus folder; no sources: it is not text."""
    if path.name.startswith("."):
        return "", ()
    if path.is_dir():
        return path.name, _of_folder(path)
    found = source(str(path))
    if found is None or not path.is_file():
        return "", ()
    return _of_name(path)[0], (found,)


def _of_name(path: Path) -> tuple[str, bool]:
    """The language of a file, and whether it is one of several parts."""
    return language_of(stem(path.name) or "")


def _of_folder(folder: Path) -> Sources:
    if saved_dataset(folder):
        return (Source(str(folder), "datasets"),)
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )
    return tuple(found for path in files if (found := source(str(path))))


def _no_language(name: object) -> str:
    return (
        f"names the language {name!r}, and such a name can only have ASCII letters, digits, - and _"
    )


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


def _of_yaml(path: Path) -> dict[str, Sources]:
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
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            # YAML's `no` is not Norwegian but false.
            raise DataError(f"{path} {_no_language(language)}; put it in quotes, or rename it")
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
    if not places:
        raise DataError(
            f"{path} gives {language} the source {place}, which matches no file; correct it"
        )
    for one in places:
        if Path(one).is_dir():
            yield from _of_folder(Path(one))
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
