"""Shards found to be bad during a run: skipped, or the end of the run."""

from collections.abc import Callable

from mlm.config import DataConfig
from mlm.errors import BadShard, DataError
from mlm.health.incidents import Incidents, skipped_shards


class BadShards:
    """The bad shards of a run, including those of its earlier starts. Every rank makes one and gets
    the same reports."""

    def __init__(
        self, data: DataConfig, skip_shard: Callable[[str, int], None], incidents: Incidents
    ) -> None:
        """skip_shard: makes training skip the samples of a shard from a step on"""
        self._skip, self._most = data.on_bad_shard == "skip", data.max_bad_shards
        self._skip_shard, self._incidents = skip_shard, incidents
        for shard, step in skipped_shards(incidents.rows).items():
            skip_shard(shard, step)

    def skip(self, step: int, bad: BadShard) -> str:
        """Skips a shard from a step on, counted from 0; returns a sentence for people.

        Raises `bad` unless shards may be skipped, and `DataError` if there are too many.
        """
        if not self._skip:
            raise bad
        count = len({bad.shard, *skipped_shards(self._incidents.rows)})
        # The shard that ends the run is not recorded: it may be whole at the next start.
        if count > self._most:
            raise DataError(
                f"{count} shards are bad, and data.max_bad_shards={self._most} may be skipped; "
                f"the last is {bad.shard} at byte {bad.offset}; copy it again, or allow more"
            )
        why = str(bad).rpartition("; ")[0]  # without the remedy
        self._incidents.bad_shard(step, bad.shard, bad.offset, why)
        self._skip_shard(bad.shard, step)
        return f"Skipped from step {step + 1} on, {count} so far: {why}"
