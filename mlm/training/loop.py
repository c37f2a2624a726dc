"""The training loop of one rank. It trains a task, whatever that task is."""

import gc
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mlm import checkpoint
from mlm.config import as_dict
from mlm.data.audit.ledger import Ledger
from mlm.data.prefetch import Prefetcher
from mlm.errors import BadShard, DataError, NumbersError, StopRequested, UserError
from mlm.health.bad_shards import BadShards
from mlm.health.drift import check_batches_agree, check_weights_agree
from mlm.health.guard import Guard
from mlm.health.incidents import Incidents
from mlm.health.stopping import requested
from mlm.health.stragglers import Pace
from mlm.health.watchdog import Watchdog
from mlm.tracking.report import Report
from mlm.training.build import TrainingRun
from mlm.training.schedule import learning_rate
from mlm.training.throughput import Stopwatch, peak_flops, peak_memory
from mlm.training.window import Window
from mlm.training.world import Agreement, agree

TRIES = 2  # of a step, before the state itself is in doubt


@dataclass
class Progress:
    """How far a run has come, for its outcome, also that of a run that failed."""

    step: int = 0
    eval_loss: float | None = None


@dataclass(frozen=True)
class Numbers:
    """The figures of a step; NaN where it was skipped."""

    loss: float = math.nan
    grad_norm: float = math.nan
    lr: float = math.nan


class Loop:
    """Trains from where `progress` is to the end; all ranks make one, and take the same steps."""

    def __init__(
        self,
        run: TrainingRun,
        folder: Path,
        report: Report,
        progress: Progress,
        watchdog: Watchdog,
    ) -> None:
        self.run, self.config, self.folder = run, run.config, folder
        self.task, self.engine = run.task, run.engine
        self.report, self.progress, self.watchdog = report, progress, watchdog
        self.tally, self.window = run.task.tally(run.engine.device), Window()
        kept = checkpoint.Keep(self.config.checkpoint.keep, self.config.checkpoint.keep_every)
        self.saver = checkpoint.Saver(
            self.engine, folder, kept, self.config.checkpoint.background, watchdog.moved
        )
        self.saved = progress.step  # the step of the last save, which may still be running
        self.ledger = Ledger(folder, progress.step) if report.main else None
        self.incidents = Incidents(folder, self.config.train.global_batch_size)
        guard = self.config.guard
        self.guard = Guard(guard.spike, guard.rollbacks, self.incidents.skipped)
        self.engine.judge = self.guard.judge
        self.bad_shards = BadShards(self.config.data, self.task.skip_shard, self.incidents)
        self.fault = ""  # of the step that was refused last
        _freeze_garbage()
        self.pace = Pace(run.grid, self.engine.device)
        self.stopwatch = Stopwatch(watchdog.recorder.seconds)

    def train(self) -> None:
        """Raises `UserError` on all ranks alike, and `StopRequested` after a save."""
        while self.progress.step < self.config.train.steps:
            with Prefetcher(self.run.micro_batches, self.progress.step) as feed:
                self._train_from(feed)
        self._evaluate()
        if not math.isfinite(loss := self.progress.eval_loss or 0.0):  # before it is saved
            raise NumbersError(
                f"the held-out loss after the last step is {loss}, so the weights hold numbers "
                f"that are not finite; begin a new run with a lower optim.lr or more "
                f"schedule.warmup_steps"
            )
        self._save()
        self.saver.wait()

    def _train_from(self, feed: Prefetcher) -> None:
        """Trains until all steps are done, or the next batches are not those of `feed`."""
        steps = self.config.train.steps
        while self.progress.step < steps:
            step = self.progress.step
            try:
                batches, agreed = self._next_batches(feed)
            except BadShard as bad:
                self.report.say(self.bad_shards.skip(step, bad))
                return
            numbers = None
            if step not in self.guard.skipped:
                numbers = self._try_step(step, batches, agreed.normaliser)
                if numbers is None and not self._recovered(step):
                    return
            if numbers is None:
                self.engine.skip_step()
            else:
                self.window.add(numbers.loss, agreed.normaliser)
            if self.ledger is not None:
                self.ledger.add(0 if numbers is None else agreed.digest)
            self.progress.step = step + 1
            self._after_step(numbers)

    def _after_step(self, numbers: Numbers | None) -> None:
        """What happens between steps: checks, logging, evaluation, saving."""
        done, steps, config = self.progress.step, self.config.train.steps, self.config
        if _is_due(done, config.checks.replicas_every):
            check_weights_agree(self.engine, self.saver, done)
        self.report.step(done)
        if _is_due(done, config.train.log_every) or done in (1, steps):
            self._log(numbers or Numbers())
        with self.stopwatch.pause():
            # Evaluated first, so that a checkpoint's evaluation is never missing after a resume.
            if _is_due(done, config.eval.every) and done < steps:
                self._evaluate()
            # Not after a skipped step: only one that was applied shows that the state is good.
            if _is_due(done, config.checkpoint.every) and numbers is not None:
                self._save()

    def _next_batches(self, feed: Prefetcher) -> tuple[list[Any], Agreement]:
        """This data rank's next micro-batches, and what all ranks know of the global batch.

        Raises on all ranks the error of any rank, or `StopRequested`.
        """
        self.watchdog.enter("data")
        batches, error = _fetch(feed, self.stopwatch)
        stop = requested(self.folder, main=self.report.main)
        self.watchdog.enter("step")
        error = error or self.saver.failure()
        normaliser = self.task.normaliser(batches)
        agreed = agree(self.run.grid, self.engine.device, batches, normaliser, stop, error)
        if agreed.stop:
            self._save()
            self.saver.wait()
            done = self.progress.step
            at = f"after step {done}, which is saved" if done else "before the first step"
            raise StopRequested(
                f"stopped as asked {at}; start the run again, without run.fresh, to resume"
            )
        return batches, agreed

    def _try_step(self, step: int, batches: list[Any], normaliser: int) -> Numbers | None:
        """Takes a step; None: it was refused, and has left no trace."""
        config, engine = self.config, self.engine
        lr = learning_rate(step, config.train.steps, config.optim.lr, config.schedule)
        scaled = self.run.scaled(batches, step, normaliser)
        if _is_due(step + 1, config.checks.replicas_every):
            check_batches_agree(engine, scaled, self.saver, step + 1)
        for _ in range(TRIES):
            result = engine.train_batch(scaled, lr)
            loss, norm = result.loss, result.grad_norm
            self.stopwatch.steps += 1
            if result.applied:
                self.tally.add(scaled, result.outputs)
                self.guard.applied(step, loss, norm)
                return Numbers(loss, norm, lr)
            alone = f"the gradient on rank {result.refused_by} is wrong: it is not that of others"
            self.fault = self.guard.fault(loss, norm) or alone
            self.incidents.refused(step, self.fault, loss, norm)
            self.report.say(f"Step {step + 1} is not applied: {self.fault}")
        return None

    def _recovered(self, step: int) -> bool:
        """Whether training continues after a refused step; if not, the run has gone back.

        Raises `NumbersError` where nothing helps.
        """
        remedy = self.guard.remedy(step)
        if remedy.back:
            self._roll_back(step, min(remedy.skip, default=step))
        elif not remedy.skip:
            self.saver.wait()
            raise NumbersError(self._no_remedy(step))
        for each in remedy.skip:
            if each >= self.progress.step and each not in self.guard.skipped:
                self.guard.skipped.add(each)
                self.incidents.skip(each)
                self.report.say(f"The batch of step {each + 1} is skipped from now on")
        return not remedy.back

    def _roll_back(self, step: int, at_most: int) -> None:
        """To the last good checkpoint of at most so many steps; without one, to the beginning."""
        self.watchdog.enter("roll back")
        with self.stopwatch.pause():
            self.saver.wait()
            had_checkpoint = self.saver.last is not None
            found, damaged = checkpoint.choose(self.folder, at_most)
            for sentence in damaged:
                self.report.say(f"Skipped: {sentence}")
            if found is not None:
                to = checkpoint.read_manifest(found).step
                checkpoint.restore(self.engine, found, to)
                self.saver.last = to
            elif had_checkpoint:
                raise DataError(
                    f"{self.folder} has lost its checkpoints while it ran, and step {step + 1} "
                    f"needs one to resume from; put them back, and start the run again"
                )
            else:
                to = 0
                self.run.restart()
            self.tally.clear()
            self.window.clear()
            self.progress.step = self.saved = to
            self.report.back(to)
            if self.ledger is not None:
                self.ledger.back(to)
            self.incidents.rolled_back(step, to)
            self.report.say(f"Going back from step {step + 1} to step {to}")

    def _no_remedy(self, step: int) -> str:
        limit, stands, keeps = self.guard.limit, "nothing has been saved", ""
        if self.saver.last is not None:
            stands = f"the checkpoint of step {self.saver.last} is kept"
            keeps = f" (weights={self.folder} starts from what was learnt)"
        tried = f"also after {limit} returns to a checkpoint" if limit else "twice"
        return (
            f"step {step + 1}: {self.fault}, {tried} (guard.rollbacks={limit}); {stands}; begin a "
            f"new run with a lower optim.lr or more schedule.warmup_steps{keeps}"
        )

    def _log(self, numbers: Numbers) -> None:
        self.watchdog.enter("log")
        done, tokens = self.progress.step, self.task.tokens_per_step
        tallied = self.tally.take(self.engine)
        seconds, waiting, working = self.stopwatch.lap()
        speed = tokens / seconds
        peak, flops = peak_flops(self.engine.device), self.task.flops_per_token * speed
        ranks, slow = self.pace.figures(working, peak_memory(self.engine.device))
        counts = self.incidents.counts
        self.report.step_metrics(
            {
                "step": done,
                "loss": self.window.take(),
                "lr": numbers.lr,
                "grad_norm": numbers.grad_norm,
                "tokens": done * tokens,
                "tokens_per_second": speed,
                "mfu": peak and flops / peak / dist.get_world_size(),
                "seconds_data": waiting,
                "seconds_step": seconds,
                **tallied,
                **self.task.progress(done, self.guard.skipped),
                **ranks,
                **({"incidents": counts} if counts else {}),
            }
        )
        if slow is not None:
            self.report.say(slow)

    def _evaluate(self) -> None:
        self.watchdog.enter("evaluate")
        scores = self.task.evaluate(self.engine, lambda: self.watchdog.enter("evaluate"))
        self.progress.eval_loss = scores.loss
        done = self.progress.step
        self.report.evaluation(done, done * self.task.tokens_per_step, scores)

    def _save(self) -> None:
        """Saves, unless this step is saved already."""
        done = self.progress.step
        if done <= self.saved:
            return
        self.saved = done
        if self.config.checks.replicas_every:  # every checkpoint is of replicas that agreed
            check_weights_agree(self.engine, self.saver, done)
        self.watchdog.enter("save")
        self.saver.save(
            checkpoint.Manifest(
                step=done,
                samples=done * self.config.train.global_batch_size,
                index=self.task.data_hash,
                config=as_dict(self.config),
                tracker_id=self.report.tracker_id,
                environment=self.run.environment | {"memory_peak": self.pace.memory},
            )
        )
        self.guard.saved(done)


def _is_due(done: int, every: int) -> bool:
    """Whether what happens `every` so many steps (0: never) happens after `done` of them."""
    return bool(every) and done % every == 0


def _fetch(feed: Prefetcher, stopwatch: Stopwatch) -> tuple[list[Any], UserError | None]:
    """The next micro-batches; an error is returned, so that all ranks learn of it together."""
    since = time.perf_counter()
    try:
        return feed.next(), None
    except UserError as error:
        return [], error
    except OSError as error:
        return [], DataError(f"the shards cannot be read any more ({error}); start the run again")
    finally:
        stopwatch.waited(since)


def _freeze_garbage() -> None:
    """Keeps Python's collector away from what lives as long as the run: its passes over the
    module tree stall one rank while the others wait for it."""
    gc.collect()
    gc.freeze()
