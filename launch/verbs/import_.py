"""`mlm import PATH OUT`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from mlm.config import ImportConfig, load

    config = load(ImportConfig, composed.settings)
    from mlm.hf import importing

    importing.import_model(config.path, config.out, config.tokenizer, config.head)


VERB = Verb("reads a model from elsewhere", "ImportConfig", run, ("path", "out"))
