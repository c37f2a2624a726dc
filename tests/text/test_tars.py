"""Tars of webdataset and of other programs as text."""

import gzip
import io
import json
import lzma
import tarfile
import tracemalloc

import pytest
from webdataset.writer import TarWriter

from mlm.data.writing import shards
from mlm.errors import DataError
from mlm.text.corpus import languages
from mlm.text.documents import documents
from mlm.text.lines import Skipped
from tests.text.test_corpus import DOCUMENTS
from tests.text.test_sources import of_documents, read, write_tar
from tests.text_fixtures import paragraphs, tokenizer


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_tars_of_other_programs_are_read(tmp_path, kind):
    write_tar(tmp_path / "de.tar", of_documents(kind, DOCUMENTS))
    assert read(tmp_path) == DOCUMENTS
    (tmp_path / "de.tar").write_bytes(gzip.compress((tmp_path / "de.tar").read_bytes()))
    (tmp_path / "de.tar").rename(tmp_path / "de.tar.gz")
    assert read(tmp_path) == DOCUMENTS


def test_tars_of_webdataset_and_json_lines_are_read(tmp_path):
    with TarWriter(str(tmp_path / "de.tar")) as writer:
        writer.write({"__key__": "b", "json": {"text": "one\n\n two"}, "cls": 3})
        writer.write({"__key__": "c", "en.TXT": "three"})
        writer.write({"__key__": "d", "jsonl": '{"text": "four"}\n{"text": ""}\n{"text": "five"}'})
    assert read(tmp_path) == [["one", "two"], ["three"], ["four"], ["five"]]


def test_tars_have_documents_in_compressed_members_and_name_what_is_no_text(tmp_path):
    path = write_tar(
        tmp_path / "de.tar",
        {
            "./a.txt": b"one",
            "b.txt.gz": gzip.compress(b"two"),
            "c.jsonl.xz": lzma.compress(b'{"text": "three"}'),
            "../d.TXT": b"four",
            "._a.txt": b"\0\5\x16\7 of macOS",
            "__MACOSX/x/b.txt": b"\0\5\x16\7 of macOS",
            ".git/e.txt": b"no",
            "f.jpg": b"\xff",
            "g.JPG": b"\xff",
            "README": b"no",
            "h.0123456789": b"no",
        },
    )
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("x.txt")
            info.type, info.linkname = kind, "a.txt"
            tar.addfile(info)
    skipped = Skipped()
    found = list(documents(languages(tmp_path)["de"], skipped))
    assert found == [["one"], ["two"], ["three"], ["four"]]
    assert skipped.members == {
        "hidden file": 3,
        ".jpg": 2,
        "other file": 2,
        "link": 2,
        "special file": 1,
    }


def test_shards_report_and_say_which_members_of_tars_are_no_text(tmp_path):
    (tmp_path / "text").mkdir()
    for language, others in (("ja", {"a.jpg": b"\xff"}), ("en", {})):
        members = {f"{n}.txt": line.encode() for n, line in enumerate(paragraphs(language, 30))}
        write_tar(tmp_path / "text" / f"{language}.tar", members | others)
    said: list[str] = []
    shards.write(tmp_path / "text", tokenizer(), tmp_path / "out", workers=1, say=said.append)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["languages"]["ja"]["skipped members"] == {".jpg": 1}
    assert "skipped members" not in report["languages"]["en"]
    assert said[-1] == "Skipped in the tars of ja: 1 x .jpg"


def test_tars_take_no_memory_for_members_that_were_read(tmp_path):
    """Names such as wiki.000001.txt are one sample to webdataset, which it holds as a whole."""
    path = tmp_path / "de.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(300):
            info = tarfile.TarInfo(f"wiki.{number:06d}.txt")
            info.size = 100_000
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    stream = documents(languages(tmp_path)["de"])
    next(stream)
    tracemalloc.start()
    assert sum(1 for _ in stream) == 299
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a.txt": b"fine", "b/c.txt": b"good\nb\xffd"}, r"de.tar, b/c.txt, line 2: byte 0xff at"),
        ({"a.json": b'{"text": 3}'}, r"de.tar, a.json is not a JSON object whose text is"),
        ({"a.jsonl": b'{"text": "x"}\n{'}, r"de.tar, a.jsonl, line 2 is not a JSON object"),
        ({"a.npy": b"0"}, r"de.tar holds no text; give tars with members that end in .txt"),
    ],
)
def test_tars_with_bad_members_are_reported(tmp_path, members, sentence):
    write_tar(tmp_path / "de.tar", members)
    with pytest.raises(DataError, match=sentence):
        read(tmp_path)


def test_tars_that_are_cut_or_joined_are_refused(tmp_path):
    path = write_tar(tmp_path / "de.tar", {"a.txt": b"x" * 3000, "b.txt": b"y" * 3000})
    raw = path.read_bytes()
    path.write_bytes(raw[:6000])
    with pytest.raises(DataError, match=r"de.tar cannot be read after b.txt: unexpected end of"):
        read(tmp_path)
    path.write_bytes(raw + raw)
    with pytest.raises(DataError, match=r"de.tar cannot be read after b.txt: something is after"):
        read(tmp_path)
    path.write_bytes(b"no tar at all")
    with pytest.raises(DataError, match=r"de.tar cannot be read: "):
        read(tmp_path)


def test_tars_that_are_joined_without_padding_are_refused(tmp_path):
    """Both are within the 10,240 bytes that tarfile reads at once by default."""
    path = write_tar(tmp_path / "de.tar", {"a.txt": b"one"})
    short = path.read_bytes()[: 512 + 512 + 1024]
    path.write_bytes(short)
    assert read(tmp_path) == [["one"]]
    path.write_bytes(short + short)
    with pytest.raises(DataError, match=r"de.tar cannot be read after a.txt: something is after"):
        read(tmp_path)


@pytest.mark.parametrize("member", range(4))
@pytest.mark.parametrize("damage", ["no end", "cut in a header", "checksum", "no magic"])
def test_tars_with_damage_in_any_header_are_refused(tmp_path, member, damage):
    """The library takes damage in all but the first header for the end."""
    members = {f"{number}.txt": b"x" * 600 for number in range(4)}
    path = write_tar(tmp_path / "de.tar", members)
    raw = bytearray(path.read_bytes())
    header = member * (512 + 1024)
    if damage == "no end":
        raw = raw[: header + 512 + 1024]
    elif damage == "cut in a header":
        raw = raw[: header + 300]
    elif damage == "checksum":
        raw[header + 148] ^= 1
    else:
        raw[header : header + 512] = b"\1" * 512
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"de.tar cannot be read.*: .*(cut|damaged)"):
        read(tmp_path)
