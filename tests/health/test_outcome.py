"""The outcome file: written once and whole, by the first process that has an outcome."""

import json

from mlm.health.outcome import make_room, write_outcome


def test_outcome_keeps_the_first_and_leaves_no_other_file(tmp_path):
    make_room(tmp_path)
    write_outcome(tmp_path, 76, "the text is bad", 3, 2.5)
    write_outcome(tmp_path, 1, "a rank went away")
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
    assert json.loads((tmp_path / "outcome.json").read_text()) == {
        "code": 76,
        "sentence": "the text is bad",
        "step": 3,
        "eval_loss": 2.5,
    }
