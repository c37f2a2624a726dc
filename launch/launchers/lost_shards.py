"""Why a rank died that could not say so: the system ends a process at once whose mapped file was
cut, or lost its disk."""

from dataclasses import replace
from pathlib import Path

from launch.launcher import Outcome
from mlm.errors import FAILED, UserError


def explained(outcome: Outcome, folder: Path, shards: str, skip: bool) -> Outcome:
    """The outcome of a run; where a rank died of a shard that is bad now, that shard's.

    skip: whether bad shards are skipped
    """
    from mlm.data.index import Index
    from mlm.data.reading.remote_files import is_url
    from mlm.health.incidents import read_incidents, skipped_shards
    from mlm.health.outcome import write_outcome

    # The others may have reported that they lost it. What is remote is mapped from whole copies.
    if outcome.code != FAILED or is_url(shards):
        return outcome
    known = skipped_shards(read_incidents(folder))
    try:
        found = (bad for bad in Index.open(Path(shards)).bad_shards() if bad.shard not in known)
        bad = next(found, None)
    except UserError as error:
        bad = error
    if bad is None:
        return outcome
    sentence = str(bad)
    if skip:
        sentence = f"{sentence.rpartition('; ')[0]}; start the run again, which skips it"
    write_outcome(folder, bad.code, sentence, outcome.step, outcome.eval_loss)
    return replace(outcome, code=bad.code, sentence=sentence)
