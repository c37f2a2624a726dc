"""Every setting of a run, typed, with its default; the single place where defaults stand.

YAML files in `conf/` and overrides on the command line hold differences from these. `load` turns
a composed dict into the checked, frozen objects; what contradicts something else raises
`UserError` in one sentence with the value, the rule and a remedy.
"""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mlm.config.rules import check_train
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
    corpus: str | None = None  # a folder or YAML file of text, or "sample" for that in the package
    shards: str | None = None  # a folder, or a URL
    tokenizer: str | None = None
    vocab_size: int = 250002  # of a tokenizer that is trained here, special ids included
    seq_len: int = 512
    alpha: float = 0.3
    # (step, alpha) points, to which alpha goes on straight lines, and where it stays at the end
    alpha_schedule: tuple[tuple[int, float], ...] = ()
    weights: dict[str, float] = field(default_factory=dict)  # of languages, 1 where not given
    max_epochs: float | None = None  # of a language; null: as many as its share makes
    max_epochs_of: dict[str, float] = field(default_factory=dict)  # of single languages
    masking: Literal["token", "word", "span"] = "token"  # what is drawn as a whole
    mask_ratio: float = 0.15
    # (step, ratio) points, to which the ratio goes on straight lines, and where it stays at the end
    mask_ratio_schedule: tuple[tuple[int, float], ...] = ()
    span_p: float = 0.2  # of the geometric lengths of spans: the chance that one ends at a token
    span_max: int = 10  # tokens of a span at most
    isolate_documents: bool = False  # no attention, and no positions, across documents in a row
    on_bad_shard: Literal["stop", "skip"] = "stop"  # skip: its samples are no targets, and counted
    max_bad_shards: int = 10  # that are skipped, before the run stops all the same
    shuffle_window: int = 16  # chunks of 512 blocks among which blocks are shuffled
    cache: str | None = None  # of remote shards; null: polymlm in the user's folder of caches
    cache_gb: float = 64.0  # that it may take, with what other runs keep there
    workers: int | None = None  # cores that prepare a corpus; null: all
    dedup: bool = False  # of a corpus: keep the first of a language's equal documents
    on_bad_line: Literal["stop", "skip"] = "stop"  # of a corpus: no UTF-8, or no JSON with a text


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
    keep: int = 2  # the newest that stay
    keep_every: int = 0  # steps whose multiples stay for good; 0: none
    background: bool = True  # write a copy of the state while training goes on


@dataclass(frozen=True)
class WatchdogConfig:
    seconds: float = 600.0  # without a move, after which the run ends and says why; 0: never


@dataclass(frozen=True)
class ChecksConfig:
    replicas_every: int = 100  # steps, and before every checkpoint; 0: never


@dataclass(frozen=True)
class GuardConfig:
    spike: float = 10.0  # deviations above the running median that refuse a step; 0: never
    rollbacks: int = 4  # from one checkpoint to the next, before the run gives up


@dataclass(frozen=True)
class TrackerConfig:
    kind: str | tuple[str, ...] = "wandb"  # of TRACKERS, one or a list; none: no tracker
    project: str = "polymlm"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers to start, in order."""
        kinds = (self.kind,) if isinstance(self.kind, str) else self.kind
        return tuple(kind for kind in kinds if kind != "none")


@dataclass(frozen=True)
class LaunchConfig:
    kind: Literal["local"] = "local"


@dataclass(frozen=True)
class TrainConfig:
    """`mlm train`: everything that a pretraining run is made of."""

    __pydantic_config__ = STRICT

    seed: int = 1
    weights: str | None = None  # of a trained model to begin with; null: initial ones
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainSection = field(default_factory=TrainSection)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
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
    on_bad_line: Literal["stop", "skip"] = "stop"  # no UTF-8, or no JSON with a text


@dataclass(frozen=True)
class ShardsConfig:
    """`mlm shards`: writes token shards and their index."""

    __pydantic_config__ = STRICT

    corpus: str = "???"
    tokenizer: str = "???"
    out: str = "???"
    workers: int | None = None  # cores; null: all
    dedup: bool = False  # keep the first of a language's equal documents
    on_bad_line: Literal["stop", "skip"] = "stop"  # no UTF-8, or no JSON with a text


@dataclass(frozen=True)
class FillConfig:
    """`mlm fill PATH TEXT ...`: what a trained model puts in place of `<mask>`."""

    __pydantic_config__ = STRICT

    path: str = "???"  # a run folder, a checkpoint, an import or a Hugging Face folder
    texts: tuple[str, ...] = ()
    top: int = 5


@dataclass(frozen=True)
class ExportConfig:
    """`mlm export PATH OUT`: a Hugging Face folder of a trained model."""

    __pydantic_config__ = STRICT

    path: str = "???"  # a run folder, a checkpoint, an import or a Hugging Face folder
    out: str = "???"
    dtype: Literal["fp32", "bf16", "fp16"] | None = None  # null: that of the weights


@dataclass(frozen=True)
class ImportConfig:
    """`mlm import PATH OUT`: a trained model from elsewhere, as a checkpoint of ours."""

    __pydantic_config__ = STRICT

    path: str = "???"  # a Hugging Face folder, or an original checkpoint: its folder or file
    out: str = "???"
    tokenizer: str | None = None  # a folder; none: there is none; null: it lies beside the weights
    head: str | None = None  # name of a classification head in an original checkpoint


@dataclass(frozen=True)
class CheckpointsConfig:
    """`mlm checkpoints RUN`: lists what a run has saved, verifies and prunes it."""

    __pydantic_config__ = STRICT

    run: str = "???"  # a run folder
    verify: bool = True  # read every file to see that it is as it was written
    keep: int | None = None  # delete all but the newest; null: delete nothing
    keep_every: int = 0  # but leave steps that this divides


@dataclass(frozen=True)
class AuditConfig:
    """`mlm audit RUN`: what a run was trained on, and whether its ledger agrees."""

    __pydantic_config__ = STRICT

    run: str = "???"  # a run folder
    step: int | None = None  # show the batch of this step, counted as in the metrics, from 1
    rows: int = 4  # of the batch that is shown; 0: all
    every: bool = False  # compare all steps of the ledger, and not some
    documents: str | None = None  # a file to write: how often each document was seen


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
        check_train(config, layout(config))
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


IN_YAML = {"a valid dictionary": "a mapping like {en: 2}", "a valid tuple": "a list like [1, 2]"}


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
    for python, ours in IN_YAML.items():
        rule = rule.replace(python, ours)
    return f"{name}={first['input']!r} is not possible: it {rule}; give {name} such a value"
