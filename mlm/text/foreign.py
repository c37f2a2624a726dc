"""Documents in the formats of other programs: tars as webdataset reads them, saved datasets."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from mlm.errors import DataError
from mlm.text.compressed import READ
from mlm.text.lines import Skip, decoded, json_document, json_lines, paragraphs, split
from mlm.text.sources import Source, unreadable
from mlm.text.streams import UNREADABLE, opened

MEMBERS = ("txt", "json", "jsonl")
ROWS = 1000  # of a saved dataset, at a time


def tar_documents(source: Source, bad: Skip) -> Iterator[list[str]]:
    """Documents of the members of a tar, which webdataset reads."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    key, found = "", False
    try:
        with opened(source.place, source.packed) as stream:
            opened_tar = [{"url": source.place, "stream": stream}]
            files = tar_file_expander(opened_tar, select_files=lambda name: bool(_ending(name)))
            for sample in group_by_keys(files):
                key = sample["__key__"]
                for suffix, raw in sample.items():
                    if ending := _ending(f".{suffix}"):
                        found = True
                        where = f"{source.place}, {key}.{suffix}"
                        yield from _member(where, ending, raw, bad)
            # After its end a tar is padded with zeros; other bytes would never be read.
            while block := stream.read(READ):
                if block.count(0) != len(block):
                    raise ValueError("something is after the end of the tar, such as another tar")
    except (*UNREADABLE, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(source.place, f" after {key}" if key else "", error) from None
    if not found:
        raise DataError(
            f"{source.place} holds no text; give tars with members that end in .txt, .json or "
            f".jsonl"
        )


def _ending(name: str) -> str | None:
    ending = PurePosixPath(name).name.rpartition(".")[2].lower()
    return ending if "." in name and ending in MEMBERS else None


def _member(where: str, ending: str, raw: bytes, bad: Skip) -> Iterator[list[str]]:
    groups = decoded(where, [raw] if raw else [], bad, [0])
    if ending == "jsonl":
        yield from json_lines(where, groups, bad)
        return
    lines = [line for _, text in groups for line in split(text)]
    if ending == "json":
        document = json_document(where, "\n".join(lines), bad) if lines else []
    else:
        document = [stripped for line in lines if (stripped := line.strip())]
    if document:
        yield document


def dataset_documents(source: Source, bad: Skip) -> Iterator[list[str]]:
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
                if document := _row(f"{source.place}, row {number}", text, bad):
                    yield document
    except (*UNREADABLE, ValueError) as error:  # pyarrow's errors are of these
        if isinstance(error, DataError):
            raise
        raise unreadable(source.place, f" after row {number}", error) from None


def _row(where: str, text: object, bad: Skip) -> list[str]:
    if isinstance(text, str):
        return paragraphs(text)
    if bad is None:
        raise DataError(
            f"{where} has {type(text).__name__} instead of text; give the column that holds "
            f"text, correct the row, or add on_bad_line=skip"
        )
    bad.add("" if text is None else str(text))
    return []


def _check_has(place: str, what: str, name: str, names: Sequence[object]) -> None:
    if name not in names:
        raise DataError(
            f"{place} has no {what} {name}, and it has {', '.join(map(str, names))}; give one of "
            f"these as {{datasets: {place}, {what}: {names[0]}}}"
        )
