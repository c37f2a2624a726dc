"""`mlm tokenizer corpus=DIR out=DIR`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from pathlib import Path

    from mlm.config import TokenizerConfig, load
    from mlm.console import plain_console
    from mlm.data.prepare import train_tokenizer
    from mlm.text.corpus import name_skipped, resolve

    config = load(TokenizerConfig, composed.settings)
    corpus, out, console = resolve(config.corpus), Path(config.out), plain_console()
    name_skipped(corpus, console.print)
    made = train_tokenizer(config, corpus, out, console)
    print(f"A tokenizer of {made.size:,} ids is in {out}")


VERB = Verb("trains a tokenizer", "TokenizerConfig", run)
