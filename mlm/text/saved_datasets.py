"""Documents in folders that `save_to_disk` of the package datasets made."""

from collections.abc import Iterator, Sequence

from mlm.errors import DataError
from mlm.text.lines import Skipped, paragraphs
from mlm.text.sources import Source, unreadable
from mlm.text.streams import UNREADABLE

ROWS = 1000  # of a saved dataset, at a time


def dataset_documents(source: Source, skipped: Skipped) -> Iterator[list[str]]:
    """The rows of a folder that `save_to_disk` of the package datasets made."""
    try:
        from datasets import Dataset, DatasetDict, load_from_disk
    except ImportError:
        raise DataError(
            f"{source.place} is a saved dataset, and the package datasets, which reads it, is not "
            f"installed; run pip install 'polymlm[datasets]'"
        ) from None
    number = 0
    try:
        saved = load_from_disk(source.place)
        if isinstance(saved, DatasetDict):
            _check_has(source.place, "split", source.split, list(saved))
            saved = saved[source.split]
        assert isinstance(saved, Dataset), saved
        _check_has(source.place, "column", source.column, saved.column_names)
        for rows in saved.select_columns([source.column]).iter(ROWS):
            assert isinstance(rows, dict)
            for text in rows[source.column]:
                number += 1
                if document := _row(f"{source.place}, row {number}", text, skipped):
                    yield document
    except (*UNREADABLE, ValueError) as error:  # pyarrow's errors are of these
        if isinstance(error, DataError):
            raise
        raise unreadable(source.place, f" after row {number}", error) from None


def _row(where: str, text: object, skipped: Skipped) -> list[str]:
    if isinstance(text, str):
        return paragraphs(text)
    if not skipped.bad_lines:
        raise DataError(
            f"{where} has {type(text).__name__} instead of text; give the column that holds "
            f"text, correct the row, or add on_bad_line=skip"
        )
    skipped.add_line("" if text is None else str(text))
    return []


def _check_has(place: str, what: str, name: str, names: Sequence[object]) -> None:
    if name not in names:
        raise DataError(
            f"{place} has no {what} {name}, and it has {', '.join(map(str, names))}; give one of "
            f"these as {{datasets: {place}, {what}: {names[0]}}}"
        )
