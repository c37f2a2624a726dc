"""`python -m launch.launchers.slurm.ended RUN MAX_REQUEUES WARNED ENDED`, at the end of a job.

Says on standard error how the attempt ended and what follows, prints `requeue` where the job is to
come back, and exits with the code of the outcome.
"""

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from launch.run_folder import REFUSALS, saved_step
from mlm.errors import DONE, FAILED, REQUEUE
from mlm.files.jsonl import append_row, read_rows
from mlm.health.outcome import read_outcome
from mlm.health.stopping import STOP

REQUEUES = "requeues.jsonl"  # a row for each end of an attempt


@dataclass(frozen=True)
class End:
    """How an attempt ended. requeue: whether the job comes back by itself; why: why it does not,
    where that needs words"""

    code: int
    sentence: str
    requeue: bool
    why: str = ""


def judge(
    folder: Path, attempt: str, *, max_requeues: int, warned: bool = False, ended: bool = False
) -> End:
    """How an attempt of the run in `folder` ended, and whether it is worth another.

    warned: the time limit was near; ended: Slurm has ended the job before (it was cancelled, or
    preempted: Slurm requeues it then)
    """
    values = read_outcome(folder)
    if values is None or values.get("attempt") != attempt:
        refusals = read_rows(folder / REFUSALS, skip_damaged=True)
        values = next((row for row in refusals if row.get("attempt") == attempt), None)
    code = values["code"] if values else FAILED
    said = values["sentence"] if values else "the ranks ended without an outcome"
    if ended:
        return End(code, said, False, "Slurm has ended it")
    if (
        code == REQUEUE
    ):  # without a warning: asked by a user's file, or by what ends ranks in a fault
        return End(code, said, warned or not (folder / STOP).exists())
    if code != FAILED:
        return End(code, said, False)
    if values and values.get("repeats"):
        return End(code, said, False, "it would fail again")
    step, before = saved_step(folder), read_rows(folder / REQUEUES, skip_damaged=True)
    last = before[-1] if before else {}
    if values and (last.get("sentence"), last.get("step")) == (said, step):
        return End(code, said, False, "so it did before, from the same checkpoint")
    count = 0
    for row in reversed(before):
        if row.get("step") != step or not row.get("requeued"):
            break
        count += 1
    if count >= max_requeues:
        kept = "no checkpoint" if step is None else f"none after that of step {step}"
        why = f"{count} attempts in a row have made {kept} (launch.max_requeues={max_requeues})"
        return End(code, said, False, why)
    return End(code, said, True)


def main(arguments: list[str]) -> int:
    folder, attempt = Path(arguments[0]), os.environ["POLYMLM_ATTEMPT"]
    limit, warned, ended = (int(text) for text in arguments[1:])
    end = judge(folder, attempt, max_requeues=limit, warned=bool(warned), ended=bool(ended))
    row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "attempt": attempt}
    row |= {"code": end.code, "sentence": end.sentence}
    append_row(folder / REQUEUES, row | {"step": saved_step(folder), "requeued": end.requeue})
    after = "requeued" if end.requeue else "done" if end.code == DONE else "not requeued"
    after += f": {end.why}" if end.why else ""
    print(f"mlm: attempt {attempt}: {end.sentence} [code {end.code}, {after}]", file=sys.stderr)
    if end.requeue:
        print("requeue")
    return end.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
