"""`mlm audit RUN`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from pathlib import Path

    from rich.console import Console

    from mlm.config import AuditConfig, load
    from mlm.errors import UserError

    config = load(AuditConfig, composed.settings)
    if config.step is not None and config.every:
        raise UserError(f"step={config.step} and every=true are both given; omit one")
    from mlm.training.audit import Audit

    found = Audit(Path(config.run))
    if config.documents is not None:
        found.write_documents(Path(config.documents), Console())
    elif config.step is not None:
        found.show_step(config.step, config.rows, Console())
    else:
        found.show(config.every, Console())


VERB = Verb("shows what a run was trained on", "AuditConfig", run, ("run",))
