"""Pretraining, as one rank: `python -m mlm.train RUN/config.yaml`, started by torchrun."""

import errno
import gc
import math
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from mlm import checkpoint
from mlm.build import Parts, build, own_batches, prepared
from mlm.config import TrainConfig, as_dict, load
from mlm.data.entropy import unigram_entropy
from mlm.data.prefetch import Prefetcher
from mlm.drift import check_batches_agree, check_weights_agree
from mlm.errors import CONFIG, DONE, FAILED, DataError, NumbersError, StopRequested, UserError
from mlm.evaluate import evaluate, gather
from mlm.optimizer import learning_rate
from mlm.outcome import STOP, make_room, write_outcome
from mlm.report import Report
from mlm.stragglers import Pace
from mlm.throughput import Stopwatch, peak_flops
from mlm.tracker import Tracker
from mlm.watchdog import Watchdog
from mlm.world import agree, log_to_file, settled, start_process_group
from parallel.recorder import Recorder, recording

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)


@dataclass
class Progress:
    """Where a run stands: what its outcome tells, also of a run that failed."""

    step: int = 0
    eval_loss: float | None = None


def main(config_path: str) -> int:
    """Trains as this rank and returns the outcome's code, which `outcome.json` holds, too."""
    path = Path(config_path)
    run, rank = path.parent, int(os.environ.get("RANK", "0"))
    log_to_file(run, rank)
    progress = Progress()
    try:
        if rank == 0:
            make_room(run)
        config = settled(load(TrainConfig, yaml.safe_load(path.read_text("utf-8"))))
        device = start_process_group(config.train.device)
        with recording(device) as recorder:
            sentence = _train(config, run, recorder, progress)
        code = DONE
    except UserError as error:
        code, sentence = error.code, str(error)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            code, remedy = CONFIG, "free space, then start the run again"
            sentence = f"{run} cannot be written any more ({error.strerror}); {remedy}"
        else:
            reason = traceback.format_exc().strip().splitlines()[-1]
            code, sentence = FAILED, f"rank {rank} failed: {reason} (its log has the traceback)"
    # The first to fail knows why: those that follow agree with it, or saw it go.
    if rank == 0 or code != DONE:
        try:
            write_outcome(run, code, sentence, progress.step, progress.eval_loss)
        except OSError:  # a full disk: rank 0's output is the one place left to say why
            print(f"mlm: {sentence}", flush=True)
    return code


def _train(config: TrainConfig, run: Path, recorder: Recorder, progress: Progress) -> str:
    found, passed = checkpoint.choose(run)
    parts = build(config, resuming=found is not None)
    manifest = None if found is None else _resume(parts, found)
    start = progress.step = 0 if manifest is None else manifest.step
    shown = dist.get_rank() == 0
    run_id = None if manifest is None else manifest.tracker_id
    tracker = Tracker(config, run, run_id) if shown else None
    report = Report(run, tracker, config.train.steps, start)
    for wrong in passed:
        report.say(f"Passed over: {wrong}")
    report.say(_opening(config, parts, start))
    code = FAILED

    def stalled(sentence: str) -> None:
        write_outcome(run, FAILED, sentence, progress.step, progress.eval_loss)

    try:
        with report, Watchdog(run, config.watchdog.seconds, parts.grid, recorder, stalled) as dog:
            _loop(config, run, parts, report, progress, dog)
        code = DONE
    except StopRequested as stop:
        code = stop.code
        raise
    finally:
        if tracker is not None:
            tracker.finish(code)
        if code != FAILED:
            dist.barrier()  # torchrun ends all as soon as one leaves, rank 0's tracker, too
    return (
        f"Trained {progress.step} steps; held-out loss {progress.eval_loss:.4f}. "
        f"Everything is in {run}"
    )


def _loop(
    config: TrainConfig,
    run: Path,
    parts: Parts,
    report: Report,
    progress: Progress,
    dog: Watchdog,
) -> None:
    train, engine = config.train, parts.engine
    languages = parts.index.languages
    losses = torch.zeros(len(languages), 2, dtype=torch.float64, device=engine.device)
    entropy = unigram_entropy(parts.heldout)
    start = progress.step
    tokens_per_step = train.global_batch_size * config.data.seq_len
    peak = peak_flops(engine.device)
    checks = config.checks.replicas_every

    kept = checkpoint.Keep(config.checkpoint.keep, config.checkpoint.keep_every)
    saver = checkpoint.Saver(engine, run, kept, config.checkpoint.background, dog.moved)
    begun = start

    def save(done: int) -> None:
        nonlocal begun
        if done > begun:
            begun = done
            if checks:  # so that every checkpoint is one whose replicas agreed
                check_weights_agree(engine, saver, done)
            dog.at("save")
            saver.save(
                checkpoint.Manifest(
                    step=done,
                    samples=done * train.global_batch_size,
                    index=parts.index.hash,
                    config=as_dict(config),
                    tracker_id=report.tracker_id,
                )
            )

    def score(done: int) -> None:
        scored = evaluate(engine, parts.heldout, lambda: dog.at("evaluate"))
        progress.eval_loss = scored.mean
        report.evaluation(done, done * tokens_per_step, scored, entropy)

    with Prefetcher(lambda step: own_batches(parts, step), start) as feed:
        _freeze_garbage()
        pace, watch = Pace(parts.grid, engine.device), Stopwatch(dog.recorder.seconds)
        for step in range(start, train.steps):
            dog.at("data")
            batches, error = _next(feed, watch)
            asked = report.shown and (run / STOP).exists()
            masked = sum(batch.masked_tokens for batch in batches)
            dog.at("step")
            agreed = agree(parts.grid, engine.device, masked, asked, error or saver.look())
            if agreed.stop:
                save(step)
                saver.wait()
                raise StopRequested(
                    f"stopped as asked after step {step}, which is saved; start the run again, "
                    f"without run.fresh, to go on"
                )
            lr = learning_rate(step, train.steps, config.optim.lr, config.schedule)
            ready = prepared(batches, parts, config.seed, step, agreed.masked_tokens, losses)
            checked = checks and (step + 1) % checks == 0
            if checked:
                check_batches_agree(engine, ready, saver, step + 1)
            loss = engine.train_batch(ready, lr)
            done = progress.step = step + 1
            watch.steps += 1
            _check_numbers(loss, engine.grad_norm, done, saver)
            if checked:
                check_weights_agree(engine, saver, done)
            report.step(done)
            if done % train.log_every == 0 or done in (1, train.steps):
                dog.at("log")
                by_language = gather(engine, losses, languages).by_language
                losses.zero_()
                seconds, waiting, own = watch.look()
                speed = tokens_per_step / seconds
                ranks, slow = pace.row(own)
                report.step_metrics(
                    {
                        "step": done,
                        "loss": loss,
                        "lr": lr,
                        "grad_norm": engine.grad_norm,
                        "tokens": done * tokens_per_step,
                        "tokens_per_second": speed,
                        "mfu": peak
                        and parts.flops_per_token * speed / peak / dist.get_world_size(),
                        "seconds_data": waiting,
                        "seconds_step": seconds,
                        "loss_by_language": by_language,
                        **ranks,
                    }
                )
                if slow is not None:
                    report.say(slow)
            with watch.pause():
                # Scored first, so that a checkpoint's evaluation is never missing after a resume.
                if config.eval.every and done % config.eval.every == 0 and done < train.steps:
                    score(done)
                if config.checkpoint.every and done % config.checkpoint.every == 0:
                    save(done)
        score(progress.step)
        save(progress.step)
        saver.wait()


def _next(feed: Prefetcher, watch: Stopwatch) -> tuple[list, UserError | None]:
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


def _resume(parts: Parts, found: Path) -> checkpoint.Manifest:
    manifest = checkpoint.read_manifest(found)
    if manifest.index != parts.index.hash:
        raise DataError(
            f"{found} was trained on shards of index {manifest.index[:12]}, and "
            f"{parts.index.folder} now has {parts.index.hash[:12]}; give back the old shards, or "
            f"start a new run"
        )
    checkpoint.restore(parts.engine, found, manifest.step)
    return manifest


def _check_numbers(loss: float, grad_norm: float, step: int, saver: checkpoint.Saver) -> None:
    """Raises on all ranks alike: both numbers are the same on every rank."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        saver.wait()
        stands = f"the checkpoint of step {saver.last} stands"
        left = stands if saver.last else "nothing was saved before"
        raise NumbersError(
            f"step {step} gave loss {loss} and gradient norm {grad_norm}, which are not finite; "
            f"lower optim.lr or lengthen schedule.warmup_steps, and start again; {left}"
        )


def _opening(config: TrainConfig, parts: Parts, start: int) -> str:
    degrees, train = parts.grid.layout, config.train
    begins = f"Going on from step {start}" if start else "Training"
    if start >= train.steps:
        return f"All {start} steps are done; scoring them again (raise train.steps to go on)"
    return (
        f"{begins}: {config.model.parameters():,} parameters, {len(parts.index.languages)} "
        f"languages, {sum(parts.index.train_tokens):,} tokens; tp {degrees.tp}, pp {degrees.pp}, "
        f"dp {degrees.dp}, ZeRO-{degrees.zero}, {train.dtype} on {train.device}; "
        f"{train.global_batch_size * config.data.seq_len:,} tokens a step"
    )


def _freeze_garbage() -> None:
    """Keeps Python's collector away from what lives as long as the run: its passes over the
    module tree stall one rank while the others wait for it."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    ended = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # leaving groups in order can hang on ranks that are gone
