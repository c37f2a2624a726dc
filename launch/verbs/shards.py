"""`mlm shards corpus=DIR tokenizer=DIR out=DIR`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from pathlib import Path

    from mlm.config import ShardsConfig, load
    from mlm.console import plain_console
    from mlm.data.prepare import write_shards
    from mlm.data.writing.shards import Options
    from mlm.text.corpus import resolve
    from mlm.text.sources import TextForm

    config = load(ShardsConfig, composed.settings)
    out, console = Path(config.out), plain_console()
    form = TextForm(config.field, config.document)
    options = Options(config.dedup, config.on_bad_line == "skip", form, config.heldout)
    corpus, tokenizer = resolve(config.corpus), Path(config.tokenizer)
    write_shards(corpus, tokenizer, out, config.workers, console, options)


VERB = Verb("writes token shards of a corpus", "ShardsConfig", run)
