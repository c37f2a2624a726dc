"""Pretraining as a task: what its figures count."""

import json
from pathlib import Path

import pytest

from launch.cli import main
from mlm.data.index import Index
from mlm.tasks.pretraining.losses import Losses, few_tokens
from mlm.tasks.pretraining.task import Pretraining
from tests.text_fixtures import corpus, paragraphs, shards_folder, tokenizer
from tests.training_fixtures import config


def test_progress_leaves_out_the_samples_of_skipped_steps():
    task = Pretraining(config())
    counts = [
        sum(task.progress(4, skipped)["tokens_by_language"].values())
        for skipped in (set(), {1, 3}, {4})
    ]
    assert counts == [steps * 8 * 31 for steps in (4, 2, 4)]  # 8 sequences of <s> and 31 tokens


def test_few_tokens_names_the_languages_with_inexact_losses():
    names = [f"l{number}" for number in range(9)]
    assert few_tokens(Losses([1.0] * 9, [100] * 9, names)) == ""
    text = few_tokens(Losses([1.0] * 9, [100, 99, 100, 0, *[100] * 5], names))
    assert text == "; of fewer than 100 masked tokens, and so inexact: l1 (99), l3 (0)"
    assert few_tokens(Losses([1.0] * 9, [5] * 9, names)).endswith("l4 (5) and 4 more languages")


def evaluated(run: Path) -> tuple[set[str], int]:
    """Languages and masked tokens of the last evaluation of a run."""
    found = json.loads((run / "evaluation.json").read_text())["eval_tokens_by_language"]
    return {name for name, count in found.items() if count}, sum(found.values())


@pytest.mark.ranks
def test_train_evaluates_on_a_corpus_of_its_own(tmp_path, capfd):
    """All of its text, of languages that need not be those of training."""
    text = tmp_path / "validation"
    text.mkdir()
    (text / "en.txt").write_text("\n\n".join(paragraphs("en", 70)))
    (text / "de.txt").write_text(paragraphs("sw", 1)[0])
    size = ["model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2"]
    size += ["model.intermediate_size=64", "model.max_position_embeddings=34", "data.seq_len=32"]
    short = ["train.steps=1", "train.global_batch_size=2", "train.micro_batch_size=2"]
    given = [*size, *short, "train.dtype=fp32", "tracker=none", f"run.dir={tmp_path}/runs"]
    given += ["schedule.warmup_steps=0", "eval.blocks_per_language=0"]
    given += [f"data.corpus={corpus()}", f"data.tokenizer={tokenizer().model_path.parent}"]
    assert main(["train", *given, "data.heldout=0", "run.name=none"]) == 2
    assert "data.heldout=0 leaves nothing to evaluate on; add" in capfd.readouterr().err
    given += ["data.heldout=0", f"eval.corpus={text}"]
    assert main(["train", *given, "run.name=own"]) == 0
    languages, tokens = evaluated(tmp_path / "runs" / "own")
    assert languages == {"de", "en"}
    (made,) = (
        index
        for folder in (tmp_path / "runs" / "prepared").iterdir()
        if sum((index := Index.open(folder / "shards")).heldout_tokens)
    )
    assert sum(made.train_tokens) == 0
    assert tokens == pytest.approx(0.15 * sum(made.heldout_tokens), rel=0.1)
    printed = capfd.readouterr().out
    assert "so inexact: de (" in printed
    log = (tmp_path / "runs" / "own" / "train.log").read_text()
    for text in (printed, log):
        assert "Shards of 4 languages are in" in text
        assert "Evaluated, but not trained on: de, of which data has no text under that" in text
        assert "no tokens" in text  # the head of the table of what was dropped
    # The same, from shards that `mlm shards ... heldout=1` wrote.
    same = Pretraining(config(eval={"shards": str(made.folder), "blocks_per_language": 0}))
    assert same.heldout.reader.index.languages == ["de", "en"]
    assert sum(same.heldout.tokens) == sum(made.heldout_tokens)
    assert main(["train", *given, f"eval.shards={made.folder}"]) == 2
    assert "are both given; omit one" in capfd.readouterr().err


def test_train_refuses_shards_that_hold_nothing_out(tmp_path, capfd):
    out, folder = tmp_path / "out", tokenizer().model_path.parent
    given = [f"corpus={corpus()}", f"tokenizer={folder}", f"out={out}", "heldout=0"]
    assert main(["shards", *given]) == 0
    assert main(["train", f"data.shards={out}", f"run.dir={tmp_path}/runs"]) == 76
    error = capfd.readouterr().err
    assert "has held-out text to evaluate on; write the shards again" in error
    given = [f"data.shards={shards_folder()}", f"data.tokenizer={folder}", "data.seq_len=32"]
    assert main(["train", *given, f"eval.shards={tmp_path}", f"run.dir={tmp_path}/runs"]) == 76
    assert f"{tmp_path} has no index.json" in capfd.readouterr().err
