"""What the values of a pretraining config must be, each by itself and together."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from mlm.errors import UserError
from parallel.layout import Layout, LayoutError

if TYPE_CHECKING:
    from mlm.config.settings import DataConfig, TrainConfig


def check_train(config: "TrainConfig", degrees: Layout) -> None:
    """Raises `UserError` for the first value that is out of range or contradicts another."""
    data, model, train = config.data, config.model, config.train
    for name, value in {
        "weights": config.weights,
        "data.corpus": data.corpus,
        "data.shards": data.shards,
        "data.tokenizer": data.tokenizer,
        "data.cache": data.cache,
        "run.name": config.run.name,
        "run.dir": config.run.dir,
    }.items():
        if value == "":
            raise UserError(f"{name} is empty; give it a value, or leave it out")
    if data.corpus is None and data.shards is None:
        raise UserError(
            "neither data.corpus nor data.shards is given, so there is nothing to train on; add "
            "data.corpus=DIR (or data.corpus=sample for the corpus in the package)"
        )
    _at_least(
        {
            "model.hidden_size": (model.hidden_size, 1),
            "model.num_hidden_layers": (model.num_hidden_layers, 1),
            "model.num_attention_heads": (model.num_attention_heads, 1),
            "model.intermediate_size": (model.intermediate_size, 1),
            "model.type_vocab_size": (model.type_vocab_size, 1),
            "model.max_position_embeddings": (model.max_position_embeddings, 10),
            "model.initializer_range": (model.initializer_range, 0),
            "model.layer_norm_eps": (model.layer_norm_eps, 0),
            "data.seq_len": (data.seq_len, 8),
            "data.workers": (data.workers, 1),
            "data.cache_gb": (data.cache_gb, 0),
            "data.shuffle_window": (data.shuffle_window, 1),
            "data.span_max": (data.span_max, 1),
            "data.max_bad_shards": (data.max_bad_shards, 1),
            "train.steps": (train.steps, 1),
            "train.global_batch_size": (train.global_batch_size, 1),
            "train.micro_batch_size": (train.micro_batch_size, 1),
            "train.log_every": (train.log_every, 1),
            "optim.lr": (config.optim.lr, 0),
            "optim.eps": (config.optim.eps, 0),
            "optim.clip": (config.optim.clip, 0),
            "optim.weight_decay": (config.optim.weight_decay, 0),
            "eval.every": (config.eval.every, 0),
            "eval.blocks_per_language": (config.eval.blocks_per_language, 0),
            "checkpoint.every": (config.checkpoint.every, 0),
            "checkpoint.keep": (config.checkpoint.keep, 1),
            "checkpoint.keep_every": (config.checkpoint.keep_every, 0),
            "watchdog.seconds": (config.watchdog.seconds, 0),
            "checks.replicas_every": (config.checks.replicas_every, 0),
            "guard.spike": (config.guard.spike, 0),
            "guard.rollbacks": (config.guard.rollbacks, 0),
            "schedule.warmup_steps": (config.schedule.warmup_steps, 0),
            "schedule.decay_steps": (config.schedule.decay_steps, 0),
            "schedule.end_lr": (config.schedule.end_lr, 0),
            "schedule.power": (config.schedule.power, 0),
        }
    )
    for name, value in {
        "model.hidden_dropout_prob": model.hidden_dropout_prob,
        "model.attention_probs_dropout_prob": model.attention_probs_dropout_prob,
    }.items():
        if not 0 <= value < 1:
            raise UserError(f"{name}={value} is not a probability below 1; give one from 0 to 0.9")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise UserError(
            f"optim.betas={list(config.optim.betas)} are not both from 0 to below 1; RoBERTa's are "
            f"[0.9, 0.98]"
        )
    for name, (value, fixed) in {
        "model.bos_token_id": (model.bos_token_id, 0),
        "model.pad_token_id": (model.pad_token_id, 1),
        "model.eos_token_id": (model.eos_token_id, 2),
    }.items():
        if value != fixed:
            raise UserError(
                f"{name}={value} is not what every tokenizer here has, {fixed}; leave it out"
            )
    _check_masking(data)
    _check_mix(data)
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
    try:
        degrees.check_model(
            model.num_attention_heads, model.intermediate_size, model.num_hidden_layers
        )
        if model.vocab_size is not None:
            degrees.check_vocabulary(model.vocab_size)
        if config.parallel.dp != "auto":
            degrees.grad_accum_steps(train.global_batch_size, train.micro_batch_size)
    except LayoutError as error:
        raise UserError(str(error)) from None


def _check_masking(data: "DataConfig") -> None:
    _check_schedule("mask_ratio", data.mask_ratio_schedule)
    for name, ratio in [
        ("data.mask_ratio", data.mask_ratio),
        *(("data.mask_ratio_schedule", ratio) for _, ratio in data.mask_ratio_schedule),
    ]:
        if not 0 < ratio < 1:
            raise UserError(f"{name}={ratio} is not between 0 and 1; 0.15 is usual")
    if not 0 < data.span_p <= 1:
        raise UserError(
            f"data.span_p={data.span_p} is not above 0 and at most 1; SpanBERT's is 0.2, of which "
            f"spans have 3.8 tokens on average"
        )


def _check_schedule(name: str, points: Sequence[tuple[int, float]]) -> None:
    for before, step in pairwise([0, *(step for step, _ in points)]):
        if step <= before:
            raise UserError(
                f"data.{name}_schedule has step {step} behind step {before}; give [step, {name}] "
                f"pairs of growing steps from 1 on"
            )


def _check_mix(data: "DataConfig") -> None:
    _check_schedule("alpha", data.alpha_schedule)
    for name, alpha in [
        ("data.alpha", data.alpha),
        *(("data.alpha_schedule", alpha) for _, alpha in data.alpha_schedule),
    ]:
        if not 0 <= alpha <= 1:
            raise UserError(f"{name}={alpha} is not between 0 and 1; XLM-R's is 0.3")
    for language, weight in data.weights.items():
        if not 0 <= weight < math.inf:
            raise UserError(
                f"data.weights.{language}={weight} is not a finite number of 0 or more; 1 is what "
                f"a language has that is not given, and 0 leaves it out"
            )
    for name, epochs in [
        ("data.max_epochs", data.max_epochs),
        *((f"data.max_epochs_of.{name}", epochs) for name, epochs in data.max_epochs_of.items()),
    ]:
        if epochs is not None and not 0 < epochs < math.inf:
            raise UserError(f"{name}={epochs} is not a finite number above 0; give one, or null")


def _at_least(rows: dict[str, tuple[float | None, float]]) -> None:
    for name, (value, low) in rows.items():
        if value is not None and not low <= value < math.inf:  # not a number is neither
            rule = f"below {low}" if value < low else "not a finite number"
            raise UserError(f"{name}={value} is {rule}; give {low} or more")
