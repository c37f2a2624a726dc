"""`mlm export PATH OUT`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from mlm.config import ExportConfig, load

    config = load(ExportConfig, composed.settings)
    from mlm.hf import export

    export.export(config.path, config.out, config.dtype)


VERB = Verb("writes a Hugging Face folder", "ExportConfig", run, ("path", "out"))
