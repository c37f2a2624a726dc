"""Bad shards: code 76 with the shard and the byte, or skipped by all ranks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from launch.launcher import Outcome
from launch.launchers.lost_shards import explained
from mlm.batch.micro_batch import IGNORED
from mlm.data.audit.ledger import read_ledger
from mlm.data.checks import check_data
from mlm.data.index import Index
from mlm.data.reading.reader import TokenReader
from mlm.errors import DATA, DONE, FAILED, BadShard, DataError
from mlm.health.bad_shards import BadShards
from mlm.health.incidents import BAD_SHARD, read_incidents
from mlm.tasks.pretraining.batches import training_batches
from mlm.training.audit import Audit
from tests.text_fixtures import small_shards, tokenizer
from tests.training_fixtures import config, metrics, run


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Shards of two samples of 700 ids."""
    return small_shards(tmp_path_factory.mktemp("good") / "shards", 700, 2)


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return shutil.copytree(good, tmp_path / "shards")


def first_shard(folder: Path) -> str:
    """The first shard of the language that has the most."""
    names = sorted(path.name for path in folder.glob("*.tar") if "heldout" not in path.name)
    return max(names, key=lambda name: len([n for n in names if n[:2] == name[:2]])).replace(
        "-000001", "-000000"
    )


def place_of(folder: Path, shard: str, sample: int = 0) -> tuple[Index, int, int]:
    """The index, and the row and byte offset of a sample of a shard."""
    index = Index.open(folder)
    rows = np.flatnonzero(index.samples["shard"] == index.shard_row(shard))
    return index, int(rows[sample]), int(index.samples["offset"][rows[sample]])


def write_ids(folder: Path, shard: str, offset: int, ids: list[int]) -> None:
    with (folder / shard).open("r+b") as file:
        file.seek(offset)
        file.write(np.array(ids, "<i4").tobytes())


def flipped(folder: Path, shard: str) -> int:
    """Writes other valid ids into the second sample of a shard; its first byte."""
    _, _, offset = place_of(folder, shard, 1)
    write_ids(folder, shard, offset + 40, [7, 8, 9])
    return offset


def cut(folder: Path, shard: str) -> int:
    size = (folder / shard).stat().st_size
    with (folder / shard).open("r+b") as file:
        file.truncate(size - 5000)
    return size - 5000


def gone(folder: Path, shard: str) -> int:
    (folder / shard).unlink()
    return 0


def longer(folder: Path, shard: str) -> int:
    size = (folder / shard).stat().st_size
    with (folder / shard).open("ab") as file:
        file.write(b"\0" * 512)
    return size


def outside(folder: Path, shard: str, id: int | None = None, place: int = 3) -> int:
    """Writes an id outside the vocabulary with its hash, as a faulty writer would; its byte."""
    index, row, offset = place_of(folder, shard, 1)
    offset += 4 * place
    write_ids(folder, shard, offset, [index.vocab_size if id is None else id])
    fields = np.load(folder / "samples.npy")
    start = offset - 4 * place
    ids = np.fromfile(folder / shard, "<i4", int(fields[2, row]), offset=start)
    from mlm.data.index import ids_check

    fields[4, row] = ids_check(ids)
    np.save(folder / "samples.npy", fields)
    return offset


def negative(folder: Path, shard: str) -> int:
    return outside(folder, shard, -1)


FAULTS = [flipped, cut, gone, longer, outside, negative]


def config_of(folder: Path, **data):
    given = {"shards": str(folder), "tokenizer": str(tokenizer().model_path.parent), **data}
    return config(data=given, train={"steps": 8, "micro_batch_size": 1}, eval={"every": 0})


@pytest.mark.parametrize("fault", FAULTS)
def test_reader_names_the_bad_shard_and_the_byte(folder, fault):
    shard = first_shard(folder)
    offset = fault(folder, shard)
    index = Index.open(folder)
    row = index.shard_row(shard)
    language, split = index.split_of(row)
    assert (split, index.shard_name(row)) == ("train", shard)
    with pytest.raises(BadShard, match=shard) as found:
        TokenReader(index).read("train", language, 0, 1400)
    assert (found.value.shard, found.value.offset) == (shard, offset)
    if fault not in (cut, gone, longer):
        assert str(offset) in str(found.value)


@pytest.mark.ranks
@pytest.mark.parametrize("fault", [flipped, gone])
def test_run_ends_with_code_76_on_a_bad_shard(folder, tmp_path, fault):
    shard = first_shard(folder)
    offset = fault(folder, shard)
    outcome = run(tmp_path / "run", config_of(folder))
    assert outcome["code"] == DATA
    assert shard in outcome["sentence"]
    if fault is flipped:
        assert f"at byte {offset}" in outcome["sentence"]
        assert "data.on_bad_shard=skip" in outcome["sentence"]


@pytest.mark.ranks
@pytest.mark.parametrize("fault", [flipped, pytest.param(cut, marks=pytest.mark.slow)])
def test_run_skips_a_bad_shard_on_all_ranks(folder, good, tmp_path, fault):
    """All other data is trained on as before, in any layout, and the audit agrees."""
    shard = first_shard(folder)
    fault(folder, shard)
    settings = config_of(folder, on_bad_shard="skip")
    assert run(tmp_path / "one", settings)["code"] == DONE
    four = replace(settings, parallel=replace(settings.parallel, tp=2, dp=2))
    assert run(tmp_path / "four", four)["code"] == DONE
    assert np.array_equal(read_ledger(tmp_path / "one"), read_ledger(tmp_path / "four"))
    for name in ("one", "four"):
        (row,) = [row for row in read_incidents(tmp_path / name) if row["what"] == BAD_SHARD]
        assert row["shard"] == shard
        assert metrics(tmp_path / name)[-1]["incidents"]["bad_shard"] == 1
    since = row["step"] - 1

    skipping, complete = (
        training_batches(config_of(where), Index.open(where), 8) for where in (folder, good)
    )
    skipping.reader.skip_shard(shard, since)
    index, row, count = complete.reader.index, complete.reader.index.shard_row(shard), 0
    starts, shards_of = index.samples["start"], index.samples["shard"]
    for step in range(8):
        found, expected = skipping.micro_batch(step, 0), complete.micro_batch(step, 0)
        languages, blocks = complete.order.samples(np.arange(step * 8, step * 8 + 8))
        first = index.first_tokens("train")[languages] + blocks * 31
        rows = [starts.searchsorted(first + end, side="right") - 1 for end in (0, 30)]
        affected = (shards_of[rows[0]] == row) | (shards_of[rows[1]] == row)
        targets = np.where(affected[:, None] & (step >= since), IGNORED, expected.targets.numpy())
        assert np.array_equal(found.targets.numpy(), targets)
        assert np.array_equal(
            found.input_ids.numpy()[~affected], expected.input_ids.numpy()[~affected]
        )
        count += int(affected.sum()) * (step >= since)
    assert count > 0

    hashes = json.dumps({"index": Index.open(folder).hash})
    (tmp_path / "four" / "data.json").write_text(hashes)
    audit = Audit(tmp_path / "four")
    assert audit.mismatches(np.arange(8)) == []
    assert sum(row.samples for row in audit.seen()) == 8 * 8 - count
    # A later start skips it and does not count it again.
    longer_run = replace(four, train=replace(four.train, steps=9))
    assert run(tmp_path / "four", longer_run)["code"] == DONE
    assert len(read_incidents(tmp_path / "four")) == 1


def test_shard_row_finds_known_shards_and_refuses_others(good):
    index = Index.open(good)
    for row in range(len(index.shards)):
        assert index.shard_row(index.shard_name(row)) == row
    for name in ("xx-000000.tar", f"{index.languages[0]}-999999.tar", "", "readme"):
        with pytest.raises(DataError, match="is not a shard of"):
            index.shard_row(name)


def test_bad_shard_error_survives_pickling():
    import pickle

    found = pickle.loads(pickle.dumps(BadShard("a-000000.tar", 7, "it is bad")))
    assert (found.shard, found.offset, str(found)) == ("a-000000.tar", 7, "it is bad")


def test_check_data_refuses_or_counts_bad_shards(folder):
    names = sorted(path.name for path in folder.glob("*.tar"))
    train, held_out = ([n for n in names if ("heldout" in n) is kind] for kind in (False, True))
    gone(folder, train[0])
    cut(folder, train[1])
    with pytest.raises(DataError, match=rf"{train[0]} is not as it was written: it is missing"):
        check_data(config_of(folder))
    check_data(config_of(folder, on_bad_shard="skip", max_bad_shards=2))
    with pytest.raises(DataError, match=r"more than data\.max_bad_shards=1 shards .* are bad"):
        check_data(config_of(folder, on_bad_shard="skip", max_bad_shards=1))
    gone(folder, held_out[0])
    with pytest.raises(DataError, match=rf"{held_out[0]} is not as it was written"):
        check_data(config_of(folder, on_bad_shard="skip"))


@pytest.mark.ranks
def test_run_refuses_shards_rewritten_while_it_starts(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data.json").write_text(json.dumps({"index": "0" * 64}))
    outcome = run(tmp_path / "run", config_of(folder))
    assert outcome["code"] == DATA
    assert "was written again while" in outcome["sentence"]
    assert "(its index was 000000000000, and is" in outcome["sentence"]


@pytest.mark.ranks
def test_max_bad_shards_holds_at_every_start_and_ignores_repaired_shards(folder, good, tmp_path):
    names = sorted(path.name for path in folder.glob("*.tar") if "heldout" not in path.name)
    for name in names:
        gone(folder, name)
    settings = config_of(folder, on_bad_shard="skip", max_bad_shards=2)
    for _ in range(2):
        outcome = run(tmp_path / "run", settings)
        assert outcome["code"] == DATA
        assert outcome["sentence"].startswith("3 shards are bad")
        assert len(read_incidents(tmp_path / "run")) == 2
    for name in names:
        shutil.copyfile(good / name, folder / name)
    assert run(tmp_path / "run", settings)["code"] == DONE
    assert len(read_incidents(tmp_path / "run")) == 2


def test_skip_shard_blanks_the_rows_of_a_shard_from_its_step_on(folder):
    reader = TokenReader(Index.open(folder))
    index = reader.index
    language = max(range(len(index.languages)), key=lambda n: index.train_tokens[n])
    shards = [r for r in range(len(index.shards)) if index.split_of(r) == (language, "train")]
    reader.skip_shard(index.shard_name(shards[1]), 7)
    reader.skip_shard(index.shard_name(shards[1]), 5)
    reader.skip_shard(index.shard_name(shards[1]), 9)
    first = 1400  # where the shard begins in the language; it has 1400 ids
    starts = np.array([0, first - 31, first - 30, first, first + 1399, first + 1400])
    blank = [False, False, True, True, True, False]
    for step, expected in ((4, [False] * 6), (5, blank), (6, blank)):
        rows = reader.gather("train", np.full(6, language), starts, 31, step)
        assert (rows == 0).all(axis=1).tolist() == expected


@pytest.mark.parametrize(("start", "place"), [(680, 0), (700, 0), (690, 3), (710, 20)])
def test_gather_refuses_ids_outside_the_vocabulary(folder, start, place):
    """In rows across the border of two samples, after it, and inside one sample."""
    shard = first_shard(folder)
    offset = outside(folder, shard, -7, place)
    index = Index.open(folder)
    language = index.split_of(index.shard_row(shard))[0]
    languages, starts = np.array([language, language]), np.array([0, start])
    with pytest.raises(BadShard, match=rf"{shard} .* at byte {offset}: the id there is -7"):
        TokenReader(index).gather("train", languages, starts, 31)
    TokenReader(index).gather("train", languages, starts * 0, 31)


def test_bad_shards_counts_a_shard_once(folder):
    """Also if it is found again at an earlier step, as after a rollback."""
    first, second, third = sorted(path.name for path in folder.glob("*.tar"))[:3]
    rows: list[dict] = []
    incidents: Any = SimpleNamespace(
        rows=rows,
        bad_shard=lambda step, shard, *_: rows.append(
            {"what": BAD_SHARD, "step": step + 1, "shard": shard}
        ),
    )
    settings = config_of(folder, on_bad_shard="skip", max_bad_shards=2).data
    reader = TokenReader(Index.open(folder))
    shards = BadShards(settings, reader.skip_shard, incidents)
    for step, name, count in ((9, first, 1), (5, first, 1), (7, second, 2), (3, first, 2)):
        message = shards.skip(step, BadShard(name, 0, "it is bad; copy it"))
        assert message == f"Skipped from step {step + 1} on, {count} so far: it is bad"
    with pytest.raises(DataError, match=r"3 shards are bad, and data\.max_bad_shards=2 may be"):
        shards.skip(3, BadShard(third, 0, "it is bad; copy it"))
    assert sorted(reader.skipped_shards.values()) == [3, 7]


@pytest.mark.parametrize("damaged", [False, True])
def test_explained_blames_a_damaged_shard_for_a_dead_rank(damaged, folder, tmp_path):
    name = sorted(path.name for path in folder.glob("*.tar"))[0]
    if damaged:
        (folder / name).write_bytes(b"")
    died = Outcome(FAILED, "a rank died")
    outcome = explained(died, tmp_path, str(folder), skip=False)
    assert (outcome.code, name in outcome.sentence) == (
        (DATA, True) if damaged else (FAILED, False)
    )
    assert (tmp_path / "outcome.json").exists() == damaged
    done = Outcome(0, "")
    assert explained(done, tmp_path, str(folder), skip=False) is done
    again = explained(died, tmp_path, str(folder), skip=True)
    assert damaged == again.sentence.endswith("; start the run again, which skips it")
    # A shard that is already skipped did not kill the rank.
    row = json.dumps({"what": BAD_SHARD, "step": 1, "shard": name})
    (tmp_path / "incidents.jsonl").write_text(row + "\n")
    assert explained(died, tmp_path, str(folder), skip=True) is died


@pytest.mark.parametrize("code", [0, 75, DATA, 77])
def test_explained_keeps_an_outcome_for_which_the_ranks_had_a_reason(code, folder, tmp_path):
    next(folder.glob("*.tar")).write_bytes(b"")
    given = Outcome(code, "as the ranks say")
    assert explained(given, tmp_path, str(folder), skip=False) is given
    assert not (tmp_path / "outcome.json").exists()


def test_reader_detects_ids_changed_after_an_earlier_read(folder):
    shard = first_shard(folder)
    index, _, offset = place_of(folder, shard, 1)
    reader, language = TokenReader(index), index.split_of(index.shard_row(shard))[0]
    reader.read("train", language, 0, 1400)
    write_ids(folder, shard, offset + 400, [index.vocab_size + 5])
    with pytest.raises(BadShard, match=rf"{shard} .* is bad at byte {offset}: the ids there"):
        reader.read("train", language, 0, 1400)


def test_reader_suggests_no_skip_for_a_held_out_shard(folder):
    shard = sorted(path.name for path in folder.glob("*.heldout-*.tar"))[0]
    index, _, offset = place_of(folder, shard)
    write_ids(folder, shard, offset, [7, 8, 9])
    language = index.split_of(index.shard_row(shard))[0]
    with pytest.raises(BadShard) as found:
        TokenReader(index).read("heldout", language, 0, 5)
    assert "on_bad_shard=skip" not in str(found.value)
