"""Text that is dropped from a corpus, and its counts."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from launch.cli import main
from mlm.data.index import Index
from mlm.data.writing import shards, tars, tokenizing
from mlm.data.writing.drops import table
from mlm.data.writing.first_pass import FirstPass, first_pass
from mlm.data.writing.heldout import LanguageText, Units, choose
from mlm.data.writing.shards import REPORT, Options
from mlm.data.writing.tokenizing import TextBatches
from mlm.errors import DataError
from mlm.text.documents import documents
from mlm.text.lines import Skipped
from mlm.text.sources import Source
from tests.data.writing.test_shards import same_folders
from tests.launch.launch_fixtures import small_config, with_shards
from tests.places import REAL
from tests.text_fixtures import corpus, documents_of, paragraphs, shards_folder, tokenizer

INVISIBLE = "\N{ZERO WIDTH SPACE}"  # a paragraph that has no ids


def write_text(path, found: list[list[str]]) -> None:
    path.write_text("\n\n".join("\n".join(document) for document in found), "utf-8")


def report_of(folder) -> dict:
    return json.loads((folder / REPORT).read_text())


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_shards_keep_the_first_of_equal_documents(tmp_path, workers):
    """The same bytes as of a corpus without the copies."""
    random_ = random.Random(1)
    dropped = {}
    for folder in ("text", "once"):
        (tmp_path / folder).mkdir()
    for language in ("el", "en", "sw"):
        once = documents_of(language)
        often = list(once)
        for _ in range(20):  # copies come after the original
            copied = random_.randrange(len(once))
            place = random_.randrange(often.index(once[copied]) + 1, len(often) + 1)
            often.insert(place, once[copied])
        # Documents that differ in a paragraph's end or in one character are no copies.
        other = [[" ".join(once[0])], [*once[1][:-1], once[1][-1] + "."]]
        write_text(tmp_path / "text" / f"{language}.txt", often + other)
        write_text(tmp_path / "once" / f"{language}.txt", once + other)
        characters = sum(len("".join(document)) for document in often)
        dropped[language] = characters - sum(len("".join(document)) for document in once)
    shards.write(
        tmp_path / "text", tokenizer(), tmp_path / "a", workers, options=Options(drop_copies=True)
    )
    shards.write(tmp_path / "once", tokenizer(), tmp_path / "b", workers=1)
    report = report_of(tmp_path / "a")
    for language, characters in dropped.items():
        found = report["languages"][language]["dropped"]["duplicate"]
        assert found == {"documents": 20, "characters": characters}
    assert report["total"]["dropped"]["duplicate"]["documents"] == 60
    for folder in ("a", "b"):
        (tmp_path / folder / REPORT).unlink()
    assert same_folders(tmp_path / "a", tmp_path / "b")


def test_dropping_copies_changes_nothing_where_there_are_none(tmp_path):
    options = Options(drop_copies=True, skip_bad_lines=True)
    shards.write(corpus(), tokenizer(), tmp_path / "out", workers=1, options=options)
    assert same_folders(tmp_path / "out", shards_folder())


BAD = {
    "a.txt": (b"one\nb\xffd\ntwo\n\n\xfe\xfe\n", 5),
    "a.jsonl": (b'{"text": "one\\ntwo"}\n{"te\n"\xff"\n{"text": "\\ud800"}\n', 4 + 3 + 18),
}


@pytest.mark.parametrize("name", BAD)
def test_documents_skip_and_count_bad_lines_on_request(tmp_path, name):
    raw, characters = BAD[name]
    (tmp_path / name).write_bytes(raw)
    text = (Source(str(tmp_path / name), name[2:]),)
    skipped = Skipped(bad_lines=True)
    assert list(documents(text, skipped)) == [["one", "two"]]
    assert skipped == Skipped(True, {"a.txt": 2, "a.jsonl": 3}[name], characters)
    with pytest.raises(DataError, match=r"a\..* line 2.* or add on_bad_line=skip"):
        list(documents(text))


def test_documents_number_lines_after_a_bad_one_correctly(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n\xff\n\n{"text": "two"}\nbad\n')
    lines = []

    class Noted(Skipped):
        def add_line(self, line):
            lines.append(line)

    text = (Source(str(tmp_path / "a.jsonl"), "jsonl"),)
    assert list(documents(text, Noted(bad_lines=True))) == [["one"], ["two"]]
    assert lines == [b"\xff\n", "bad"]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n\n{"text": "two"}\n{\n\xff\n')
    with pytest.raises(DataError, match="line 4 is not a JSON object"):
        list(documents(text))


@pytest.mark.parametrize("documents", [3, 40])
def test_shards_skip_bad_lines_of_languages_of_any_size(tmp_path, monkeypatch, documents):
    """Also the last line, after a full batch."""
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 1)
    (tmp_path / "text").mkdir()
    found = [[line] for line in paragraphs("en", documents)]
    write_text(tmp_path / "text" / "en.txt", found)
    with (tmp_path / "text" / "en.txt").open("ab") as file:
        file.write(b"\n\xff\n")
    options = Options(skip_bad_lines=True)
    shards.write(tmp_path / "text", tokenizer(), tmp_path / "out", 1, options=options)
    report = report_of(tmp_path / "out")["languages"]["en"]
    assert report["documents"] == documents
    assert report["dropped"]["bad line"] == {"lines": 1, "characters": 1}


def test_text_batches_skip_paragraphs_of_each_split_by_itself(tmp_path):
    """As after a kill at which one split of a language was finished, and the other was not."""
    write_text(tmp_path / "en.txt", [paragraphs("en", 60), paragraphs("el", 60)])
    text = (Source(str(tmp_path / "en.txt"), "txt"),)
    found = first_pass("en", text, lambda amount: None, 0.01)
    rule = choose([found.text], 0.01)["en"]
    assert rule.paragraphs
    batches = (iter(TextBatches(text, found, rule, starts)) for starts in ([0, 0], [9, 0], [0, 9]))
    splits = [next(batch).splits for batch in batches]
    (train, heldout), (no_train, same), (same_train, no_heldout) = splits
    assert (no_train.lines, same.lines) == ([], heldout.lines)
    assert (same_train.lines, no_heldout.lines) == (train.lines, [])
    assert train.lines
    assert heldout.lines


@pytest.mark.parametrize("cut", [False, True])
def test_report_adds_up(tmp_path, monkeypatch, cut):
    if cut:
        monkeypatch.setattr(tars, "SAMPLE_IDS", 200)
        monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 300)
    (tmp_path / "text").mkdir()
    documents_ = [[line] for line in paragraphs("en", 40)]
    documents_[7:7] = [[INVISIBLE], [INVISIBLE, INVISIBLE], documents_[0]]
    write_text(tmp_path / "text" / "en.txt", documents_)
    (tmp_path / "text" / "de.csv").touch()
    with (tmp_path / "text" / "en.txt").open("ab") as file:
        file.write(b"\nbad \xff line\n")
    write_text(tmp_path / "text" / "sw.txt", [[line] for line in paragraphs("sw", 30)])
    options = Options(drop_copies=True, skip_bad_lines=True)
    shards.write(tmp_path / "text", tokenizer(), tmp_path / "out", workers=1, options=options)
    report = report_of(tmp_path / "out")
    found = report["languages"]["en"]
    assert found["documents"] == 43
    assert found["characters"] == sum(len("".join(one)) for one in documents_)
    assert found["dropped"] == {
        "duplicate": {"documents": 1, "characters": len(documents_[0][0])},
        "no tokens": {"documents": 2, "characters": 3},
        "bad line": {"lines": 1, "characters": len("bad ? line")},
    }
    assert found["train"]["documents"] + found["heldout"]["documents"] == 40
    index = Index.open(tmp_path / "out")
    for split in ("train", "heldout"):
        assert found[split]["characters"] == index.totals[split][0].characters
        assert found[split]["documents"] == index.totals[split][0].documents
    assert report["total"]["documents"] == 73
    printed = io.StringIO()
    Console(file=printed, width=200).print(table(report))
    lines = printed.getvalue().splitlines()
    assert [line for line in lines if " en " in line and "2 (3 characters)" in line]
    assert [line for line in lines if " total " in line and " 73 " in line]
    assert not [line for line in lines if " sw " in line]  # nothing of it was dropped


def test_shards_command_prints_what_it_dropped(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text" / "en.txt", [[line] for line in paragraphs("en", 30)] * 2)
    (tmp_path / "text" / "de.csv").touch()
    with (tmp_path / "text" / "en.txt").open("ab") as file:
        file.write(b"\n\xff\n")
    given = [f"corpus={tmp_path}/text", f"tokenizer={tokenizer().model_path.parent}"]
    given.append(f"out={tmp_path}/out")
    assert main(["shards", *given, "dedup=true"]) == 76
    assert "byte 0xff" in capfd.readouterr().err
    assert main(["shards", *given, "on_bad_line=skip", "dedup=true"]) == 0
    out = capfd.readouterr().out
    assert "30 (" in out
    assert f"Skipped in {tmp_path}/text, not text by their names: de.csv" in out
    assert report_of(tmp_path / "out")["skipped files"] == ["de.csv"]
    assert main(["shards", *given, "on_bad_line=maybe"]) == 2
    assert "on_bad_line='maybe' is not possible" in capfd.readouterr().err


def test_prepare_drops_what_the_config_says(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    write_text(text / "en.txt", [[line] for line in paragraphs("en", 60)] * 2)
    with (text / "en.txt").open("ab") as file:
        file.write(b"\n\xff\n")
    with pytest.raises(DataError, match="byte 0xff"):
        with_shards(small_config(text), tmp_path / "runs")
    made = with_shards(small_config(text, on_bad_line="skip"), tmp_path / "runs")
    once = with_shards(small_config(text, on_bad_line="skip", dedup=True), tmp_path / "runs")
    tokens = [
        sum(Index.open(Path(str(config.data.shards))).train_tokens) for config in (made, once)
    ]
    assert tokens[0] > 1.8 * tokens[1] > 0


def test_shards_are_equal_for_any_number_of_threads(tmp_path, monkeypatch):
    """One language on three cores: batches prepared in the background come in order."""
    monkeypatch.setattr(tars, "SAMPLE_IDS", 300)
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 2000)
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text" / "en.txt", documents_of("en"))
    for workers in (1, 3):
        shards.write(tmp_path / "text", tokenizer(), tmp_path / str(workers), workers=workers)
    assert same_folders(tmp_path / "1", tmp_path / "3")


def test_shards_raise_an_error_of_the_background(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 2000)
    nothing = LanguageText("en", 1, Units(*np.zeros((2, 0), np.int64)), None)
    found = FirstPass(nothing, np.zeros(0, np.int64), 1)
    monkeypatch.setattr(shards, "_first_pass", lambda *arguments: found)
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text" / "en.txt", [[line] for line in paragraphs("en", 4000)])
    (tmp_path / "text" / "de.csv").touch()
    with (tmp_path / "text" / "en.txt").open("ab") as file:
        file.write(b"\n\xff\n")
    with pytest.raises(DataError, match="byte 0xff"):
        shards.write(tmp_path / "text", tokenizer(), tmp_path / "out", workers=3)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} does not exist")
def test_report_counts_all_of_the_real_text(tmp_path):
    """Documents and characters of each language are those in its COUNTS.json."""
    shards.write(REAL, tokenizer(), tmp_path / "out", workers=2)
    counts = json.loads((REAL / "COUNTS.json").read_text())
    report = report_of(tmp_path / "out")
    assert list(report["languages"]) == sorted(counts)
    index = Index.open(tmp_path / "out")
    for number, (language, found) in enumerate(report["languages"].items()):
        expected = counts[language]["docs"], counts[language]["chars"]
        assert (found["documents"], found["characters"]) == expected
        train, held = (index.totals[split][number] for split in ("train", "heldout"))
        assert train.characters + held.characters == expected[1]
        divided = train.documents + held.documents - expected[0]
        assert 0 <= divided <= held.documents  # these have paragraphs in both splits
    index.verify(deep=True)
