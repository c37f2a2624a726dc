"""`mlm audit RUN`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from pathlib import Path

    from mlm.config import AuditConfig, load
    from mlm.config.table import shown
    from mlm.console import plain_console
    from mlm.errors import UserError

    config = load(AuditConfig, composed.settings)
    asked = {"step": config.step, "every": config.every, "documents": config.documents}
    given = [
        f"{name}={shown(value)}" for name, value in asked.items() if value not in (None, False)
    ]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are given; give one of them")
    from mlm.training.audit import Audit

    found = Audit(Path(config.run))
    if config.documents is not None:
        found.write_documents(Path(config.documents), plain_console())
    elif config.step is not None:
        found.show_step(config.step, config.rows, plain_console())
    else:
        found.show(config.every, plain_console())


VERB = Verb("shows what a run was trained on", "AuditConfig", run, ("run",))
