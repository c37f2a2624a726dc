"""What the settings of a pretraining run must be in relation to each other."""

from collections.abc import Sequence
from itertools import pairwise

from mlm.config.train import TrainConfig
from mlm.errors import UserError
from parallel.layout import Layout, LayoutError

IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}  # of every tokenizer here


def layout(config: TrainConfig, dp: int | None = None) -> Layout:
    """The layout of a run; `dp` stands for `parallel.dp=auto`, which is 1 otherwise."""
    degrees = config.parallel
    copies = (dp or 1) if degrees.dp == "auto" else degrees.dp
    try:
        return Layout(tp=degrees.tp, pp=degrees.pp, dp=copies, zero=degrees.zero)
    except LayoutError as error:
        raise UserError(str(error)) from None


def check_train(config: TrainConfig) -> None:
    """Raises `UserError` for the first setting that contradicts another."""
    data, model, train = config.data, config.model, config.train
    degrees = layout(config)
    if data.corpus is None and data.shards is None:
        run = config.run
        new = f", and {run.dir}/{run.name} is no run to resume" * bool(run.name and not run.fresh)
        raise UserError(
            f"neither data.corpus nor data.shards is given{new}, so there is nothing to train on; "
            f"add data.corpus=DIR (or data.corpus=sample for the corpus in the package)"
            + " or correct run.name"
            * bool(new)
        )
    if data.corpus and not (data.heldout or config.eval.corpus or config.eval.shards):
        raise UserError(
            "data.heldout=0 leaves nothing to evaluate on; add eval.corpus=DIR, or give a part of "
            "the text, such as 0.01"
        )
    for name, fixed in IDS.items():
        if (value := getattr(model, name)) != fixed:
            raise UserError(
                f"model.{name}={value} is not what every tokenizer here has, {fixed}; omit it"
            )
    _check_points("mask_ratio", data.mask_ratio_schedule)
    _check_points("alpha", data.alpha_schedule)
    if model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"model.hidden_size={model.hidden_size} is not a multiple of "
            f"model.num_attention_heads={model.num_attention_heads}; choose a number of heads "
            f"that divides it"
        )
    if data.seq_len > model.max_tokens:
        raise UserError(
            f"data.seq_len={data.seq_len} is above the {model.max_tokens} tokens that "
            f"model.max_position_embeddings={model.max_position_embeddings} gives positions to; "
            f"choose a seq_len up to {model.max_tokens}, or more positions"
        )
    _check_schedule(config)
    try:
        degrees.check_model(
            model.num_attention_heads, model.intermediate_size, model.num_hidden_layers
        )
        if model.vocab_size is not None:
            degrees.check_vocabulary(
                model.vocab_size, model.num_attention_heads, model.intermediate_size
            )
        if config.parallel.dp != "auto":
            degrees.grad_accum_steps(train.global_batch_size, train.micro_batch_size)
    except LayoutError as error:
        raise UserError(str(error)) from None


def _check_schedule(config: TrainConfig) -> None:
    """A schedule that the run cannot follow would be followed with other slopes."""
    schedule, train, lr = config.schedule, config.train, config.optim.lr
    steps, warmup, decay = schedule.steps or train.steps, schedule.warmup_steps, 0
    length = "train.steps" if schedule.steps is None else "schedule.steps"
    longer = "choose fewer, or a larger schedule.steps, of which this run then has the beginning"
    if train.steps > steps:
        raise UserError(
            f"train.steps={train.steps} is more than schedule.steps={steps}, after which there is "
            f"no learning rate; choose at most {steps} steps, or a longer schedule"
        )
    if warmup is not None and warmup > steps:
        raise UserError(f"schedule.warmup_steps={warmup} is more than {length}={steps}; {longer}")
    if schedule.kind == "wsd" and schedule.decay_steps is not None:
        decay = schedule.decay_steps
        if (warmup or 0) + decay > steps:
            raise UserError(
                f"schedule.decay_steps={decay} and the {warmup or 0} steps of warm-up are more "
                f"than {length}={steps}; {longer}"
            )
    if schedule.end_lr > lr:
        raise UserError(
            f"schedule.end_lr={schedule.end_lr:g} is above the peak, optim.lr={lr:g}, so that the "
            f"rate would rise; choose {lr:g} or less"
        )


def _check_points(name: str, points: Sequence[tuple[int, float]]) -> None:
    for before, step in pairwise([0, *(step for step, _ in points)]):
        if step <= before:
            raise UserError(
                f"data.{name}_schedule has step {step} after step {before}; give [step, {name}] "
                f"pairs of growing steps from 1 on"
            )
