import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from mlm.errors import DataError
from mlm.text import documents as reading
from mlm.text.corpus import languages, name_skipped, resolve, sample_corpus
from mlm.text.documents import documents
from mlm.text.sources import Source, source
from tests.places import REAL, ROOT

DOCUMENTS = [["Erster Absatz.", "Zweiter Absatz."], ["第二の文書。"], ["τρία", "δύο", "ένα"]]
TEXT = "\n\n".join("\n".join(document) for document in DOCUMENTS) + "\n"
JSONL = "".join(json.dumps({"id": 1, "text": "\n".join(one)}) + "\n" for one in DOCUMENTS)
PACK = {
    "": bytes,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
}


def text_of(path) -> tuple[Source, ...]:
    found = source(str(path))
    assert found is not None, path
    return (found,)


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize(("kind", "text"), [("txt", TEXT), ("jsonl", JSONL)])
def test_documents_are_equal_for_every_kind_of_file(tmp_path, kind, text, packed):
    path = tmp_path / f"de.{kind}{packed}"
    path.write_bytes(PACK[packed](text.encode()))
    assert languages(tmp_path) == {"de": text_of(path)}
    assert list(documents(text_of(path))) == DOCUMENTS


@pytest.mark.parametrize("packed", PACK)
def test_documents_read_files_compressed_in_parts_to_the_end(tmp_path, packed):
    path = tmp_path / f"de.txt{packed}"
    half = len(TEXT) // 2
    path.write_bytes(PACK[packed](TEXT[:half].encode()) + PACK[packed](TEXT[half:].encode()))
    assert list(documents(text_of(path))) == DOCUMENTS


def test_languages_are_sorted_and_other_files_are_skipped(tmp_path):
    for folder in ("folder.txt", "de"):
        (tmp_path / folder).mkdir()
    names = ("sw.txt", "en.jsonl.gz", "zh-Hans.txt.xz", "de/a.tar", ".fr.txt", "README", "de/.b")
    others = ("COUNTS.json", "b.zip", "readmes.md", "de/a.csv")
    for name in names + others:
        (tmp_path / name).touch()
    assert list(languages(tmp_path)) == ["de", "en", "sw", "zh-Hans"]
    said: list[str] = []
    assert name_skipped(tmp_path, said.append) == sorted([*others, "folder.txt"])
    names = "COUNTS.json, b.zip, de/a.csv, folder.txt, readmes.md"
    assert said == [f"Skipped in {tmp_path}, not text by their names: {names}"]


def test_languages_skip_hidden_files(tmp_path):
    """Such as those that macOS leaves next to others."""
    (tmp_path / "de").mkdir()
    for name in ("de/._a.txt", "de/.old.txt", "de/a.txt", "._en.txt"):
        (tmp_path / name).write_text("Satz.\n")
    assert languages(tmp_path) == {"de": text_of(tmp_path / "de" / "a.txt")}


def test_documents_drop_white_space_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "en.txt"
    path.write_bytes("\ufeff\n\n one \r\ntwo\u2028half\r\n \t \r\n\n\nthree".encode())
    assert list(documents(text_of(path))) == [["one", "two\u2028half"], ["three"]]


def test_documents_are_streamed(tmp_path):
    path = tmp_path / "en.txt"
    path.write_bytes(b"first\n\n" * 3 + b"x" * (1 << 22) + b"\n\xff\n")
    assert next(documents(text_of(path))) == ["first"]


@pytest.mark.parametrize("packed", PACK)
def test_documents_report_invalid_utf8_by_file_and_line(tmp_path, packed):
    path = tmp_path / f"en.txt{packed}"
    path.write_bytes(PACK[packed](b"good\n\ngood\nb\xc3\x28d\n"))
    with pytest.raises(DataError, match=rf"{path}, line 4: byte 0xc3 at position 2 is not valid"):
        list(documents(text_of(path)))


@pytest.mark.parametrize(
    "line", ["{", "[]", '"text"', '{"body": "x"}', '{"text": 3}', '{"text": "\\ud800"}']
)
def test_documents_report_a_line_that_is_not_a_document(tmp_path, line):
    path = tmp_path / "en.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=r"en\.jsonl, line 3 is not a JSON object"):
        list(documents(text_of(path)))


@pytest.mark.parametrize("packed", [packed for packed in PACK if packed])
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_documents_report_a_file_that_cannot_be_decompressed(tmp_path, packed, damage):
    path = tmp_path / f"en.txt{packed}"
    whole = PACK[packed](TEXT.encode())
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no such format, at all")
    with pytest.raises(DataError, match=r"en\.txt\..* cannot be read after line [0-9]"):
        list(documents(text_of(path)))


def test_documents_refuse_a_document_too_large_for_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_DOCUMENT_CHARACTERS", 10)
    path = tmp_path / "en.txt"
    path.write_text("12345\n12345\n\n12345\n123456\n")
    stream = documents(text_of(path))
    assert next(stream) == ["12345", "12345"]
    with pytest.raises(DataError, match=r"line 5: .* longer than 10 characters; put blank lines"):
        next(stream)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_languages_pass_over_and_name_files_whose_names_are_not_utf8(tmp_path, locale):
    (tmp_path / "en").mkdir()
    for name in (b"\xe9.txt", b"en/\xe9\xff.txt"):
        (tmp_path / "en" / "a.txt").write_text("one")
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("two")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from mlm.text.corpus import languages, name_skipped\n"
        "(found,) = languages(Path(sys.argv[1]))['en']\n"
        "print(Path(found.place).name, *name_skipped(Path(sys.argv[1]), print), sep='|')\n"
    )
    environment = os.environ | {"LC_ALL": locale, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0"}
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, found = done.stdout.splitlines()
    assert said.endswith(r"not text by their names: en/\xe9\xff.txt, \xe9.txt")
    assert found == r"a.txt|en/\xe9\xff.txt|\xe9.txt"


def test_languages_refuse_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="is not a folder; give one"):
        languages(tmp_path / "none")
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match="holds no text; put a"):
        languages(tmp_path)


def test_languages_refuse_two_files_of_a_language_and_invalid_names(tmp_path):
    (tmp_path / "en.txt").touch()
    (tmp_path / "en.jsonl.zst").touch()
    with pytest.raises(DataError, match=r"en.jsonl.zst and en.txt .* both of the language en"):
        languages(tmp_path)
    (tmp_path / "en.txt").rename(tmp_path / "en.heldout.txt")
    with pytest.raises(DataError, match=r"names the language 'en\.heldout'.*; rename the file"):
        languages(tmp_path)


def test_sample_corpus_has_many_languages():
    assert resolve("sample") == sample_corpus()
    assert resolve("elsewhere/sample").parts == ("elsewhere", "sample")
    files = languages(sample_corpus())
    assert len(files) >= 24
    for text in files.values():
        assert sum(map(len, documents(text))) >= 2


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
@pytest.mark.parametrize("language", ["qu", "zh-Hant", "yi", "ff"])
def test_documents_of_real_text_have_the_published_counts(language):
    expected = json.loads((REAL / "COUNTS.json").read_text())[language]
    found = list(documents(languages(REAL)[language]))
    lines = [line for document in found for line in document]
    assert len(found) == expected["docs"]
    assert len(lines) == expected["lines"]
    if "chars" in expected:
        slack = 2 * len(lines) + len(found)  # line ends, if they were counted
        assert 0 <= expected["chars"] - sum(map(len, lines)) <= slack
