"""The folder in which shards are written until all exist, and what of it a restart can keep.

Its content belongs to one tokenizer, one set of options and one state of each language's sources;
content that belongs to others is deleted before anything is written.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlm.data.index import SPLITS, shard_name
from mlm.data.writing.first_pass import FirstPass
from mlm.data.writing.heldout import HeldOutRule, LanguageText, Paragraphs, Units
from mlm.data.writing.journal import Journal, ReadCounts
from mlm.errors import DataError
from mlm.text.sources import Sources, name_sources

WORK = ".work"  # the subfolder of journals
WRITTEN = (*(f"{split}.jsonl" for split in SPLITS), "read", "rule")  # of a language, in WORK
STATE = "state.json"


def has_finished_shards(folder: Path) -> bool:
    """Whether a staging folder has a finished shard."""
    return any(path.stat().st_size for path in (folder / WORK).glob("*.jsonl"))


class Staging:
    """A staging folder, of which this process holds the lock."""

    def __init__(self, folder: Path, made_with: dict, say: Callable[[str], None]) -> None:
        """Deletes the folder's content unless it was made with the same as now.

        made_with: what the bytes of shards depend on; say: called with a sentence on a deletion
        """
        self.folder, self._work, self._say = folder, folder / WORK, say
        state = json.dumps(made_with, sort_keys=True)
        path = self._work / STATE
        if not path.is_file() or path.read_text() != state:
            if has_finished_shards(folder):
                say(
                    f"The unfinished shards of an earlier command in {folder} were written with "
                    f"another tokenizer or other settings, so all are written again"
                )
            shutil.rmtree(folder)
            self._work.mkdir(parents=True)
            path.write_text(state)

    def match(self, sources: dict[str, Sources]) -> dict[str, FirstPass]:
        """The first pass of each language whose sources are unchanged; deletes all other content.

        Languages whose first pass was not saved are absent.
        """
        known = {}
        for path in list(self._work.glob("*.fingerprint")):
            if path.stem not in sources:
                self.clear(path.stem)
        for language, text in sources.items():
            path = self._work / f"{language}.fingerprint"
            fingerprint = _fingerprint(text)
            same = path.is_file() and path.read_text() == fingerprint
            if same and self._whole(language):
                if (found := load_first_pass(self._work, language)) is not None:
                    known[language] = found
                continue
            if any(self._work.glob(f"{language}.*.jsonl")):
                self._say(
                    f"The text of {language} or what was written of it has changed since an "
                    f"earlier command ended, so this language is written again"
                )
            self.clear(language)
            path.write_text(fingerprint)
        return known

    def match_rules(self, rules: dict[str, HeldOutRule]) -> None:
        """Deletes the shards of languages of which other text was held out than is now.

        This depends on the text of all languages, of which one may have changed.
        """
        for language, rule in rules.items():
            path, facts = self._work / f"{language}.rule", json.dumps(rule.facts())
            if path.is_file() and path.read_text() != facts:
                self._say(f"Other text of {language} is held out now, so it is written again")
                self._delete(language, WRITTEN)
            path.write_text(facts)

    def check_unchanged(self, sources: dict[str, Sources]) -> None:
        """Raises DataError where a language's text has changed since `match`."""
        for language, text in sources.items():
            if (self._work / f"{language}.fingerprint").read_text() != _fingerprint(text):
                raise changed(language, text)

    def clear(self, language: str) -> None:
        """Deletes all of a language."""
        # The fingerprint comes last, so that a kill in between is noticed.
        self._delete(language, (*WRITTEN, "npz", "fingerprint"))

    def _delete(self, language: str, endings: tuple[str, ...]) -> None:
        """Deletes a language's tars, then its files in WORK."""
        names = re.compile(rf"{re.escape(language)}(\.heldout)?-\d{{6,}}\.tar")
        for path in list(self.folder.iterdir()):
            if names.fullmatch(path.name):
                path.unlink()
        for ending in endings:
            (self._work / f"{language}.{ending}").unlink(missing_ok=True)

    def _whole(self, language: str) -> bool:
        """Whether all tars of a language's journals exist, with their sizes."""
        for split in SPLITS:
            for number, tar in enumerate(journal(self._work, language, split).tars):
                path = self.folder / shard_name(language, split, number)
                if not path.is_file() or path.stat().st_size != tar.row[0]:
                    return False
        return True


def forget(work: Path, language: str) -> None:
    """Makes the next command write a language from its beginning."""
    (work / f"{language}.fingerprint").unlink(missing_ok=True)


def changed(language: str, text: Sources) -> DataError:
    return DataError(
        f"the text of {language} ({name_sources(text)}) changed while it was read; keep it "
        f"unchanged, and run the same command again"
    )


def _fingerprint(text: Sources) -> str:
    return json.dumps([source.fingerprint() for source in text])


def journal(work: Path, language: str, split: str) -> Journal:
    """The journal of a split of a language."""
    return Journal(work / f"{language}.{split}.jsonl")


def save_first_pass(work: Path, language: str, found: FirstPass) -> None:
    """Saves the result of a language's first pass, whole or not at all."""
    text, aside = found.text, work / f"{language}.partial"
    arrays: dict[str, Any] = {"repeated": found.repeated} | {
        f"{kind}.{name}": array
        for kind, units in (("documents", text.documents), ("paragraphs", text.paragraphs))
        if units is not None
        for name, array in vars(units).items()
    }
    facts = [text.characters, text.complete, found.characters, found.digest]
    with aside.open("wb") as file:
        np.savez(file, facts=np.array(facts, np.uint64), **arrays)
    aside.replace(work / f"{language}.npz")


def load_first_pass(work: Path, language: str) -> FirstPass | None:
    """The result of a language's first pass; None where none is saved."""
    path = work / f"{language}.npz"
    if not path.is_file():
        return None
    with np.load(path) as saved:
        characters, complete, of_all, digest = saved["facts"].tolist()
        units: dict[str, dict[str, np.ndarray]] = {"documents": {}, "paragraphs": {}}
        for name in saved.files:
            kind, _, column = name.partition(".")
            if column:
                units[kind][column] = saved[name]
        documents, paragraphs = Units(**units["documents"]), units["paragraphs"]
        text = LanguageText(
            language,
            characters,
            documents,
            Paragraphs(**paragraphs) if paragraphs else None,
            bool(complete),
        )
        return FirstPass(text, saved["repeated"], of_all, digest)


def save_read(work: Path, language: str, read: ReadCounts) -> None:
    """Saves the counts of a language, before its journals mark it as finished."""
    (work / f"{language}.read").write_text(json.dumps(asdict(read)))


def load_read(work: Path, language: str) -> ReadCounts:
    """The counts of a finished language."""
    return ReadCounts(**json.loads((work / f"{language}.read").read_text()))
