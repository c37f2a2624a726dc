import filecmp
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import sentencepiece
from webdataset.compat import WebDataset

from mlm.data.index import Index
from mlm.data.writing import shards, tars, tokenizing
from mlm.data.writing.workers import Workers
from mlm.errors import DataError, UserError
from tests.data.writing.worker_jobs import add, die, endless_or_bad
from tests.places import ROOT
from tests.text_fixtures import (
    LANGUAGES,
    corpus,
    shards_folder,
    tokenizer,
    write_corpus,
)


def webdataset_ids(paths) -> np.ndarray:
    """All ids of some tars, as webdataset reads them."""
    read = WebDataset([str(path) for path in paths], shardshuffle=False).decode()
    arrays = [sample["npy"] for sample in cast(Iterable[dict], read)]
    assert all(array.dtype == np.int32 for array in arrays)
    return np.concatenate(arrays) if arrays else np.empty(0, np.int32)


def expected_ids(documents) -> list[int]:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer().model_path))
    ids = []
    for document in documents:
        for line in document:
            ids += [3 if id == 0 else id + 1 for id in theirs.encode(line)]
        ids.append(2)
    return ids


def same_folders(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def test_shards_are_equal_for_any_number_of_workers(tmp_path):
    seen = []
    report = lambda *pair: seen.append(pair)  # noqa: E731
    shards.write(corpus(), tokenizer(), tmp_path / "two", workers=2, on_progress=report)
    assert same_folders(tmp_path / "two", shards_folder())
    text = sum(len(path.read_text("utf-8").replace("\n", "")) for path in corpus().iterdir())
    assert seen[-1] == (text, text)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_small_samples_and_tars_hold_the_same_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "SAMPLE_IDS", 300)
    monkeypatch.setattr(tars, "SHARD_SAMPLES", 7)
    monkeypatch.setattr(tokenizing, "BATCH_CHARACTERS", 500)
    shards.write(corpus(), tokenizer(), tmp_path / "cut", workers=1)
    index = Index.open(tmp_path / "cut")
    index.verify(deep=True)
    for language in LANGUAGES:
        cut = sorted((tmp_path / "cut").glob(f"{language}-*.tar"))
        assert len(cut) > 1
        whole = webdataset_ids([shards_folder() / f"{language}-000000.tar"])
        assert np.array_equal(webdataset_ids(cut), whole)
    rows = index.sample_rows("train", index.languages.index("sw"))
    tokens = index.samples["tokens"][rows]
    assert set(tokens[:-1].tolist()) == {300}
    paths = sorted((tmp_path / "cut").glob("sw-*.tar"))
    names = [name for path in paths for name in webdataset_keys(path)]
    assert len(set(names)) == len(names) == len(tokens)


def webdataset_keys(path: Path) -> list[str]:
    return [sample["__key__"] for sample in WebDataset(str(path), shardshuffle=False)]


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_leave_nothing_after_an_error_in_any_language(tmp_path, workers):
    write_corpus(tmp_path / "corpus")
    with (tmp_path / "corpus" / "ja.txt").open("ab") as file:
        file.write(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"ja\.txt, line \d+: byte 0xff"):
        shards.write(tmp_path / "corpus", tokenizer(), tmp_path / "out", workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_shards_refuse_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "kept").touch()
    with pytest.raises(UserError, match="nothing is overwritten; choose another folder"):
        shards.write(corpus(), tokenizer(), tmp_path, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def limited(folder: str) -> None:
    """Writes shards in a process whose files are limited to 20 kB."""
    text, ids = corpus(), tokenizer()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        shards.write(text, ids, Path(folder), workers=1)
    except UserError as error:
        print(error)


def test_shards_report_a_file_that_does_not_fit_in_one_sentence(tmp_path):
    root, out = ROOT, tmp_path / "out"
    program = f"import tests.data.writing.test_shards as test; test.limited({str(out)!r})"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert ran.stdout == (
        f"{out} cannot be written: File too large; free some space there, or choose a folder that "
        f"you may write to\n"
    ), ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_shards_report_an_unwritable_folder_in_one_sentence():
    with pytest.raises(UserError, match=r"^/proc/polymlm/shards cannot be written: .*; free some"):
        shards.write(corpus(), tokenizer(), Path("/proc/polymlm/shards"), workers=1)


def test_workers_report_a_killed_worker_in_one_sentence():
    with (
        pytest.raises(
            UserError, match=r"one of 2 worker processes was killed.*; give fewer workers"
        ),
        Workers(2, jobs=2, weight=1) as workers,
    ):
        workers.each(die, {"a": ("a",), "b": ("b",)})


def test_workers_stop_at_the_first_error():
    with pytest.raises(DataError, match=r"^bad text$"), Workers(2, jobs=2, weight=1) as workers:
        workers.each(endless_or_bad, {"good": ("good",), "bad": ("bad",)})


def test_workers_sum_progress_and_return_all_results():
    jobs = {"a": (1,), "b": (2,), "c": (3,)}
    for count in (1, 2):
        seen = []
        with Workers(count, jobs=3, weight=1) as workers:
            for _ in range(2):
                found = workers.each(add, jobs, seen.append)
                assert found == {"a": 10, "b": 20, "c": 30}
                assert seen[-1] == 6
