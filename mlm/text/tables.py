"""Documents in rows of a table: of parquet files, and of what the package datasets saved."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlm.errors import DataError
from mlm.text.lines import Skipped, paragraphs
from mlm.text.sources import Source, unreadable
from mlm.text.streams import UNREADABLE, is_remote

SPLITS = "dataset_dict.json"
ROWS = 1000  # at a time


def dataset_documents(source: Source, skipped: Skipped) -> Iterator[list[str]]:
    """The rows of a folder that `save_to_disk` of the package datasets made."""
    return _documents(source, _dataset_texts(source), skipped)


def parquet_documents(source: Source, skipped: Skipped) -> Iterator[list[str]]:
    """The rows of a parquet file, some of which are in memory at a time."""
    return _documents(source, _parquet_texts(source), skipped)


def _documents(source: Source, texts: Iterator[object], skipped: Skipped) -> Iterator[list[str]]:
    number = 0
    try:
        for number, text in enumerate(texts, 1):
            if document := _row(f"{source.place}, row {number}", text, skipped):
                yield document
    except (*UNREADABLE, ValueError, KeyError) as error:  # pyarrow's errors are of these
        if isinstance(error, DataError):
            raise
        raise unreadable(source.place, f" after row {number}", error) from None


def _dataset_texts(source: Source) -> Iterator[object]:
    try:
        from datasets import Dataset, load_from_disk
    except ImportError:
        raise _not_installed(source, "a saved dataset", "datasets", "datasets") from None
    folder = _folder(source)
    if not json.loads((folder / "state.json").read_text())["_data_files"]:
        raise DataError(f"{folder} has no rows; save it again, or remove it")
    saved = load_from_disk(str(folder))
    assert isinstance(saved, Dataset), saved
    saved = saved.with_format(None)  # it may have been saved as arrow, or with some columns
    _check_has(source.place, "column", source.field, saved.column_names)
    for rows in saved.select_columns([source.field]).iter(ROWS):
        assert isinstance(rows, dict)
        yield from rows[source.field]


def _parquet_texts(source: Source) -> Iterator[object]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise _not_installed(source, "a parquet file", "pyarrow", "parquet") from None
    if is_remote(source.place):
        raise DataError(f"{source.place} is a parquet file, read from its end; download it first")
    with parquet.ParquetFile(source.place) as file:
        _check_has(source.place, "column", source.field, file.schema_arrow.names)
        for rows in file.iter_batches(ROWS, columns=[source.field]):
            yield from rows.column(0).to_pylist()


def _not_installed(source: Source, what: str, package: str, extra: str) -> DataError:
    return DataError(
        f"{source.place} is {what}, and the package {package}, which reads it, is not installed; "
        f"run pip install 'polymlm[{extra}]'"
    )


def _folder(source: Source) -> Path:
    """That of the split, which is loaded alone: another one may be empty, which fails."""
    place = Path(source.place)
    if not (place / SPLITS).is_file():
        return place
    splits = json.loads((place / SPLITS).read_text())["splits"]
    _check_has(source.place, "split", source.split, splits)
    return place / source.split


def _row(where: str, text: object, skipped: Skipped) -> list[str]:
    if isinstance(text, str):
        return paragraphs(text)
    if not skipped.bad_lines:
        raise DataError(
            f"{where} has {type(text).__name__} instead of text; give the column that holds "
            f"text as field=NAME, correct the row, or add on_bad_line=skip"
        )
    skipped.add_line("" if text is None else str(text))
    return []


def _check_has(place: str, what: str, name: str, names: Sequence[object]) -> None:
    if name not in names:
        remedy = f"{{datasets: {place}, split: {names[0]}}}" if what == "split" else "field=NAME"
        raise DataError(
            f"{place} has no {what} {name}, and it has {', '.join(map(str, names))}; give one of "
            f"these as {remedy}"
        )
