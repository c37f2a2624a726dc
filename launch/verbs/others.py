"""What the small verbs do: each takes composed settings and calls the part that does the work."""

import json
from pathlib import Path

from rich.console import Console

from launch.compose import Composed
from mlm.config import (
    AuditConfig,
    CheckpointsConfig,
    ExportConfig,
    FillConfig,
    ImportConfig,
    ShardsConfig,
    TokenizerConfig,
    load,
)
from mlm.errors import UserError


def tokenizer(composed: Composed) -> None:
    """`mlm tokenizer`."""
    from mlm.data.prepare import train_tokenizer
    from mlm.text.corpus import resolve

    config = load(TokenizerConfig, composed.settings)
    out = Path(config.out)
    made = train_tokenizer(config, resolve(config.corpus), out, Console())
    print(f"A tokenizer of {made.size:,} ids is in {out}")


def shards(composed: Composed) -> None:
    """`mlm shards`."""
    from mlm.data.index import Index
    from mlm.data.prepare import write_shards
    from mlm.data.writing.drops import table
    from mlm.data.writing.shards import REPORT, Options
    from mlm.text.corpus import resolve

    config = load(ShardsConfig, composed.settings)
    out, console = Path(config.out), Console()
    options = Options(config.dedup, config.on_bad_line == "skip")
    corpus, tokenizer = resolve(config.corpus), Path(config.tokenizer)
    write_shards(corpus, tokenizer, out, config.workers, console, options)
    console.print(table(json.loads((out / REPORT).read_text())))
    index = Index.open(out)
    held_out = sum(index.heldout_tokens)
    print(
        f"Shards of {len(index.languages)} languages are in {out}: {sum(index.train_tokens):,} "
        f"tokens to train on, {held_out:,} held out ({', '.join(index.languages)})"
    )


def fill(composed: Composed) -> None:
    """`mlm fill PATH TEXT ...`."""
    config = load(FillConfig, composed.settings)
    if not config.texts:
        raise UserError(
            f"no text is given behind the folder {config.path}, so there is nothing to fill; write "
            f"mlm fill PATH TEXT, with <mask> in the text"
        )
    from mlm.trained import fill

    fill.fill(config.path, config.texts, config.top)


def export(composed: Composed) -> None:
    """`mlm export PATH OUT`."""
    config = load(ExportConfig, composed.settings)
    from mlm.hf.export import export as write

    write(config.path, config.out, config.dtype)


def import_(composed: Composed) -> None:
    """`mlm import PATH OUT`."""
    config = load(ImportConfig, composed.settings)
    from mlm.hf.importing import import_model

    import_model(config.path, config.out, config.tokenizer, config.head)


def checkpoints(composed: Composed) -> None:
    """`mlm checkpoints RUN`."""
    config = load(CheckpointsConfig, composed.settings)
    if config.keep is None and config.keep_every:
        raise UserError(
            f"keep_every={config.keep_every} is given without keep, and then nothing is deleted; "
            f"add keep=N, the number of the newest that stay"
        )
    if config.keep is not None and not config.verify:
        raise UserError(
            f"keep={config.keep} is given with verify=false, and what is deleted must not be the "
            f"only whole one; leave verify=false out"
        )
    run = Path(config.run)
    from launch.run_folder import held
    from mlm.checkpoint.listing import show
    from mlm.checkpoint.writing import Keep

    if config.keep is None:
        show(run, config.verify, None)
        return
    with held(run):
        show(run, config.verify, Keep(config.keep, config.keep_every))


def audit(composed: Composed) -> None:
    """`mlm audit RUN`."""
    config = load(AuditConfig, composed.settings)
    if config.step is not None and config.every:
        raise UserError("step and every=true are both given; leave one out")
    from mlm.training.audit import Audit

    found = Audit(Path(config.run))
    if config.documents is not None:
        found.write_documents(Path(config.documents), Console())
    elif config.step is not None:
        found.show_step(config.step, config.rows, Console())
    else:
        found.show(config.every, Console())
