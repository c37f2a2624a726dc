"""`mlm train`: everything is checked and prepared here, once, before a process starts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from launch import run_folder
from launch.compose import Composed
from launch.launchers import local
from launch.resolve import resolve
from launch.weights import with_weights
from mlm.config import TrainConfig, load
from mlm.errors import FAILED, REQUEUE, UserError
from parallel.layout import Layout, LayoutError


@dataclass(frozen=True)
class Run:
    """A run that is ready to be started: its folder is made and locked by the open `log`.

    shards: where they are; skip: whether bad ones are left out
    """

    folder: Path
    config_path: Path
    layout: Layout
    log: IO[bytes]
    shards: str
    skip: bool


class Stopped(KeyboardInterrupt):
    """A point of a sweep was stopped; not an `Exception`, so that Hydra starts no other point."""

    code = REQUEUE


def train(composed: Composed) -> float | None:
    """Runs a composed job on this machine; returns its last evaluation loss.

    Raises `UserError` with the code and the sentence of a run that did not end well.
    """
    run = ready(composed)
    with run.log:
        command = local.torchrun(run.config_path, run.layout.world_size)
        left = local.run(command, run.folder, local.environment(run.layout.world_size), run.log)
    left = explained(left, run.folder, run.shards, run.skip)
    if left.code == REQUEUE and composed.sweep:
        raise Stopped(left.sentence)
    return local.finish(left, run.folder)


def ready(composed: Composed, processes: int | None = None) -> Run:
    """Checks a composed job, prepares its data and makes its run folder; raises `UserError`.

    `processes`: how many there are already, under torchrun, where no corpus is prepared.
    """
    composed, said = with_weights(composed)
    config = load(TrainConfig, composed.settings)
    if processes is not None and config.data.shards is None:
        raise UserError(
            f"data.corpus={config.data.corpus} is prepared by one process, and {processes} were "
            f"started; run `mlm tokenizer` and `mlm shards` first, and give data.shards=DIR"
        )
    if config.data.corpus and config.data.shards:
        raise UserError(
            f"data.corpus={config.data.corpus} and data.shards={config.data.shards} are both "
            f"given; leave one out"
        )
    config, layout = resolve(config, processes)
    name = run_folder.run_name(
        composed.sweep or config.run.name, composed.model, Path(config.run.dir)
    )
    config = replace(config, run=replace(config.run, name=name))
    folder = Path(config.run.dir) / name
    if config.run.fresh and config.weights:
        _keep_weights(folder, Path(config.weights))
    before = run_folder.check_folder(folder, config.run.fresh)
    if before is not None:
        run_folder.check_same_run(folder, before, config)
    config, hashes = _with_data(config, layout, composed.overrides)
    if before is not None:
        run_folder.check_same_run(folder, before, config)
        run_folder.check_same_data(folder, hashes)
    log = run_folder.claim(folder, config.run.fresh)
    run = replace(config.run, dir=str(Path(config.run.dir).resolve()), fresh=False)
    config = replace(config, run=run)
    path = run_folder.write(folder.resolve(), config, composed.overrides, hashes)
    for sentence in said:
        print(sentence, flush=True)
    skip = config.data.on_bad_shard == "skip"
    return Run(folder, path, layout, log, str(config.data.shards), skip)


def explained(left: local.Outcome, folder: Path, shards: str, skip: bool) -> local.Outcome:
    """The outcome; of a rank that died because a shard that it had mapped was cut, or lost its
    disk, that: the system ends such a rank before it can say so."""
    from mlm.data.index import Index
    from mlm.data.reading.remote_files import is_url
    from mlm.health.incidents import read_incidents, skipped_shards
    from mlm.health.outcome import write_outcome

    # The others may have said that they lost it. What is remote is mapped from whole copies.
    if left.code != FAILED or is_url(shards):
        return left
    known = skipped_shards(read_incidents(folder))
    try:
        found = (bad for bad in Index.open(Path(shards)).bad_shards() if bad.shard not in known)
        bad = next(found, None)
    except UserError as error:
        bad = error
    if bad is None:
        return left
    sentence = str(bad)
    if skip:
        sentence = f"{sentence.rpartition('; ')[0]}; start the run again, which leaves it out"
    write_outcome(folder, bad.code, sentence, left.step, left.eval_loss)
    return local.Outcome(bad.code, sentence, left.step, left.eval_loss)


def _with_data(
    config: TrainConfig, layout: Layout, overrides: list[str]
) -> tuple[TrainConfig, dict[str, str]]:
    """The config with its data prepared and its vocabulary known, and the data's hashes."""
    from rich.console import Console

    from mlm.data.prepare import check_data, prepare, with_tokenizer

    if config.data.shards is None:
        config = prepare(config, Path(config.run.dir) / run_folder.PREPARED, Console())
    else:
        config = with_tokenizer(config)
    facts = check_data(config)
    _check_size(config, overrides)
    try:
        layout.check_vocabulary(facts.vocab_size)
    except LayoutError as error:
        raise UserError(str(error)) from None
    config = replace(config, model=replace(config.model, vocab_size=facts.vocab_size))
    return config, {"index": facts.index_hash, "tokenizer": facts.tokenizer_hash}


def _check_size(config: TrainConfig, overrides: list[str]) -> None:
    """Raises `UserError` where a size is asked for that a tokenizer which is there has not."""
    from mlm.tokenizer.tokenizer import Tokenizer

    asked = [text for text in overrides if text.startswith("data.vocab_size=")]
    size = Tokenizer.load(Path(str(config.data.tokenizer))).size
    if asked and config.data.vocab_size != size:
        raise UserError(
            f"{asked[-1]} is for a tokenizer that is to be trained, and the one in "
            f"{config.data.tokenizer} has {size} ids; leave it out"
        )


def _keep_weights(folder: Path, weights: Path) -> None:
    """Raises `UserError` where a fresh start in `folder` would delete what it begins with."""
    if weights.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"run.fresh=true would delete {folder}, and weights={weights} lie in it; give another "
            f"run.name"
        )
