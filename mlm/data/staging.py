"""The folder in which shards are written until all are there, and what of it can be kept.

What lies in it belongs to one tokenizer, one set of options and one state of each language's
sources; what belongs to others is taken away before anything is written.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np

from mlm.data.heldout import FirstPass, HeldOut
from mlm.data.index import SPLITS, shard_name
from mlm.data.journal import Journal
from mlm.text.sources import Text

WORK = ".work"  # the subfolder of journals
STATE = "state.json"
Say = Callable[[str], None]


def anything_finished(folder: Path) -> bool:
    """Whether a staging folder has a whole shard."""
    return any(path.stat().st_size for path in (folder / WORK).glob("*.jsonl"))


class Staging:
    """A staging folder, as one process sees it that has it for itself."""

    def __init__(self, folder: Path, belongs_to: dict, say: Say) -> None:
        """`belongs_to` is what the shards are made with; `say` gets a sentence where it is not that
        of what is there, which is taken away."""
        self.folder, self._work, self._say = folder, folder / WORK, say
        state = json.dumps(belongs_to, sort_keys=True)
        path = self._work / STATE
        if not path.is_file() or path.read_text() != state:
            if anything_finished(folder):
                say(
                    f"What an earlier command left unfinished in {folder} was written with another "
                    f"tokenizer or other settings, so it is begun anew"
                )
            shutil.rmtree(folder)
            self._work.mkdir(parents=True)
            path.write_text(state)

    def match(self, sources: dict[str, Text]) -> dict[str, FirstPass]:
        """What is known of each language whose sources are as they were; takes away the rest."""
        known = {}
        for path in list(self._work.glob("*.fingerprint")):
            if path.stem not in sources:
                self.clear(path.stem)
        for language, text in sources.items():
            path = self._work / f"{language}.fingerprint"
            fingerprint = json.dumps([source.fingerprint() for source in text])
            same = path.is_file() and path.read_text() == fingerprint
            if same and self._whole(language):
                if (found := load(self._work, language)) is not None:
                    known[language] = found
                continue
            if path.is_file() and any(self._work.glob(f"{language}.*.jsonl")):
                self._say(
                    f"The text of {language} or what was written of it has changed since an "
                    f"earlier command was ended, so this language is begun anew"
                )
            self.clear(language)
            path.write_text(fingerprint)
        return known

    def clear(self, language: str) -> None:
        """Takes away what was written of a language."""
        names = re.compile(rf"{re.escape(language)}(\.heldout)?-\d{{6,}}\.tar")
        for path in list(self.folder.iterdir()):
            if names.fullmatch(path.name):
                path.unlink()
        # The fingerprint comes last, so that a kill in between is seen.
        for ending in (*(f"{split}.jsonl" for split in SPLITS), "npz", "fingerprint"):
            (self._work / f"{language}.{ending}").unlink(missing_ok=True)

    def _whole(self, language: str) -> bool:
        """Whether the tars of a language's journals are there."""
        for split in SPLITS:
            for number, shard in enumerate(journal(self._work, language, split).shards):
                path = self.folder / shard_name(language, split, number)
                if not path.is_file() or path.stat().st_size != shard.row[0]:
                    return False
        return True


def journal(work: Path, language: str, split: str) -> Journal:
    """That of a split of a language."""
    return Journal(work / f"{language}.{split}.jsonl")


def save(work: Path, language: str, found: FirstPass) -> None:
    """Keeps what was found of a language, whole or not at all."""
    rule = found.rule
    values = {field.name: getattr(found, field.name) for field in fields(found)} | {
        "rule": np.array([rule.paragraphs, rule.cutoff, rule.size], np.uint64)
    }
    aside = work / f"{language}.partial"
    with aside.open("wb") as file:
        np.savez(file, **values)
    aside.replace(work / f"{language}.npz")


def load(work: Path, language: str) -> FirstPass | None:
    """What was found of a language; None where nothing is kept."""
    path = work / f"{language}.npz"
    if not path.is_file():
        return None
    with np.load(path) as kept:
        values = {name: value if value.ndim else int(value) for name, value in kept.items()}
    paragraphs, cutoff, size = values.pop("rule").tolist()
    return FirstPass(HeldOut(bool(paragraphs), cutoff, size), **values)
