"""The settings of the section `data`: what a run trains on, and how it is masked."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from mlm.setting import setting

SHORTEST = 8  # tokens of a sequence

Part = Annotated[float, Interval(ge=0, le=1)]
MaskRatio = Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True)
class DataConfig:
    corpus: str | None = setting(
        None,
        "text to prepare first: a folder, a YAML file, or sample for the corpus in the package",
        min_length=1,
        resume=True,
    )
    shards: str | None = setting(None, "token shards: a folder or a URL", min_length=1, resume=True)
    tokenizer: str | None = setting(
        None, "folder of the tokenizer; null: that of the shards", min_length=1, resume=True
    )
    vocab_size: int = setting(
        250002, "ids of a tokenizer that is trained from corpus, special ids included"
    )
    character_coverage: float = setting(
        0.9995, "of such a tokenizer: part of the characters with an id of their own", ge=0.98, le=1
    )
    seq_len: int = setting(512, "tokens of a sequence", ge=SHORTEST)
    alpha: float = setting(
        0.3, "languages are drawn in proportion to (their tokens)^alpha", ge=0, le=1
    )
    alpha_schedule: tuple[tuple[int, Part], ...] = setting(
        (), "[[step, alpha], ...]: alpha is interpolated between these points, then constant"
    )
    weights: dict[str, Annotated[float, Ge(0)]] = setting(
        dict, "factor on the share of a language, 1 where none is given: {sw: 2}"
    )
    max_epochs: float | None = setting(None, "limit of epochs of a language; null: none", gt=0)
    max_epochs_of: dict[str, Annotated[float, Gt(0)]] = setting(
        dict, "the same for single languages: {sw: 4}"
    )
    masking: Literal["token", "word", "span"] = setting("token", "what is masked as a whole")
    mask_ratio: float = setting(0.15, "fraction of the tokens that are masked", gt=0, lt=1)
    mask_ratio_schedule: tuple[tuple[int, MaskRatio], ...] = setting(
        (), "[[step, ratio], ...]: the ratio is interpolated between these points, then constant"
    )
    span_p: float = setting(
        0.2, "p of the geometric lengths of spans: the chance to end after a token", gt=0, le=1
    )
    span_max: int = setting(10, "most tokens of a span", ge=1)
    isolate_documents: bool = setting(
        False, "restart positions at each document in a sequence, and attend only within it"
    )
    on_bad_shard: Literal["stop", "skip"] = setting(
        "stop", "skip: samples of a damaged shard are counted and contribute no loss", resume=True
    )
    max_bad_shards: int = setting(
        10, "damaged shards that are skipped before the run stops", ge=1, resume=True
    )
    shuffle_window: int = setting(
        16, "chunks of 512 sequences among which sequences are shuffled", ge=1
    )
    cache: str | None = setting(
        None,
        "folder for copies of remote shards; null: polymlm in the user's cache folder",
        min_length=1,
        resume=True,
    )
    cache_gb: float = setting(
        64.0, "size limit in GB of data.cache, which all runs share", ge=0, resume=True
    )
    workers: int | None = setting(
        None, "processes that prepare a corpus; null: one per core", ge=1, resume=True
    )
    heldout: float = setting(
        0.01, "of a corpus: part of each language's text to evaluate on", ge=0, le=0.5
    )
    dedup: bool = setting(False, "of a corpus: keep one of equal documents of a language")
    field: str = setting(
        "text", "of a corpus: name of the text in objects of JSON, column of tables", min_length=1
    )
    document: Literal["blank", "line"] = setting(
        "blank", "of a corpus in plain text: a document ends at a blank line, or with each line"
    )
    on_bad_line: Literal["stop", "skip"] = setting(
        "stop", "of a corpus: what to do with lines that are not UTF-8, or not JSON with a text"
    )
