"""Where the text is in objects and tables, and where documents end in plain text."""

import json
from pathlib import Path

import pytest

from mlm.data.writing import shards
from mlm.data.writing.shards import Options
from mlm.errors import DataError
from mlm.text.corpus import languages
from mlm.text.documents import documents
from mlm.text.lines import Skipped
from mlm.text.sources import TextForm
from mlm.tokenizer.training import train
from tests.text.test_corpus import DOCUMENTS, TEXT
from tests.text.test_sources import sources_file, write_tar
from tests.text_fixtures import paragraphs, tokenizer

BODY = TextForm(field="body")
ROWS = [
    {"body": "\n".join(document), "text": "no", "id": n} for n, document in enumerate(DOCUMENTS)
]


def read(corpus: Path, form: TextForm, language: str = "de") -> list[list[str]]:
    return list(documents(languages(corpus, form)[language]))


def write_parquet(path: Path, rows: list[dict], size: int = 2) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=size)


def test_field_is_the_text_in_every_kind_of_file(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    for kind in ("jsonl", "parquet", "tar", "datasets"):
        (tmp_path / kind).mkdir()
    (tmp_path / "jsonl" / "de.ndjson").write_text(lines)
    write_parquet(tmp_path / "parquet" / "de.parquet", ROWS)
    members = {f"{row['id']}.json": json.dumps(row).encode() for row in ROWS[:2]}
    members["2.jsonl"] = json.dumps(ROWS[2]).encode()
    write_tar(tmp_path / "tar" / "de.tar", members)
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "datasets" / "de"))
    for kind in ("jsonl", "parquet", "tar", "datasets"):
        assert read(tmp_path / kind, BODY) == DOCUMENTS
        assert read(tmp_path / kind, TextForm()) == [["no"]] * 3
    # A column that the corpus gives counts more than the field of the command.
    path = sources_file(tmp_path, de={"datasets": "datasets/de", "column": "text"})
    assert read(path, BODY) == [["no"]] * 3


def test_missing_field_is_reported_with_the_setting_that_mends_it(tmp_path):
    (tmp_path / "de.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DataError, match=r"JSON object whose content is a string .* field=NAME"):
        read(tmp_path, TextForm("content"))
    (tmp_path / "de.jsonl").unlink()
    write_parquet(tmp_path / "de.parquet", ROWS)
    with pytest.raises(DataError, match=r"no column content, .* body, text, id; give one of these"):
        read(tmp_path, TextForm("content"))


def test_document_line_takes_each_line_of_plain_text_as_a_document(tmp_path):
    (tmp_path / "de.txt").write_text(TEXT + "\n  \n last ")
    expected = [[line] for document in DOCUMENTS for line in document] + [["last"]]
    assert read(tmp_path, TextForm(document="line")) == expected
    assert read(tmp_path, TextForm()) == [*DOCUMENTS, ["last"]]


def test_parquet_reports_rows_without_text_and_damage(tmp_path):
    path = tmp_path / "de.parquet"
    write_parquet(path, [{"text": "one"}, {"text": None}, {"text": "a\n\nb"}])
    with pytest.raises(DataError, match=r"de.parquet, row 2 has NoneType instead of text"):
        read(tmp_path, TextForm())
    skipped = Skipped(bad_lines=True)
    found = list(documents(languages(tmp_path)["de"], skipped))
    assert (found, skipped.lines) == ([["one"], ["a", "b"]], 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"de.parquet cannot be read after row 0: "):
        read(tmp_path, TextForm())
    remote = sources_file(tmp_path, de="https://host/de.parquet")
    with pytest.raises(DataError, match=r"de.parquet is a parquet file, .* download it first"):
        read(remote, TextForm())


def test_shards_and_tokenizer_are_made_of_the_same_form(tmp_path):
    """Each line as a document, in text and in objects with another field."""
    lines = paragraphs("en", 200)
    for name, text in (
        ("txt", "\n".join(lines)),
        ("jsonl", "\n".join(json.dumps({"body": line}) for line in lines)),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"en.{name}").write_text(text)
        form = TextForm("body", "line")
        out = tmp_path / f"{name}-out"
        shards.write(tmp_path / name, tokenizer(), out, 1, options=Options(form=form))
        train(tmp_path / name, tmp_path / f"{name}-tokenizer", 150, form=form)
    report = json.loads((tmp_path / "txt-out" / "report.json").read_text())
    assert report["total"]["documents"] == 200
    for made, file in (("out", "samples.npy"), ("tokenizer", "sentencepiece.bpe.model")):
        one, other = (
            (tmp_path / f"{name}-{made}" / file).read_bytes() for name in ("txt", "jsonl")
        )
        assert one == other
