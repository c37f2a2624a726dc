"""The ledger of a run, and `mlm audit`, which recomputes what it was trained on."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.cli import main
from mlm.config import as_dict
from mlm.data.audit.ledger import Ledger, read_ledger, row_digests, total
from mlm.data.index import Index
from mlm.data.reading.reader import TokenReader
from mlm.errors import DATA, DONE, DataError, UserError
from mlm.health.incidents import SKIPPED
from mlm.training.audit import Audit
from mlm.training.rank import main as train
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from tests.health.fault_fixtures import NAN_GRADIENT, NAN_WEIGHTS, fault_at
from tests.ranks import run_ranks
from tests.text_fixtures import shards_folder, tokenizer
from tests.training_fixtures import config, run

STEPS, BATCH = 12, 8


def made(**sections):
    """A run whose tokenizer is not in the folder of its shards."""
    data = {"tokenizer": str(tokenizer().model_path.parent), **sections.pop("data", {})}
    given = {"steps": STEPS, "micro_batch_size": 1} | sections.pop("train", {})
    return config(data=data, train=given, eval={"every": 0}, **sections)


def with_data(folder: Path) -> Path:
    """A run folder with the hashes that the launcher writes."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {"index": Index.open(shards_folder()).hash}
    (folder / "data.json").write_text(json.dumps(hashes))
    return folder


def batch_digest(numbers, *parts) -> int:
    return total(row_digests(numbers, *parts))


arrays = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(dice=arrays, rows=st.integers(1, 6), seq_len=st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_row_digests_cover_exactly_the_batch(dice, rows, seq_len):
    numbers = dice.permutation(10**12 + np.arange(rows))
    batch = [dice.integers(0, 250_002, (rows, seq_len)) for _ in range(3)]
    batch[2][dice.random((rows, seq_len)) < 0.5] = -100
    digest = batch_digest(numbers, *batch)
    assert -(2**63) <= digest < 2**63
    # In any order and division of rows.
    order = dice.permutation(rows)
    assert batch_digest(numbers[order], *(part[order] for part in batch)) == digest
    cut = int(dice.integers(0, rows + 1))
    parts = [
        batch_digest(numbers[s], *(p[s] for p in batch)) for s in (slice(cut), slice(cut, None))
    ]
    assert (sum(parts) - digest) % 2**64 == 0
    # Every change of one number changes the digest, and so does a change of place.
    part, row, place = (int(dice.integers(0, n)) for n in (3, rows, seq_len))
    changed = [array.copy() for array in batch]
    changed[part][row, place] += int(dice.integers(1, 1000))
    assert batch_digest(numbers, *changed) != digest
    assert batch_digest(numbers + 1, *batch) != digest
    if rows > 1:
        assert batch_digest(np.roll(numbers, 1), *batch) != digest


def test_ledger_rewinds_and_continues(tmp_path):
    assert len(read_ledger(tmp_path)) == 0
    ledger = Ledger(tmp_path, 0)
    for digest in (5, -1, 7):
        ledger.add(digest)
    assert read_ledger(tmp_path).tolist() == [5, 2**64 - 1, 7]
    ledger.back(1)
    ledger.add(9)
    assert read_ledger(tmp_path).tolist() == [5, 9]
    Ledger(tmp_path, 1).add(3)
    assert read_ledger(tmp_path).tolist() == [5, 3]


def killed(folder: Path, settings, step: int) -> None:
    """Trains until a rank is killed in the middle of a step."""

    def kill(engine, here):
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    (folder / "config.yaml").write_text(yaml.safe_dump(as_dict(settings)))
    degrees, real = settings.parallel, DeepSpeedEngine.train_batch
    DeepSpeedEngine.train_batch = fault_at(step, do=kill)
    try:
        with pytest.raises(AssertionError):
            run_ranks(degrees.tp * degrees.pp * degrees.dp, train, str(folder / "config.yaml"))
    finally:
        DeepSpeedEngine.train_batch = real


@pytest.mark.ranks
def test_ledger_of_killed_ranks_is_that_of_one_process(whole, tmp_path):
    """Eight ranks, then four with other micro-batches, then two."""
    folder = with_data(tmp_path)
    killed(folder, made(parallel={"tp": 2, "pp": 2, "dp": 2}), 4)
    assert 2 <= len(read_ledger(folder)) <= 4
    killed(folder, made(parallel={"dp": 4, "zero": 2}, train={"micro_batch_size": 2}), 9)
    assert 6 <= len(read_ledger(folder)) <= 9
    assert run(folder, made(parallel={"pp": 2}))["code"] == DONE
    assert len(read_ledger(folder)) == STEPS
    assert np.array_equal(read_ledger(folder), read_ledger(whole))
    assert Audit(folder).mismatches(np.arange(STEPS)) == []
    assert Audit(folder).seen() == Audit(whole).seen()


@pytest.mark.ranks
def test_ledger_of_a_run_that_rolled_back_is_that_of_one_that_did_not(whole, tmp_path, monkeypatch):
    folder = with_data(tmp_path)
    monkeypatch.setattr(DeepSpeedEngine, "train_batch", fault_at(4, do=NAN_WEIGHTS))
    assert run(folder, made())["code"] == DONE
    assert (folder / "incidents.jsonl").exists()
    assert np.array_equal(read_ledger(folder), read_ledger(whole))


@pytest.mark.ranks
def test_audit_counts_what_the_batches_hold(whole):
    audit = Audit(whole)
    seen = audit.seen()
    batches = [audit.batches.micro_batch(step, 0) for step in range(STEPS)]
    counts = torch.cat([batch.languages for batch in batches]).bincount(minlength=len(seen))
    assert [row.samples for row in seen] == counts.tolist()
    assert [row.tokens for row in seen] == (31 * counts).tolist()
    for row, tokens in zip(seen, audit.index.train_tokens, strict=True):
        assert row.epochs == row.samples / (tokens // 31)


@pytest.mark.ranks
def test_audit_reports_a_skipped_batch(tmp_path, monkeypatch, capsys):
    folder = with_data(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(DeepSpeedEngine, "train_batch", fault_at(3, times=10**6, do=NAN_GRADIENT))
        assert run(folder, made())["code"] == DONE
    audit = Audit(folder)
    assert (audit.skipped, int(audit.ledger[2])) == ([2], 0)
    assert audit.mismatches(np.arange(STEPS)) == []
    assert sum(row.samples for row in audit.seen()) == (STEPS - 1) * BATCH
    capsys.readouterr()
    assert main(["audit", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "Step 3 is skipped: samples 16 to 23" in out
    assert f"The ledger of {STEPS} steps agrees, in all {STEPS} that were compared" in out
    assert main(["audit", str(folder), "step=3", "rows=1"]) == 0
    assert "The batch of step 3, 8 samples, is skipped in training" in capsys.readouterr().out
    # Steps that the run has not reached yet do not count.
    rows = [json.loads(line) for line in (folder / "incidents.jsonl").read_text().splitlines()]
    more = json.dumps(rows[-1] | {"what": SKIPPED, "step": STEPS + 5})
    with (folder / "incidents.jsonl").open("a") as file:
        file.write(more + "\n")
    assert Audit(folder).skipped == [2]


@pytest.mark.ranks
def test_audit_shows_a_batch_as_it_was_trained_on(whole, capsys):
    assert main(["audit", str(whole), "step=5", "rows=0"]) == 0
    out = capsys.readouterr().out.splitlines()
    audit, order = Audit(whole), Audit(whole).order
    assert out[-1] == "The batch of step 5, 8 samples, is the one in the ledger"
    languages, blocks = order.samples(np.arange(32, 40))
    batch = audit.batches.micro_batch(4, 0)
    for row in range(BATCH):
        name = audit.index.languages[languages[row]]
        assert out[2 * row] == f"sample {32 + row}: {name}, block {blocks[row]}"
        text = out[2 * row + 1]
        assert len(re.findall(r"\[.*?\]", text)) == int((batch.targets[row] >= 0).sum())
        # The text in the brackets is the original one.
        read = re.sub(r"\[(.*?)(=|:[^\]]*)?\]", r"\1", text).replace("</s>", "")
        start = int(blocks[row]) * 31
        ids = TokenReader(audit.index).read("train", int(languages[row]), start, 31)
        decoded = tokenizer().decode(ids.tolist())  # it writes `<unk>` as " ⁇ "
        assert read.replace(" ", "").replace("<unk>", "⁇") == decoded.replace(" ", "")


@pytest.mark.ranks
def test_audit_reports_differences(whole, tmp_path, capsys):
    for name in ("config.yaml", "data.json", "ledger.bin"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    content = bytearray((tmp_path / "ledger.bin").read_bytes())
    content[8 * 6] ^= 1
    (tmp_path / "ledger.bin").write_bytes(content)
    assert main(["audit", str(tmp_path)]) == DATA
    err = capsys.readouterr().err
    assert f"in 1 of {STEPS} steps (7); its shards or its ledger have been changed" in err
    assert main(["audit", str(tmp_path), "step=7", "rows=1"]) == 0
    assert "is not the one in the ledger" in capsys.readouterr().out
    # The ledger has no hash of a skipped batch.
    rows = [{"what": SKIPPED, "step": step, "samples": []} for step in (3, 5)]
    (tmp_path / "incidents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Audit(tmp_path).mismatches(np.arange(STEPS)) == [2, 4, 6]
    content[8 * 2 : 8 * 3] = bytes(8)
    (tmp_path / "ledger.bin").write_bytes(content)
    assert Audit(tmp_path).mismatches(np.arange(STEPS)) == [4, 6]
    (tmp_path / "data.json").write_text(json.dumps({"index": "0" * 64}))
    with pytest.raises(DataError, match=r"have changed since .* began \(000000000000 then"):
        Audit(tmp_path)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["step=0"], "step=0 is not a step that .* has taken; give one from 1 to 12"),
        (["step=13"], "step=13 is not a step that .* has taken; give one from 1 to 12"),
        (["rows=-1"], "rows=-1 is below 0; give 0 or more"),
        (
            ["step=1", "every=true"],
            "step=1 and every=true are given; give one of them",
        ),
        (["documents=f", "step=1"], "step=1 and documents=f are given; give one of them"),
        (["documents=f", "every=true"], "every=true and documents=f are given; give one of them"),
    ],
)
def test_audit_reports_mistakes_in_one_sentence(arguments, sentence, whole, capsys):
    assert main(["audit", str(whole), *arguments]) == UserError.code
    assert re.fullmatch(f"mlm: {sentence}\n", capsys.readouterr().err)


@pytest.mark.ranks
def test_audit_refuses_a_run_without_steps(whole, tmp_path):
    for name in ("config.yaml", "data.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    with pytest.raises(UserError, match="has no ledger, since it has taken no step; train"):
        Audit(tmp_path)


def test_audit_refuses_a_folder_that_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="is not a run folder; give one"):
        Audit(tmp_path)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "changed", [{"seed": 2}, {"data": {"mask_ratio": 0.2}}, {"data": {"alpha": 0.9}}]
)
def test_ledger_differs_for_another_order_or_mask(changed, whole, tmp_path):
    for name in ("data.json", "ledger.bin"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(as_dict(made(**changed))))
    assert Audit(tmp_path).mismatches(np.arange(STEPS)) == list(range(STEPS))


@pytest.mark.ranks
def test_audit_refuses_a_ledger_that_has_lost_steps(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    os.truncate(folder / "ledger.bin", 8 * 5 + 3)
    with pytest.raises(DataError, match=r"has 5 steps, and .*step-00000012 is of step 12; restore"):
        Audit(folder)
    (folder / "ledger.bin").unlink()
    with pytest.raises(DataError, match=r"has 0 steps, and .* is of step 12; restore the"):
        Audit(folder)


@pytest.mark.ranks
def test_audit_overwrites_no_file(whole, tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    assert main(["audit", str(whole), f"documents={tmp_path / 'kept'}"]) == UserError.code
    assert "exists, and no file is overwritten" in capsys.readouterr().err
    assert (tmp_path / "kept").read_text() == "mine"
