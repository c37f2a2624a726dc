"""`mlm shards` killed, and run again."""

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from mlm.data.writing import shards
from mlm.data.writing.staging import WORK
from mlm.errors import DataError, UserError
from mlm.files.folders import kept_folder
from tests.places import ROOT
from tests.text.test_sources import of_documents, write_tar
from tests.text_fixtures import corpus, documents_of, paragraphs, tokenizer, write_corpus


@dataclass
class Ran:
    code: int  # below 0: the signal that killed it
    printed: str

    @property
    def lines(self) -> int:
        """The lines that were tokenized."""
        assert self.code == 0, self.printed
        found = re.search(r"(\d+) lines were tokenized", self.printed)
        assert found is not None, self.printed
        return int(found[1])

    def says(self, sentence: str) -> bool:
        return sentence in " ".join(self.printed.split())


def arguments(text: Path, out: Path, workers: int = 1) -> list[str]:
    made = tokenizer().model_path.parent
    return [f"corpus={text}", f"tokenizer={made}", f"out={out}", f"workers={workers}"]


def run(text: Path, out: Path, *more: str, kill: str = "") -> Ran:
    """`mlm shards` in its own process, forked, since its imports take seconds."""
    given = [*arguments(text, out), *more]
    with TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.environ["KILL"] = kill
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            code = 99
            try:
                from tests.data.writing import small_shards

                code = small_shards.run(given)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file.seek(0)
        return Ran(code, file.read().decode())


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[Path, int]:
    """What an uninterrupted command writes, and the lines that it tokenizes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, run(corpus(), out).lines


def same_trees(one: Path, other: Path) -> bool:
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*"))
    files = [name for name in names if (one / name).is_file()]
    return filecmp.cmpfiles(one, other, files, shallow=False)[0] == files


def journaled(aside: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each tar that a journal records as finished."""
    found = {}
    for path in (aside / WORK).glob("*.jsonl"):
        language, split, _ = path.name.split(".")
        lines = [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")]
        mark = "" if split == "train" else f".{split}"
        for number in range(sum("shard" in json.loads(line) for line in lines)):
            tar = aside / f"{language}{mark}-{number:06d}.tar"
            found[tar.name] = tar.stat().st_ino, tar.stat().st_mtime_ns
    return found


LINES = 50  # of all journals; line 22 ends a language's training split, line 24 the language
SOME = ["before 1", "after 1", "torn 3", "before 8", "after 22", "torn 24"]
EVERY = [f"{('before', 'torn', 'after')[n % 3]} {n}" for n in range(1, LINES + 1)]


@pytest.mark.parametrize(
    "point", [*SOME, *(pytest.param(point, marks=pytest.mark.slow) for point in EVERY)]
)
def test_killed_command_resumes_and_writes_the_same(tmp_path, expected, point):
    out, aside = tmp_path / "out", tmp_path / ".out.partial"
    assert run(corpus(), out, kill=point).code == -signal.SIGKILL
    assert not out.exists()
    kept = journaled(aside)
    again = run(corpus(), out)
    lines = again.lines
    assert same_trees(out, expected[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for name, (inode, changed) in kept.items():
        found = (out / name).stat()
        assert (found.st_ino, found.st_mtime_ns) == (inode, changed)
    assert again.says("Resuming from the shards") == bool(kept)
    assert (len(kept) > 0) == (point not in ("before 1", "torn 1"))
    assert lines < expected[1] if len(kept) > 1 else lines <= expected[1]


def test_resumed_command_skips_finished_languages(tmp_path, expected):
    out = tmp_path / "out"
    assert run(corpus(), out, kill="index").code == -signal.SIGKILL
    assert run(corpus(), out).lines == 0
    assert same_trees(out, expected[0])


@pytest.mark.parametrize("points", [["first", "after 2", "torn 4", "before 5", "rename"]])
def test_command_killed_several_times_resumes(tmp_path, expected, points):
    out = tmp_path / "out"
    for point in points:
        assert run(corpus(), out, kill=point).code == -signal.SIGKILL
    assert run(corpus(), out).lines == 0
    assert same_trees(out, expected[0])


@pytest.mark.slow
def test_command_killed_with_its_workers_resumes(tmp_path, expected):
    out, aside = tmp_path / "out", tmp_path / ".out.partial"
    command = [
        sys.executable,
        "-m",
        "tests.data.writing.small_shards",
        *arguments(corpus(), out, workers=2),
    ]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 90
    while not any(path.stat().st_size for path in (aside / WORK).glob("*.jsonl")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = journaled(aside)
    subprocess.run(command, cwd=ROOT, check=True, timeout=100)
    assert same_trees(out, expected[0])
    for name, (inode, changed) in kept.items():
        assert ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) == (inode, changed)


def test_resumed_command_rewrites_a_changed_language(tmp_path, expected):
    text, out, aside = write_corpus(tmp_path / "text"), tmp_path / "out", tmp_path / ".out.partial"
    assert run(text, out, kill="index").code == -signal.SIGKILL
    kept = journaled(aside)
    with (text / "sw.txt").open("a") as file:
        file.write("\nmwisho\n")
    (text / "el.txt").unlink()
    again = run(text, out)
    assert again.says("The text of sw or what was written of it has changed")
    assert 200 < again.lines <= 201
    assert run(text, tmp_path / "new").code == 0
    assert same_trees(out, tmp_path / "new")
    for name in ("en-000000.tar", "ja-000000.tar"):
        assert (out / name).stat().st_ino == kept[name][0]


def test_resumed_command_notices_other_text_from_a_pipe(tmp_path):
    """Only the text shows the change: the language is written again, and never mixed."""
    text, out, aside = tmp_path / "c.yaml", tmp_path / "out", tmp_path / ".out.partial"
    tar = write_tar(tmp_path / "en.tar", of_documents("txt", documents_of("en")))
    text.write_text(f"en: 'pipe:cat {tar}'\nsw: {corpus()}/sw.txt\n")
    assert run(text, out, kill="after 3").code == -signal.SIGKILL
    assert journaled(aside)
    write_tar(tar, of_documents("txt", documents_of("en")[::-1]))
    assert run(text, out).code == DataError.code
    assert not out.exists()
    assert run(text, out).says("The text of en or what was written of it has changed")
    assert run(text, tmp_path / "new").code == 0
    assert same_trees(out, tmp_path / "new")


@pytest.mark.parametrize("dedup", ["false", "true"])
def test_pipe_runs_twice(tmp_path, dedup):
    """Once for each pass."""
    documents = [[line] for line in paragraphs("en", 300)]
    tar = write_tar(tmp_path / "en.tar", of_documents("txt", documents))
    (tmp_path / "c.yaml").write_text(f"en: 'pipe:echo once >> {tmp_path}/asked; cat {tar}'\n")
    assert run(tmp_path / "c.yaml", tmp_path / "out", f"dedup={dedup}").code == 0
    assert (tmp_path / "asked").read_text() == "once\n" * 2


def test_shards_refuse_text_that_changes_while_it_is_read(tmp_path, monkeypatch):
    text, out = write_corpus(tmp_path / "text"), tmp_path / "out"
    first_pass = shards._first_pass

    def changing(progress, folder, language, *arguments):
        found = first_pass(progress, folder, language, *arguments)
        if language == "sw":
            with (text / "sw.txt").open("a") as file:
                file.write("\nmwisho\n")
        return found

    monkeypatch.setattr(shards, "_first_pass", changing)
    with pytest.raises(DataError, match=r"the text of sw .* changed while it was read; keep"):
        shards.write(text, tokenizer(), out, workers=1)
    assert not out.exists()


def test_resumed_command_keeps_languages_with_a_longer_name(tmp_path):
    text, out, aside = tmp_path / "text", tmp_path / "out", tmp_path / ".out.partial"
    write_corpus(text)
    shutil.copy(text / "sw.txt", text / "en-GB.txt")
    assert run(text, out, kill="index").code == -signal.SIGKILL
    kept = journaled(aside)
    with (text / "en.txt").open("a") as file:
        file.write("\nthe end\n")
    assert run(text, out).code == 0
    stat = (out / "en-GB-000000.tar").stat()
    assert (stat.st_ino, stat.st_mtime_ns) == kept["en-GB-000000.tar"]
    assert run(text, tmp_path / "new").code == 0
    assert same_trees(out, tmp_path / "new")


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_resumed_command_rewrites_a_missing_or_truncated_tar(tmp_path, expected, how):
    out, aside = tmp_path / "out", tmp_path / ".out.partial"
    assert run(corpus(), out, kill="index").code == -signal.SIGKILL
    if how == "gone":
        (aside / "ja-000000.tar").unlink()
    else:
        os.truncate(aside / "ja-000000.tar", 1024)
    assert run(corpus(), out).lines == sum(map(len, documents_of("ja")))
    assert same_trees(out, expected[0])


def test_resumed_command_with_other_settings_starts_over(tmp_path, expected):
    out = tmp_path / "out"
    assert run(corpus(), out, "dedup=true", kill="after 3").code == -signal.SIGKILL
    again = run(corpus(), out)
    assert again.says("another tokenizer or other settings, so all are written again")
    assert again.lines == expected[1]
    assert same_trees(out, expected[0])


def test_finished_shards_stay_after_an_error(tmp_path):
    sentences: list[str] = []
    out, aside = tmp_path / "out", tmp_path / ".out.partial"

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device; free some space there"):
        shards.write(corpus(), tokenizer(), out, workers=1, say=sentences.append, complete=full)
    assert aside.is_dir()
    assert sentences == [f"Finished shards stay in {aside}; the same command resumes from them"]
    shards.write(corpus(), tokenizer(), out, workers=1, say=sentences.append)
    assert sentences[1:] == [f"Resuming from the shards that an earlier command left in {aside}"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_shards_are_written_by_one_process_at_a_time(tmp_path):
    with kept_folder(tmp_path / "out", lambda folder: False, "work"):
        with pytest.raises(UserError, match="out is being written by another process; wait for"):
            shards.write(corpus(), tokenizer(), tmp_path / "out", workers=1)
        assert (tmp_path / ".out.partial" / "work").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []
