"""A corpus: a folder with text for each language, or a YAML file that says where it is.

In a folder a language has `<lang>.txt`, `.jsonl`, `.ndjson` or `.tar`, plain or compressed as .xz,
.gz, .bz2 or .zst, or JSON lines as `.json.gz`, or `.parquet`; or several of them,
`<lang>-0000.txt`, `<lang>-0001.txt` ...; or a folder `<lang>/` with any of them, or one that
`save_to_disk` of the package datasets made.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlm.errors import DataError
from mlm.text.corpus_folder import folder_languages, skipped_files
from mlm.text.corpus_yaml import yaml_languages
from mlm.text.sources import USUAL_FORM, Sources, TextForm

SAMPLE = "sample"
YAML = (".yaml", ".yml")
LISTED = 5  # skipped files that a message names


def sample_corpus() -> Path:
    """The folder of the corpus that comes with the package."""
    return Path(__file__).resolve().parent.parent / "sample"


def resolve(corpus: str) -> Path:
    """The folder or file that `corpus` names; "sample" is the corpus in the package."""
    return sample_corpus() if corpus == SAMPLE else Path(corpus)


def languages(corpus: Path, form: TextForm = USUAL_FORM) -> dict[str, Sources]:
    """The sources of each language of a corpus, sorted by language. form: that of their text

    Raises DataError where the corpus is missing or has no text, where it gives a language in two
    ways or in an unknown form, and where a name cannot be that of a language. Files of other kinds
    in a folder are skipped: `name_skipped` names them.
    """
    corpus = Path(corpus)
    if corpus.suffix in YAML and corpus.is_file():
        found = dict(sorted(yaml_languages(corpus).items()))
        return _in_form(found, form)
    if not corpus.is_dir():
        raise DataError(
            f"the corpus {corpus} is not a folder; give one that holds a file such as en.txt for "
            f"each language, a YAML file of sources, or the word {SAMPLE}"
        )
    return _in_form(folder_languages(corpus), form)


def _in_form(found: dict[str, Sources], form: TextForm) -> dict[str, Sources]:
    return {name: tuple(replace(one, form=form) for one in text) for name, text in found.items()}


def name_skipped(corpus: Path, say: Callable[[str], None]) -> list[str]:
    """Says which files in a corpus folder are skipped by their names; their sorted paths."""
    skipped = skipped_files(corpus) if corpus.is_dir() else []
    if skipped:
        more = f" and {len(skipped) - LISTED} more" if len(skipped) > LISTED else ""
        say(f"Skipped in {corpus}, not text by their names: {', '.join(skipped[:LISTED])}{more}")
    return skipped
