"""The rows of `metrics.jsonl`, and those that a resume drops."""

import json

import pytest

from mlm.tracking.metrics import METRICS, drop_after


def test_drop_after_drops_the_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / METRICS
    rows = [{"step": 2, "loss": 1}, {"step": 4, "loss": 1}, {"step": 4, "eval_loss": 1}]
    rows += [{"step": 6, "loss": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "lo')
    drop_after(path, 4, 10)
    assert [json.loads(line) for line in path.open()] == rows[:3]
    drop_after(path, 4, 4)  # the run's last evaluation is repeated
    assert [json.loads(line) for line in path.open()] == rows[:2]


@pytest.mark.parametrize("tail", [b"", b'{"step": 9, "lo', b'{"step": 4}'])
def test_drop_after_reads_no_rows_before_those_that_it_drops(tail, tmp_path):
    rows = [{"step": step} for step in (1, 2, 3)]
    rows += [{"step": 3, "eval_loss": 1.0}, {"step": 4}, {"step": 4, "eval_loss": 2.0}]
    text = [json.dumps(row).encode() + b"\n" for row in rows]
    # A row that is not read can hold anything.
    path, first = tmp_path / METRICS, b"not JSON, and of no step\n"
    expected = {0: 0, 2: 3, 3: 5, 4: 7}
    for start, kept in expected.items():
        path.write_bytes(first + b"".join(text) + tail)
        drop_after(path, start, 100)
        left = path.read_bytes().splitlines()
        more = tail == b'{"step": 4}' and start == 4
        assert left == [first.strip(), *(row.strip() for row in text)][:kept] + [tail] * more
        assert not left or path.read_bytes().endswith(b"\n")
    # The last evaluation is repeated.
    path.write_bytes(first + b"".join(text))
    drop_after(path, 4, 4)
    assert path.read_bytes() == first + b"".join(text[:-1])
    path.write_bytes(b"")
    drop_after(path, 4, 4)
    assert path.read_bytes() == b""
