"""The settings of the commands other than `mlm train`."""

from dataclasses import dataclass
from typing import Literal

from mlm.setting import MISSING, STRICT, setting

MODEL = "a run folder, a checkpoint, what `mlm import` wrote, or a Hugging Face folder"
FIELD = "of the text in objects of JSON, and its column in parquet and saved datasets"
DOCUMENT = "in plain text, a document ends at a blank line, or with each line"
BAD_LINE = "what to do with lines that are not UTF-8, or not JSON with a text"


@dataclass(frozen=True)
class TokenizerConfig:
    """`mlm tokenizer`: trains sentencepiece on temperature-sampled text."""

    __pydantic_config__ = STRICT

    corpus: str = setting(MISSING, "a folder or YAML file of text, or sample")
    out: str = setting(MISSING, "folder to write")
    vocab_size: int = setting(250002, "all ids, special ones included")
    alpha: float = setting(
        0.3, "languages are sampled in proportion to (their bytes)^alpha", ge=0, le=1
    )
    sample_bytes: int = setting(1_000_000_000, "most text to train on", ge=1)
    character_coverage: float = setting(
        0.9995, "part of the characters that get an id of their own", ge=0.98, le=1
    )
    seed: int = setting(1, "of the sample")
    field: str = setting("text", FIELD, min_length=1)
    document: Literal["blank", "line"] = setting("blank", DOCUMENT)
    on_bad_line: Literal["stop", "skip"] = setting("stop", BAD_LINE)


@dataclass(frozen=True)
class ShardsConfig:
    """`mlm shards`: writes token shards and their index."""

    __pydantic_config__ = STRICT

    corpus: str = setting(MISSING, "a folder or YAML file of text, or sample")
    tokenizer: str = setting(MISSING, "folder of the tokenizer")
    out: str = setting(MISSING, "folder to write")
    workers: int | None = setting(None, "processes; null: one per core", ge=1)
    heldout: float = setting(
        0.01, "part of each language's text to evaluate on; 1: all of it", ge=0, le=1
    )
    dedup: bool = setting(False, "keep only the first of equal documents of a language")
    field: str = setting("text", FIELD, min_length=1)
    document: Literal["blank", "line"] = setting("blank", DOCUMENT)
    on_bad_line: Literal["stop", "skip"] = setting("stop", BAD_LINE)


@dataclass(frozen=True)
class FillConfig:
    """`mlm fill PATH TEXT ...`: fills each `<mask>` of a text."""

    __pydantic_config__ = STRICT

    path: str = setting(MISSING, MODEL)
    texts: tuple[str, ...] = setting((), "texts with <mask>")
    top: int = setting(5, "the likeliest tokens to show", ge=1)


@dataclass(frozen=True)
class ExportConfig:
    """`mlm export PATH OUT`: writes a Hugging Face folder of a trained model."""

    __pydantic_config__ = STRICT

    path: str = setting(MISSING, MODEL)
    out: str = setting(MISSING, "folder to write")
    dtype: Literal["fp32", "bf16", "fp16"] | None = setting(
        None, "of the written weights; null: that of the given ones"
    )


@dataclass(frozen=True)
class ImportConfig:
    """`mlm import PATH OUT`: reads a trained model from elsewhere."""

    __pydantic_config__ = STRICT

    path: str = setting(
        MISSING, "a Hugging Face folder, or the folder or file of an original checkpoint"
    )
    out: str = setting(MISSING, "folder to write")
    tokenizer: str | None = setting(
        None, "its folder; none: import weights alone; null: the folder of the weights"
    )
    head: str | None = setting(None, "name of a classification head in an original checkpoint")


@dataclass(frozen=True)
class CheckpointsConfig:
    """`mlm checkpoints RUN`: lists, verifies and prunes the checkpoints of a run."""

    __pydantic_config__ = STRICT

    run: str = setting(MISSING, "a run folder")
    verify: bool = setting(True, "read every file and compare its hash")
    keep: int | None = setting(None, "the newest checkpoints that stay; null: delete nothing", ge=1)
    keep_every: int = setting(0, "checkpoints of multiples of these steps stay, too", ge=0)


@dataclass(frozen=True)
class AuditConfig:
    """`mlm audit RUN`: shows what a run was trained on, and compares it with its ledger."""

    __pydantic_config__ = STRICT

    run: str = setting(MISSING, "a run folder")
    step: int | None = setting(None, "show the batch of this step, counted from 1")
    rows: int = setting(4, "of the batch that is shown; 0: all", ge=0)
    every: bool = setting(False, "compare all steps of the ledger; false: 64 of them")
    documents: str | None = setting(None, "file to write: how often each document was seen")
