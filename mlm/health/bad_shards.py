"""Shards that turn out to be bad while a run goes on: left out, or its end."""

from collections.abc import Callable

from mlm.config import DataConfig
from mlm.errors import BadShard, DataError
from mlm.health.incidents import Incidents, shards_left_out


class BadShards:
    """Those of a run, also of its earlier starts. All ranks make one, and hear of the same."""

    def __init__(
        self, data: DataConfig, leave_out: Callable[[str, int], None], incidents: Incidents
    ) -> None:
        """leave_out: trains on no sample of a shard from a step on"""
        self._skip, self._most = data.on_bad_shard == "skip", data.max_bad_shards
        self._leave_out, self._incidents = leave_out, incidents
        for shard, step in shards_left_out(incidents.rows).items():
            leave_out(shard, step)

    def leave_out(self, step: int, bad: BadShard) -> str:
        """Goes on without a shard from a step on, counted from 0; what to tell of it.

        Raises `bad` where none may be left out, and `DataError` where there are too many.
        """
        if not self._skip:
            raise bad
        count = len({bad.shard, *shards_left_out(self._incidents.rows)})
        # Not one that the run does not go on without: it may be whole at the next start.
        if count > self._most:
            raise DataError(
                f"{count} shards are bad, and data.max_bad_shards={self._most} may be left out; "
                f"the last is {bad.shard} at byte {bad.offset}; copy it again, or allow more"
            )
        why = str(bad).rpartition("; ")[0]  # without the remedy
        self._incidents.bad_shard(step, bad.shard, bad.offset, why)
        self._leave_out(bad.shard, step)
        return f"Left out from step {step + 1} on, {count} by now: {why}"
