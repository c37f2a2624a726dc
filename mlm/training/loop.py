"""The steps of a pretraining run, as one rank."""

import gc
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from mlm import checkpoint
from mlm.batch.micro_batch import MicroBatch
from mlm.config.settings import TrainConfig, as_dict
from mlm.data.audit.exposure import Exposure
from mlm.data.audit.ledger import Ledger
from mlm.data.batches.entropy import unigram_entropy
from mlm.data.prefetch import Prefetcher
from mlm.errors import BadShard, DataError, NumbersError, StopRequested, UserError
from mlm.health.bad_shards import BadShards
from mlm.health.drift import check_batches_agree, check_weights_agree
from mlm.health.guard import Guard
from mlm.health.incidents import Incidents
from mlm.health.outcome import STOP
from mlm.health.stragglers import Pace
from mlm.health.watchdog import Watchdog
from mlm.tracking.report import Report
from mlm.training.build import Parts, own_batches, prepared
from mlm.training.evaluate import evaluate, gather
from mlm.training.optimizer import learning_rate
from mlm.training.throughput import Stopwatch, peak_flops
from mlm.training.world import Agreement, agree
from parallel.engine.state import pass_over

TRIES = 2  # of a step, before the state itself is in doubt


@dataclass
class Progress:
    """Where a run stands: what its outcome tells, also of a run that failed."""

    step: int = 0
    eval_loss: float | None = None


@dataclass(frozen=True)
class Numbers:
    """Those of a step; NaN where it was left out."""

    loss: float = math.nan
    grad_norm: float = math.nan
    lr: float = math.nan


class Loop:
    """Trains from where `progress` stands to the end; all ranks make one, and make the same
    steps."""

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        parts: Parts,
        report: Report,
        progress: Progress,
        dog: Watchdog,
    ) -> None:
        self.config, self.run, self.parts = config, run, parts
        self.report, self.progress, self.dog = report, progress, dog
        self.engine, self.languages = parts.engine, parts.index.languages
        device = self.engine.device
        self.losses = torch.zeros(len(self.languages), 2, dtype=torch.float64, device=device)
        self.entropy = unigram_entropy(parts.heldout)
        self.tokens_per_step = config.train.global_batch_size * config.data.seq_len
        self.peak = peak_flops(device)
        kept = checkpoint.Keep(config.checkpoint.keep, config.checkpoint.keep_every)
        self.saver = checkpoint.Saver(
            self.engine, run, kept, config.checkpoint.background, dog.moved
        )
        self.saved = progress.step  # the step of the last save, which may be going on
        self.ledger = Ledger(run, progress.step) if report.main else None
        self.incidents = Incidents(run, config.train.global_batch_size)
        guard = config.guard
        self.guard = Guard(guard.spike, guard.rollbacks, self.incidents.left_out)
        self.engine.judge = self.guard.judge
        self.bad_shards = BadShards(config.data, parts.batches.reader, self.incidents)
        self.why = ""  # of the step that was refused last
        _freeze_garbage()
        self.pace = Pace(parts.grid, device)
        self.watch = Stopwatch(dog.recorder.seconds)

    def train(self) -> None:
        """Raises `UserError` on all ranks alike, and `StopRequested` behind a save."""
        while self.progress.step < self.config.train.steps:
            first = self.progress.step
            with Prefetcher(lambda step: own_batches(self.parts, step), first) as feed:
                self._go_on(feed)
        self._score()
        self._save()
        self.saver.wait()

    def _go_on(self, feed: Prefetcher) -> None:
        """Trains until all steps are done, or the batches to come are others than `feed` has."""
        steps = self.config.train.steps
        while self.progress.step < steps:
            step = self.progress.step
            try:
                batches, agreed = self._batches(feed)
            except BadShard as bad:
                self.report.say(self.bad_shards.leave_out(step, bad))
                return
            numbers = None
            if step not in self.guard.left_out:
                numbers = self._take(step, batches, agreed.masked_tokens)
                if numbers is None and not self._remedied(step):
                    return
            if numbers is None:
                pass_over(self.engine)
            if self.ledger is not None:
                self.ledger.add(0 if numbers is None else agreed.digest)
            done = self.progress.step = step + 1
            if _due(done, self.config.checks.replicas_every):
                check_weights_agree(self.engine, self.saver, done)
            self.report.step(done)
            if _due(done, self.config.train.log_every) or done in (1, steps):
                self._log(numbers or Numbers())
            with self.watch.pause():
                # Scored first, so that a checkpoint's evaluation is never missing after a resume.
                if _due(done, self.config.eval.every) and done < steps:
                    self._score()
                # Not behind one that is left out: only the next that is not shows a state good.
                if _due(done, self.config.checkpoint.every) and numbers is not None:
                    self._save()

    def _batches(self, feed: Prefetcher) -> tuple[list[MicroBatch], Agreement]:
        """This data rank's next micro-batches, and what all know of the global batch.

        Raises on all ranks what a rank has met, or that the run is to stop.
        """
        self.dog.at("data")
        batches, error = _next(feed, self.watch)
        asked = self.report.main and (self.run / STOP).exists()
        self.dog.at("step")
        error = error or self.saver.look()
        agreed = agree(self.parts.grid, self.engine.device, batches, asked, error)
        if agreed.stop:
            self._save()
            self.saver.wait()
            raise StopRequested(
                f"stopped as asked after step {self.progress.step}, which is saved; start the run "
                f"again, without run.fresh, to go on"
            )
        return batches, agreed

    def _take(self, step: int, batches: list[MicroBatch], masked: int) -> Numbers | None:
        """Makes a step; None: it was refused, and has left no trace."""
        config, engine = self.config, self.engine
        lr = learning_rate(step, config.train.steps, config.optim.lr, config.schedule)
        ready = prepared(batches, self.parts, config.seed, step, masked, self.losses)
        if _due(step + 1, config.checks.replicas_every):
            check_batches_agree(engine, ready, self.saver, step + 1)
        before = self.losses.clone()
        for _ in range(TRIES):
            loss = engine.train_batch(ready, lr)
            norm = engine.grad_norm
            self.watch.steps += 1
            if engine.applied:
                self.guard.applied(step, loss, norm)
                return Numbers(loss, norm, lr)
            self.losses.copy_(before)
            alone = f"the gradient on rank {engine.refused_by} is wrong: it is not that of others"
            self.why = self.guard.fault(loss, norm) or alone
            self.incidents.refused(step, self.why, loss, norm)
            self.report.say(f"Step {step + 1} is not applied: {self.why}")
        return None

    def _remedied(self, step: int) -> bool:
        """Whether the run goes on behind a step that was refused; if not, it has gone back.

        Raises `NumbersError` where nothing helps.
        """
        remedy = self.guard.remedy(step)
        if remedy.back:
            self._go_back(step, min(remedy.leave_out, default=step))
        elif not remedy.leave_out:
            self.saver.wait()
            raise NumbersError(self._no_remedy(step))
        for each in remedy.leave_out:
            if each >= self.progress.step and each not in self.guard.left_out:
                self.guard.left_out.add(each)
                self.incidents.leave_out(each)
                self.report.say(f"The batch of step {each + 1} is left out from now on")
        return not remedy.back

    def _go_back(self, step: int, at_most: int) -> None:
        """To the last good checkpoint of so many steps, or to the beginning where there is none."""
        self.dog.at("roll back")
        with self.watch.pause():
            self.saver.wait()
            begun = self.saver.last is not None
            found, passed = checkpoint.choose(self.run, at_most)
            for wrong in passed:
                self.report.say(f"Passed over: {wrong}")
            if found is not None:
                to = checkpoint.read_manifest(found).step
                checkpoint.restore(self.engine, found, to)
                self.saver.last = to
            elif begun:
                raise DataError(
                    f"{self.run} has lost its checkpoints while it ran, and step {step + 1} needs "
                    f"one to go on from; put them back, and start the run again"
                )
            else:
                to = 0
                self.parts.begin_again()
            self.losses.zero_()
            self.progress.step = self.saved = to
            self.report.back(to)
            if self.ledger is not None:
                self.ledger.back(to)
            self.incidents.rolled_back(step, to)
            self.report.say(f"Going back from step {step + 1} to step {to}")

    def _no_remedy(self, step: int) -> str:
        limit, stands, keeps = self.guard.limit, "nothing was saved before", ""
        if self.saver.last is not None:
            stands = f"the checkpoint of step {self.saver.last} stands"
            keeps = f" (weights={self.run} keeps what is learnt)"
        tried = f"also after {limit} returns to a checkpoint" if limit else "twice"
        return (
            f"step {step + 1}: {self.why}, {tried} (guard.rollbacks={limit}); {stands}; begin a "
            f"new run with a lower optim.lr or more schedule.warmup_steps{keeps}"
        )

    def _log(self, numbers: Numbers) -> None:
        self.dog.at("log")
        done = self.progress.step
        by_language = gather(self.engine, self.losses, self.languages).by_language
        self.losses.zero_()
        seconds, waiting, own = self.watch.look()
        speed = self.tokens_per_step / seconds
        flops = self.parts.flops_per_token * speed
        ranks, slow = self.pace.row(own)
        counts = self.incidents.counts
        self.report.step_metrics(
            {
                "step": done,
                "loss": numbers.loss,
                "lr": numbers.lr,
                "grad_norm": numbers.grad_norm,
                "tokens": done * self.tokens_per_step,
                "tokens_per_second": speed,
                "mfu": self.peak and flops / self.peak / dist.get_world_size(),
                "seconds_data": waiting,
                "seconds_step": seconds,
                "loss_by_language": by_language,
                **self._seen(done).by_language(),
                **ranks,
                **({"incidents": counts} if counts else {}),
            }
        )
        if slow is not None:
            self.report.say(slow)

    def _seen(self, done: int) -> Exposure:
        """What the first `done` steps have seen; samples of bad shards count."""
        batches, batch = self.parts.batches, self.config.train.global_batch_size
        return Exposure(batches.order, batches.reader, batch, done, self.guard.left_out)

    def _score(self) -> None:
        self.dog.at("evaluate")
        scored = evaluate(self.engine, self.parts.heldout, lambda: self.dog.at("evaluate"))
        self.progress.eval_loss = scored.mean
        done = self.progress.step
        self.report.evaluation(done, done * self.tokens_per_step, scored.described(self.entropy))

    def _save(self) -> None:
        """Saves, unless this step is saved already."""
        done = self.progress.step
        if done <= self.saved:
            return
        self.saved = done
        if self.config.checks.replicas_every:  # so that every checkpoint is of replicas that agreed
            check_weights_agree(self.engine, self.saver, done)
        self.dog.at("save")
        self.saver.save(
            checkpoint.Manifest(
                step=done,
                samples=done * self.config.train.global_batch_size,
                index=self.parts.index.hash,
                config=as_dict(self.config),
                tracker_id=self.report.tracker_id,
            )
        )
        self.guard.saved(done)


def _due(done: int, every: int) -> bool:
    """Whether what happens `every` so many steps (0: never) happens after `done` of them."""
    return bool(every) and done % every == 0


def _next(feed: Prefetcher, watch: Stopwatch) -> tuple[list[MicroBatch], UserError | None]:
    """The next micro-batches; an error is kept, so that all ranks learn of it together."""
    since = time.perf_counter()
    try:
        return feed.next(), None
    except UserError as error:
        return [], error
    except OSError as error:
        return [], DataError(f"the shards cannot be read any more ({error}); start the run again")
    finally:
        watch.waited(since)


def _freeze_garbage() -> None:
    """Keeps Python's collector away from what lives as long as the run: its passes over the
    module tree stall one rank while the others wait for it."""
    gc.collect()
    gc.freeze()
