"""`mlm fill PATH TEXT ...`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from mlm.config import FillConfig, load
    from mlm.errors import UserError

    config = load(FillConfig, composed.settings)
    if not config.texts:
        raise UserError(
            f"no text is given after the folder {config.path}, so there is nothing to fill; write "
            f"mlm fill PATH TEXT, with <mask> in the text"
        )
    from mlm.trained import fill

    fill.fill(config.path, config.texts, config.top)


VERB = Verb("fills the masks of a text", "FillConfig", run, ("path", "texts"), many=True)
