"""Text that is not in one file for each language: parts, tars, URLs, commands, datasets."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml

from mlm.data.prepare import corpus_digest
from mlm.data.writing import shards
from mlm.errors import DataError
from mlm.text.corpus import languages
from mlm.text.documents import documents
from mlm.text.sources import Source, source
from tests.data.writing.test_shards import same_folders
from tests.text.test_corpus import DOCUMENTS, JSONL, PACK, TEXT
from tests.text_fixtures import documents_of, shards_folder, tokenizer


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar as other programs write it, of files that may not be text."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def of_documents(
    kind: str, found: list[list[str]], first: int = 0, pictures: bool = True
) -> dict[str, bytes]:
    members = {}
    for number, document in enumerate(found, first):
        text = "\n".join(document)
        raw = text if kind == "txt" else json.dumps({"id": number, "text": text})
        members[f"a/{number:05d}.{kind}"] = raw.encode()
        if pictures:
            members[f"a/{number:05d}.jpg"] = b"\xff\xd8"
    return members


def read(corpus: Path, language: str = "de") -> list[list[str]]:
    return list(documents(languages(corpus)[language]))


def sources_file(folder: Path, **given) -> Path:
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


@pytest.fixture
def server(tmp_path):
    """A real file server in its own process; gives its address."""
    (tmp_path / "served").mkdir()
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path / "served",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        match = re.search(r"port (\d+)", process.stdout.readline())
        assert match is not None
        yield f"http://127.0.0.1:{match[1]}"
    finally:
        process.kill()
        process.wait()


def test_languages_read_numbered_parts_in_order(tmp_path):
    one, two, three = (
        TEXT.split("\n\n")[0],
        json.dumps({"text": "第二の文書。"}),
        of_documents("txt", DOCUMENTS[2:]),
    )
    for folder in (tmp_path / "numbered", tmp_path / "inside" / "de"):
        folder.mkdir(parents=True)
        (folder / "de-0000.txt.gz").write_bytes(gzip.compress(one.encode()))
        (folder / "de-0001.jsonl").write_text(two)
        write_tar(folder / "de-0002.tar", three)
        (folder / "README.md").write_text("no text")
    assert read(tmp_path / "numbered") == read(tmp_path / "inside") == DOCUMENTS
    (tmp_path / "numbered" / "de").mkdir()  # a folder without text does not count
    assert read(tmp_path / "numbered") == DOCUMENTS
    (tmp_path / "numbered" / "de" / "more.txt").write_text("more")
    with pytest.raises(DataError, match=r"de and de-0000.txt.gz .* both of the language de"):
        languages(tmp_path / "numbered")


def test_languages_take_a_name_with_few_digits_as_a_language(tmp_path):
    (tmp_path / "es-419.txt").write_text("hola")
    assert list(languages(tmp_path)) == ["es-419"]


def test_yaml_corpus_names_all_kinds_of_sources(tmp_path):
    (tmp_path / "text").mkdir()
    for number, document in enumerate(DOCUMENTS):
        write_tar(tmp_path / f"de-{number:03d}.tar", of_documents("txt", [document]))
        (tmp_path / "text" / f"{number}.txt").write_text("\n".join(document))
    path = sources_file(
        tmp_path,
        de="de-{000..002}.tar",
        fr=["text/2.txt", str(tmp_path / "text" / "0.txt")],
        it="text/*.txt",
        pt="text",
        sw=f"pipe:cat {tmp_path}/de-{{000..001}}.tar",
    )
    assert list(languages(path)) == ["de", "fr", "it", "pt", "sw"]
    assert read(path, "de") == read(path, "it") == read(path, "pt") == DOCUMENTS
    assert read(path, "fr") == [DOCUMENTS[2], DOCUMENTS[0]]
    assert read(path, "sw") == DOCUMENTS[:2]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("de: [", "cannot be read as YAML"),
        ("- de", "is not a mapping of languages to sources; write lines such as"),
        ("no: a.txt", "names the language False, .*; put it in quotes"),
        ("d.e: a.txt", "names the language 'd.e'"),
        ("de: []", "gives de no source; add one"),
        ("de: 3", "gives de the source 3, which is neither text nor a mapping"),
        ("de: a.txt", "gives de the source .*a.txt, which does not exist"),
        ("de: a-*.txt", "gives de the source .*a-\\*.txt, which matches no file"),
        ("de: [http://x/b.txt, a-*.txt]", "gives de the source .*a-\\*.txt, which matches no file"),
        ("de: sources.yaml", "sources.yaml, which is of an unknown kind; give names that end in"),
        ("de: http://x/a.csv", "http://x/a.csv, which is of an unknown kind"),
        ("de: {dataset: a}", "which is not of the form {datasets: PATH, split: train"),
        ("de: {datasets: a, split: 3}", "which is not of the form"),
        ("de: a.txt\nsw: b.txt\nde: c.txt", r"\(de is given a second time in line 3\); correct"),
        ("de: [http://x/a.txt, http://x/a.txt]", "the source http://x/a.txt twice; remove one"),
        ("de: {datasets: a}", "gives de the saved dataset .*a, which save_to_disk has not"),
    ],
)
def test_yaml_corpus_mistakes_are_reported_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "sources.yaml"
    path.write_text(content)
    with pytest.raises(DataError, match=sentence) as raised:
        languages(path)
    assert "\n" not in str(raised.value)


def test_yaml_corpus_takes_two_stars_as_any_depth_and_its_own_folder_as_no_pattern(tmp_path):
    folder = tmp_path / "data [v2] {a,b} *"
    (folder / "w" / "A" / "B.txt").mkdir(parents=True)
    for number, place in enumerate(("w/a.txt", "w/A/b.txt", "w/A/B.txt/c.txt", "w/A/[d].txt")):
        (folder / place).write_text(f"{number}")
    path = sources_file(folder, de="w/**/*.txt", fr="w/**", it="w/A/[d].txt", pt="w/A/[ab].txt")
    for language in ("de", "fr"):
        assert sorted(read(path, language)) == [["0"], ["1"], ["2"], ["3"]]
    assert read(path, "it") == [["3"]]
    assert read(path, "pt") == [["1"]]


def test_yaml_corpus_expands_only_ranges_in_commands(tmp_path):
    """The braces of `{print $1,$2}`, for awk, stay as they are."""
    command = "pipe:cat {x,y}-{08..10}.tar | awk '{print $1,$2}' -"
    found = languages(sources_file(tmp_path, de=command))["de"]
    tail = "tar | awk '{print $1,$2}' -"
    assert [one.place for one in found] == [
        f"pipe:cat {{x,y}}-{n}.{tail}" for n in ("08", "09", "10")
    ]


def test_sources_are_read_over_http(tmp_path, server):
    served = tmp_path / "served"
    for number, document in enumerate(DOCUMENTS):
        write_tar(served / f"de-{number}.tar", of_documents("json", [document]))
    for packed, pack in PACK.items():
        (served / f"de.txt{packed}").write_bytes(pack(TEXT.encode()))
    (served / "de.jsonl").write_text(JSONL)
    names = ["de-{0..2}.tar", *(f"de.txt{packed}" for packed in PACK), "de.jsonl?download=1"]
    for name in names:
        assert read(sources_file(tmp_path, de=f"{server}/{name}")) == DOCUMENTS
    for name in ("none.tar", "none.txt.gz"):
        with pytest.raises(DataError, match=rf"{server}/{name} cannot be read.*: the command that"):
            read(sources_file(tmp_path, de=f"{server}/{name}"))


def test_commands_that_fail_are_reported(tmp_path):
    path = write_tar(tmp_path / "de.tar", of_documents("txt", DOCUMENTS))
    with pytest.raises(DataError, match=r"cannot be read after .*2.txt: .* exit code 7; make"):
        read(sources_file(tmp_path, de=f"pipe:cat {path}; exit 7"))
    # Without its final zeros a tar that breaks off after a document would look whole.
    with pytest.raises(DataError, match=r"cannot be read after a/00000.txt: .* exit code 7"):
        read(sources_file(tmp_path, de=f"pipe:head -c 2048 {path}; exit 7"))


def test_commands_end_when_their_output_is_closed(tmp_path):
    command = f"pipe:echo $$ > {tmp_path}/pid; echo one; echo; exec yes"
    stream = documents((Source(command, "txt"),))
    assert next(stream) == ["one"]
    assert isinstance(stream, Generator)
    stream.close()
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_shards_of_sources_equal_those_of_files(tmp_path, server):
    """The text of the fixtures from several kinds of sources."""
    served = tmp_path / "served"
    write_tar(served / "el.tar", of_documents("json", documents_of("el"), pictures=False))
    for number in range(3):
        part = documents_of("en")[50 * number : 50 * number + 50]
        members = of_documents("txt", part, 50 * number, pictures=False)
        write_tar(tmp_path / f"en-{number}.tar", members)
    for number in range(2):
        part = documents_of("ja")[number * 13 : 13 + number * 12]
        text = "\n\n".join("\n".join(document) for document in part)
        (tmp_path / f"ja-{number:04d}.txt.gz").write_bytes(gzip.compress(text.encode()))
    lines = (json.dumps({"text": "\n".join(document)}) for document in documents_of("sw"))
    (served / "sw.jsonl").write_text("\n".join(lines))
    path = sources_file(
        tmp_path,
        el=f"pipe:curl -s {server}/el.tar",
        en="en-{0..2}.tar",
        ja="ja-*.txt.gz",
        sw=f"{server}/sw.jsonl",
    )
    shards.write(path, tokenizer(), tmp_path / "out", workers=1)
    assert same_folders(tmp_path / "out", shards_folder())


def test_corpus_digest_follows_the_bytes_of_sources(tmp_path, server):
    served = tmp_path / "served"

    def digest() -> str:
        return corpus_digest(path, lambda done, total: None)

    (served / "de.txt").write_text("one\n\ntwo\n")
    path = sources_file(tmp_path, de=f"{server}/de.txt")
    first = digest()
    assert digest() == first
    (served / "de.txt").write_text("one\n\nTWO\n")
    assert digest() != first


def test_source_kind_follows_the_name():
    kinds = {
        "a/b.txt": ("txt", None),
        "b.tar.xz": ("tar", "xz"),
        "b.tgz": ("tar", "gz"),
        "a.ndjson": ("jsonl", None),
        "a.ndjson.bz2": ("jsonl", "bz2"),
        "c4-en.json.gz": ("jsonl", "gz"),
        "https://h/a.txt/b.jsonl.zst?c=d.tar#e": ("jsonl", "zst"),
        "a.parquet": ("parquet", None),
        "pipe:zcat a.txt": ("tar", None),
    }
    for place, expected in kinds.items():
        found = source(place)
        assert found is not None
        assert (found.kind, found.packed) == expected
    assert source("a.csv") is source("a.json") is None
