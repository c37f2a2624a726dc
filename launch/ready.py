"""From a composed job to a run that is ready: all is checked here, before a process starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from launch import run_folder
from launch.from_weights import with_weights
from launch.launcher import Launcher, Run
from launch.resuming import keys
from launch.verb import Composed
from mlm.config import TaskConfig, TrainConfig, load
from mlm.console import KeepingConsole
from mlm.errors import UserError
from mlm.plugins import entry, import_plugins
from mlm.tracking.screen import log_line
from mlm.tracking.trackers import check_trackers
from mlm.training.schedule import SCHEDULES
from parallel.layout import Layout, LayoutError


@dataclass(frozen=True)
class Job:
    """A composed job whose settings are checked; notes: sentences for the user."""

    composed: Composed
    config: TrainConfig
    notes: list[str]


def check(composed: Composed) -> Job:
    """Checks the settings of a composed job, and imports its plugins; raises `UserError`."""
    composed, notes = with_weights(composed)
    config = load(TrainConfig, composed.settings)
    import_plugins(config.plugins)
    entry(SCHEDULES, "schedule.kind", config.schedule.kind)
    check_trackers(config)
    if config.task != TaskConfig():
        from mlm.tasks.table import TASKS  # torch, which takes seconds

        entry(TASKS, "task.kind", config.task.kind)
    if config.train.attention != "auto":
        from mlm.model.kernels import KERNELS

        entry({"auto": None, **KERNELS}, "train.attention", config.train.attention)
    for name, given in (("data", config.data), ("eval", config.eval)):
        both = {f"{name}.corpus", f"{name}.shards"} <= keys(composed.overrides)
        if given.corpus and given.shards and (both or not composed.resumes):
            raise UserError(
                f"{name}.corpus={given.corpus} and {name}.shards={given.shards} are both given; "
                f"omit one"
            )
    return Job(composed, config, notes)


@contextmanager
def refusals_kept(composed: Composed) -> Iterator[None]:
    """A start of a run that is refused has an outcome, too, which its folder gets."""
    try:
        yield
    except UserError as error:
        run = composed.settings.get("run")
        run = run if isinstance(run, dict) else {}
        name = composed.sweep or run.get("name")
        if name and "dir" in run:
            run_folder.refuse(Path(str(run["dir"])) / str(name), error)
        raise


def ready(job: Job, launcher: Launcher) -> Run:
    """Prepares the data of a job and makes its run folder; raises `UserError`."""
    composed, console = job.composed, KeepingConsole()
    config, layout = launcher.resolve(job.config)
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
    if launcher.elsewhere:
        run = replace(config.run, dir=str(Path(config.run.dir).resolve()))
        config, folder = replace(config, run=run), folder.resolve()
        return Run(folder, folder / run_folder.CONFIG, config, layout, None, composed.overrides)
    config, hashes = with_data(config, layout, composed.overrides, console)
    if before is not None:
        run_folder.check_same_run(folder, before, config)
        run_folder.check_same_data(folder, hashes)
    log = run_folder.claim(folder, config.run.fresh)
    run = replace(config.run, dir=str(Path(config.run.dir).resolve()), fresh=False)
    config = replace(config, run=run)
    path = run_folder.write(folder.resolve(), config, composed.overrides, hashes)
    for note in job.notes:
        console.print(note, soft_wrap=True)
    for time, text in console.kept:
        log_line(folder, text, time)
    return Run(folder, path, config, layout, log, composed.overrides)


def with_data(
    config: TrainConfig, layout: Layout, overrides: list[str], console: Console
) -> tuple[TrainConfig, dict[str, str]]:
    """The config with its data prepared and its vocabulary known, and the data's hashes."""
    from mlm.data.checks import check_data, with_tokenizer
    from mlm.data.prepare import prepare, prepare_evaluation

    prepared = Path(config.run.dir) / run_folder.PREPARED
    if config.data.shards is None:
        data = prepare(config.data, prepared, console)
    else:
        data = with_tokenizer(config.data)
    config = replace(config, data=data)
    config = replace(config, eval=prepare_evaluation(config, prepared, console))
    facts = check_data(config)
    if facts.untrained:
        console.print(
            f"Evaluated, but not trained on: {', '.join(facts.untrained)}, of which data has no "
            f"text under that name",
            soft_wrap=True,
        )
    _check_size(config, overrides)
    try:
        model = config.model
        layout.check_vocabulary(
            facts.vocab_size, model.num_attention_heads, model.intermediate_size
        )
    except LayoutError as error:
        raise UserError(str(error)) from None
    config = replace(config, model=replace(config.model, vocab_size=facts.vocab_size))
    return config, {"index": facts.index_hash, "tokenizer": facts.tokenizer_hash}


def _check_size(config: TrainConfig, overrides: list[str]) -> None:
    """Raises `UserError` for a size that the tokenizer, which exists already, does not have."""
    from mlm.tokenizer.tokenizer import Tokenizer

    given = [text for text in overrides if text.startswith("data.vocab_size=")]
    size = Tokenizer.load(Path(str(config.data.tokenizer))).size
    if given and config.data.vocab_size != size:
        raise UserError(
            f"{given[-1]} is for a tokenizer that is trained here, and the one in "
            f"{config.data.tokenizer} has {size} ids; omit it"
        )


def _keep_weights(folder: Path, weights: Path) -> None:
    """Raises `UserError` where a fresh start in `folder` would delete what it begins with."""
    if weights.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"run.fresh=true would delete {folder}, and weights={weights} lie in it; give another "
            f"run.name"
        )
