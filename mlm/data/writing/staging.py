"""The folder in which shards are written until all are there, and what of it can be kept.

What lies in it belongs to one tokenizer, one set of options and one state of each language's
sources; what belongs to others is taken away before anything is written.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mlm.data.index import SPLITS, shard_name
from mlm.data.writing.heldout import FirstPass, HeldOut
from mlm.data.writing.journal import Journal, Read
from mlm.errors import DataError
from mlm.text.sources import Text, shown

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
            fingerprint = _fingerprint(text)
            same = path.is_file() and path.read_text() == fingerprint
            if same and self._whole(language):
                if (found := load(self._work, language)) is not None:
                    known[language] = found
                continue
            if any(self._work.glob(f"{language}.*.jsonl")):
                self._say(
                    f"The text of {language} or what was written of it has changed since an "
                    f"earlier command was ended, so this language is begun anew"
                )
            self.clear(language)
            path.write_text(fingerprint)
        return known

    def check_unchanged(self, sources: dict[str, Text]) -> None:
        """Raises DataError where a language's text is not what it was when `match` saw it."""
        for language, text in sources.items():
            if (self._work / f"{language}.fingerprint").read_text() != _fingerprint(text):
                raise changed(language, text)

    def clear(self, language: str) -> None:
        """Takes away what was written of a language."""
        names = re.compile(rf"{re.escape(language)}(\.heldout)?-\d{{6,}}\.tar")
        for path in list(self.folder.iterdir()):
            if names.fullmatch(path.name):
                path.unlink()
        # The fingerprint comes last, so that a kill in between is seen.
        for ending in (*(f"{split}.jsonl" for split in SPLITS), "read", "npz", "fingerprint"):
            (self._work / f"{language}.{ending}").unlink(missing_ok=True)

    def _whole(self, language: str) -> bool:
        """Whether the tars of a language's journals are there."""
        for split in SPLITS:
            for number, shard in enumerate(journal(self._work, language, split).shards):
                path = self.folder / shard_name(language, split, number)
                if not path.is_file() or path.stat().st_size != shard.row[0]:
                    return False
        return True


def forget(work: Path, language: str) -> None:
    """Has a language be begun anew by the next command."""
    (work / f"{language}.fingerprint").unlink(missing_ok=True)


def changed(language: str, text: Text) -> DataError:
    return DataError(
        f"the text of {language} ({shown(text)}) was changed while it was read; leave it as it is, "
        f"and give the same command again"
    )


def _fingerprint(text: Text) -> str:
    return json.dumps([source.fingerprint() for source in text])


def journal(work: Path, language: str, split: str) -> Journal:
    """That of a split of a language."""
    return Journal(work / f"{language}.{split}.jsonl")


def save(work: Path, language: str, found: FirstPass) -> None:
    """Keeps what the first pass found of a language, whole or not at all."""
    rule, aside = found.rule, work / f"{language}.partial"
    facts = [rule.paragraphs, rule.cutoff, found.characters, found.digest]
    with aside.open("wb") as file:
        np.savez(file, facts=np.array(facts, np.uint64), repeated=found.repeated)
    aside.replace(work / f"{language}.npz")


def load(work: Path, language: str) -> FirstPass | None:
    """What the first pass found of a language; None where nothing is kept."""
    path = work / f"{language}.npz"
    if not path.is_file():
        return None
    with np.load(path) as kept:
        paragraphs, cutoff, characters, digest = kept["facts"].tolist()
        return FirstPass(HeldOut(bool(paragraphs), cutoff), kept["repeated"], characters, digest)


def save_read(work: Path, language: str, read: Read) -> None:
    """Keeps what was read of a language, before its journals say that it is finished."""
    (work / f"{language}.read").write_text(json.dumps(asdict(read)))


def load_read(work: Path, language: str) -> Read:
    """What was read of a finished language."""
    return Read(**json.loads((work / f"{language}.read").read_text()))
