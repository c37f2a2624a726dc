"""What rows of incidents say is skipped."""

from mlm.health.incidents import BAD_SHARD, REFUSED, SKIPPED, skipped_shards, skipped_steps


def test_skipped_steps_reads_rows_of_earlier_versions():
    rows = [("left out", 3), (SKIPPED, 5), (REFUSED, 7)]
    assert skipped_steps([{"what": what, "step": step} for what, step in rows]) == {2, 4}


def test_skipped_shards_counts_from_the_first_step_of_each():
    rows = [(BAD_SHARD, 9, "a"), (BAD_SHARD, 4, "b"), (BAD_SHARD, 5, "a"), (BAD_SHARD, 7, "a")]
    found = [{"what": what, "step": step, "shard": shard} for what, step, shard in rows]
    assert skipped_shards([*found, {"what": REFUSED, "step": 1}]) == {"a": 4, "b": 3}
