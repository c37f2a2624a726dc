"""Folders that `save_to_disk` of the package datasets made."""

import os
import subprocess
import sys

import pytest

from mlm.errors import DataError
from mlm.text.corpus import languages
from mlm.text.documents import documents
from mlm.text.lines import Skipped
from tests.places import ROOT
from tests.text.test_corpus import DOCUMENTS
from tests.text.test_sources import read, sources_file


def test_saved_datasets_give_their_rows_as_documents(tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = ["\n".join(document) for document in DOCUMENTS]
    made = datasets.Dataset.from_dict({"text": texts, "body": texts[::-1]})
    made.save_to_disk(str(tmp_path / "corpus" / "de"))
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(
        str(tmp_path / "both")
    )
    path = sources_file(
        tmp_path,
        de={"datasets": "corpus/de"},
        fr={"datasets": "corpus/de", "column": "body"},
        it={"datasets": "both"},
        pt={"datasets": "both", "split": "test"},
        sw=["corpus/de", {"datasets": "both", "split": "test"}],
        ta={"datasets": "both", "split": "none"},
        th={"datasets": "corpus/de", "column": "none"},
    )
    assert read(tmp_path / "corpus") == read(path, "de") == read(path, "it") == DOCUMENTS
    assert read(path, "fr") == DOCUMENTS[::-1]
    assert read(path, "pt") == DOCUMENTS[1:2]
    assert read(path, "sw") == [*DOCUMENTS, DOCUMENTS[1]]
    with pytest.raises(DataError, match=r"both has no split none, and it has train, test; give"):
        read(path, "ta")
    with pytest.raises(DataError, match=r"de has no column none, and it has text, body; give"):
        read(path, "th")
    assert len(languages(path)["de"][0].digest()) == 128


def test_saved_datasets_are_read_in_whatever_format_they_were_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["one", "two"], "id": [1, 2]})
    for number, format in enumerate(
        ({"type": "arrow"}, {"type": "pandas"}, {"type": "numpy", "columns": ["id"]})
    ):
        made.with_format(**format).save_to_disk(str(tmp_path / str(number) / "de"))
        assert read(tmp_path / str(number)) == [["one"], ["two"]]


def test_saved_datasets_without_rows_are_refused_and_do_not_disturb_another_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["one"]})
    empty = datasets.Dataset.from_dict({"text": []})
    both = datasets.DatasetDict({"train": made, "test": empty})
    empty.save_to_disk(str(tmp_path / "empty" / "de"))
    both.save_to_disk(str(tmp_path / "both" / "de"))
    assert read(tmp_path / "both") == [["one"]]
    with pytest.raises(DataError, match=r"empty/de has no rows; save it again, or remove it$"):
        read(tmp_path / "empty")
    path = sources_file(tmp_path, de={"datasets": "both/de", "split": "test"})
    with pytest.raises(DataError, match=r"both/de/test has no rows"):
        read(path)


def test_saved_datasets_report_or_skip_rows_without_text(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["one", None, "three"]})
    made.save_to_disk(str(tmp_path / "de"))
    with pytest.raises(DataError, match=r"de, row 2 has NoneType instead of text; give the"):
        read(tmp_path)
    skipped = Skipped(bad_lines=True)
    assert list(documents(languages(tmp_path)["de"], skipped)) == [["one"], ["three"]]
    assert (skipped.lines, skipped.characters) == (1, 0)


def test_saved_datasets_report_damage_in_one_sentence(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["one"] * 1000}).save_to_disk(str(tmp_path / "de"))
    (arrow,) = (tmp_path / "de").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match=r"de cannot be read after row 0: "):
        read(tmp_path)


def test_saved_datasets_name_the_package_to_install(tmp_path):
    (tmp_path / "de").mkdir()
    (tmp_path / "de" / "state.json").write_text("{}")
    program = (
        "import sys; sys.modules['datasets'] = None\n"
        "from pathlib import Path\n"
        "from mlm.text.corpus import languages\n"
        "from mlm.text.documents import documents\n"
        "list(documents(languages(Path(sys.argv[1]))['de']))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "not installed; run pip install 'polymlm[datasets]'" in ran.stderr
