"""Every setting of a run, typed, with its default; the single place where defaults stand.

YAML files in `conf/` and overrides on the command line hold differences from these. `load` turns
a composed dict into the checked, frozen objects; what contradicts something else raises
`UserError` in one sentence with the value, the rule and a remedy.
"""

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mlm.errors import UserError
from mlm.model.config import ModelConfig
from parallel.layout import Layout, LayoutError

STRICT = ConfigDict(extra="forbid")  # holds for the sections inside, too

Schema = TypeVar("Schema")


@dataclass(frozen=True)
class RunConfig:
    name: str | None = None  # null: <model>-<time>, decided once by the launcher
    dir: str = "runs"
    fresh: bool = False  # start over what a run of this name has left


@dataclass(frozen=True)
class ParallelConfig:
    tp: int = 1
    pp: int = 1
    dp: int | Literal["auto"] = "auto"  # auto: every visible GPU; 1 on CPU
    zero: Literal[1, 2, 3] = 1


@dataclass(frozen=True)
class DataConfig:
    corpus: str | None = None  # a folder of text, or "sample" for the one in the package
    shards: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 250002  # of a tokenizer that is trained here, special ids included
    seq_len: int = 512
    alpha: float = 0.3
    mask_ratio: float = 0.15
    shuffle_window: int = 16  # chunks of 512 blocks among which blocks are shuffled
    workers: int | None = None  # processes that prepare a corpus; null: one per core


@dataclass(frozen=True)
class TrainSection:
    steps: int = 10000
    global_batch_size: int = 256
    micro_batch_size: int = 8
    dtype: Literal["fp32", "bf16"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    recompute: bool = False
    attention: Literal["auto", "fused", "unfused"] = "auto"
    log_every: int = 10


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip: float = 1.0  # 0: no clipping


@dataclass(frozen=True)
class ScheduleConfig:
    kind: Literal["polynomial", "linear", "cosine", "wsd"] = "polynomial"
    warmup_steps: int | None = None  # null: 6 % of train.steps
    end_lr: float = 0.0
    power: float = 1.0  # of the polynomial
    decay_steps: int | None = None  # of wsd's last phase; null: 20 % of train.steps


@dataclass(frozen=True)
class EvalConfig:
    every: int = 500  # steps; 0: only at the end
    blocks_per_language: int = 16  # held-out blocks; 0: all of them


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 500  # steps; 0: only at the end
    keep: int = 2


@dataclass(frozen=True)
class TrackerConfig:
    kind: Literal["wandb", "none"] = "wandb"
    project: str = "polymlm"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class LaunchConfig:
    kind: Literal["local"] = "local"


@dataclass(frozen=True)
class TrainConfig:
    """`mlm train`: everything that a pretraining run is made of."""

    __pydantic_config__ = STRICT

    seed: int = 1
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainSection = field(default_factory=TrainSection)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


@dataclass(frozen=True)
class TokenizerConfig:
    """`mlm tokenizer`: trains sentencepiece on temperature-sampled text."""

    __pydantic_config__ = STRICT

    corpus: str = "???"
    out: str = "???"
    vocab_size: int = 250002  # all ids, the special ones included
    alpha: float = 0.3
    sample_bytes: int = 1_000_000_000  # of text that the tokenizer is trained on
    character_coverage: float = 0.9995
    seed: int = 1


@dataclass(frozen=True)
class ShardsConfig:
    """`mlm shards`: writes token shards and their index."""

    __pydantic_config__ = STRICT

    corpus: str = "???"
    tokenizer: str = "???"
    out: str = "???"
    workers: int | None = None  # null: one per core


@dataclass(frozen=True)
class FillConfig:
    """`mlm fill PATH TEXT ...`: what a trained model puts in place of `<mask>`."""

    __pydantic_config__ = STRICT

    path: str = "???"  # a run folder, a checkpoint or a Hugging Face folder
    texts: tuple[str, ...] = ()
    top: int = 5


@dataclass(frozen=True)
class ExportConfig:
    """`mlm export PATH OUT`: a Hugging Face folder of a trained model."""

    __pydantic_config__ = STRICT

    path: str = "???"
    out: str = "???"


def defaults(schema: type) -> dict[str, Any]:
    """The defaults of a config dataclass as plain nested dicts and lists, for Hydra's store."""
    return as_dict(schema())


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested dicts and lists, as `load` and YAML take them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(asdict(config))


def load(schema: type[Schema], composed: dict[str, Any]) -> Schema:
    """Checks a composed dict and makes the frozen config of it; raises `UserError`."""
    for name, value in _flat(composed):
        if value == "???":
            raise UserError(f"{name} is not given, and there is no default; add {name}=...")
    try:
        config = TypeAdapter(schema).validate_python(composed)
    except ValidationError as error:
        raise UserError(_sentence(error)) from None
    if isinstance(config, TrainConfig):
        _check_train(config)
    return config


def layout(config: TrainConfig, dp: int | None = None) -> Layout:
    """The layout of a run; `dp` stands in for `parallel.dp=auto`, which else means 1."""
    degrees = config.parallel
    asked = (dp or 1) if degrees.dp == "auto" else degrees.dp
    try:
        return Layout(tp=degrees.tp, pp=degrees.pp, dp=asked, zero=degrees.zero)
    except LayoutError as error:
        raise UserError(str(error)) from None


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in tree.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + str(name), value))
    return rows


def _sentence(error: ValidationError) -> str:
    """The first thing that pydantic found, as value, rule and remedy."""
    first = error.errors(include_url=False)[0]
    # A union's members (`int`, `literal['auto']`) end the location; they are not part of the key.
    path = [part for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    name = ".".join(str(part) for part in path if part not in ("int", "float", "str", "bool"))
    if first["type"] == "unexpected_keyword_argument":
        return f"{name} is not a setting of this command; `--help` lists them"
    if first["type"] == "missing" and isinstance(path[-1], int):  # of a list of fixed length
        name = name.rpartition(".")[0]
        return f"{name}={first['input']!r} has too few values; give it {path[-1] + 1} or more"
    if first["type"] == "missing":
        return f"{name} is not given, and there is no default; add {name}=..."
    rule = re.sub(r"^\w+ (?=should)", "", first["msg"]).split(", unable")[0]
    return f"{name}={first['input']!r} is not possible: it {rule}; give {name} such a value"


def _at_least(rows: dict[str, tuple[float | None, float]]) -> None:
    for name, (value, low) in rows.items():
        if value is not None and not low <= value < math.inf:  # not a number is neither
            rule = f"below {low}" if value < low else "not a finite number"
            raise UserError(f"{name}={value} is {rule}; give {low} or more")


def _check_train(config: TrainConfig) -> None:
    data, model, train = config.data, config.model, config.train
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
            "data.shuffle_window": (data.shuffle_window, 1),
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
    if not 0 < data.mask_ratio < 1:
        raise UserError(f"data.mask_ratio={data.mask_ratio} is not between 0 and 1; 0.15 is usual")
    if not 0 <= data.alpha <= 1:
        raise UserError(f"data.alpha={data.alpha} is not between 0 and 1; XLM-R's is 0.3")
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
    degrees = layout(config)
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
