"""`mlm checkpoints RUN`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from pathlib import Path

    from mlm.config import CheckpointsConfig, load
    from mlm.errors import UserError

    config = load(CheckpointsConfig, composed.settings)
    if config.keep is None and config.keep_every:
        raise UserError(
            f"keep_every={config.keep_every} is given without keep, and then nothing is deleted; "
            f"add keep=N, the number of the newest that stay"
        )
    if config.keep is not None and not config.verify:
        raise UserError(
            f"keep={config.keep} is given with verify=false, and what is deleted must not be the "
            f"only whole one; omit verify=false"
        )
    folder = Path(config.run)
    from launch.run_folder import held
    from mlm.checkpoint.listing import show
    from mlm.checkpoint.writing import Keep

    if config.keep is None:
        show(folder, config.verify, None)
        return
    with held(folder):
        show(folder, config.verify, Keep(config.keep, config.keep_every))


VERB = Verb("lists, verifies and prunes checkpoints", "CheckpointsConfig", run, ("run",))
