"""`mlm tokenizer corpus=DIR out=DIR`."""

from launch.verb import Composed, Verb


def run(composed: Composed) -> None:
    from pathlib import Path

    from rich.console import Console

    from mlm.config import TokenizerConfig, load
    from mlm.data.prepare import train_tokenizer
    from mlm.text.corpus import resolve

    config = load(TokenizerConfig, composed.settings)
    out = Path(config.out)
    made = train_tokenizer(config, resolve(config.corpus), out, Console())
    print(f"A tokenizer of {made.size:,} ids is in {out}")


VERB = Verb("trains a tokenizer", "TokenizerConfig", run)
