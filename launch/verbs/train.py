"""`mlm train`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> float | None:
    """Runs a composed job; returns its last evaluation loss.

    Raises `UserError` with the code and the sentence of a run that did not end well.
    """
    from contextlib import nullcontext

    from launch.launcher import Stopped, finish
    from launch.launchers import LAUNCHERS
    from launch.ready import check, ready, refusals_kept
    from mlm.errors import REQUEUE
    from mlm.plugins import entry

    with refusals_kept(composed):
        job = check(composed)
        launcher = entry(LAUNCHERS, "launch.kind", job.config.launch.kind)()
        started = ready(job, launcher)
    with started.log or nullcontext():
        outcome = launcher.start(started)
    if outcome is None:  # submitted
        return None
    if outcome.code == REQUEUE and composed.sweep:
        raise Stopped(outcome.sentence)
    return finish(outcome, started.folder)


def choices() -> dict[str, list[str]]:
    from launch.launchers import LAUNCHERS
    from mlm.tracking.trackers import TRACKERS
    from mlm.training.schedule import SCHEDULES

    return {
        "schedule": list(SCHEDULES),
        "tracker": [*TRACKERS, "none"],
        "launch": list(LAUNCHERS),
    }


VERB = Verb("pretrains a masked language model", "TrainConfig", run, choices=choices)
