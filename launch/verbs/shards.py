"""`mlm shards corpus=DIR tokenizer=DIR out=DIR`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    import json
    from pathlib import Path

    from mlm.config import ShardsConfig, load
    from mlm.console import counted, plain_console
    from mlm.data.index import Index
    from mlm.data.prepare import write_shards
    from mlm.data.writing.drops import table
    from mlm.data.writing.shards import REPORT, Options
    from mlm.text.corpus import resolve
    from mlm.text.sources import TextForm

    config = load(ShardsConfig, composed.settings)
    out, console = Path(config.out), plain_console()
    form = TextForm(config.field, config.document)
    options = Options(config.dedup, config.on_bad_line == "skip", form, config.heldout)
    corpus, tokenizer = resolve(config.corpus), Path(config.tokenizer)
    write_shards(corpus, tokenizer, out, config.workers, console, options)
    console.print(table(json.loads((out / REPORT).read_text())))
    index = Index.open(out)
    held_out = sum(index.heldout_tokens)
    print(
        f"Shards of {counted(len(index.languages), 'language')} are in {out}: "
        f"{sum(index.train_tokens):,} tokens to train on, {held_out:,} held out "
        f"({', '.join(index.languages)})"
    )


VERB = Verb("writes token shards of a corpus", "ShardsConfig", run)
