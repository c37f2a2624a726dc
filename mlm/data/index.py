"""The index of a shards folder: totals in `index.json`, and arrays of what its shards hold.

`shards.npy` has a row per shard; `samples.npy` has a column per sample, the part of a shard that
holds about 1 MiB of ids. Both are ordered by language, then by split ("train", "heldout"), shard
and sample. They are memory-mapped and never copied: opening costs the same time and memory for one
shard or a million. An order of samples, and thus a run, is bound to `Index.hash`.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xxhash
from numpy.typing import DTypeLike

from mlm.errors import BadShard, DataError
from mlm.files.hashes import sha256
from mlm.tokenizer.tokenizer import Tokenizer

VERSION = 2
ID_BYTES = 4  # an id in a shard is an int32
SPLITS = ("train", "heldout")
FILE, SHARDS_FILE, SAMPLES_FILE = "index.json", "shards.npy", "samples.npy"
SHARD = np.dtype(
    [("bytes", "<i8"), ("tokens", "<i8"), ("documents", "<i8"), ("sha256", "u1", (32,))]
)
# The rows of samples.npy, int64, each contiguous. shard: its row; offset: of the ids in their tar,
# in bytes; start: the tokens of all samples before; check: the XXH3 of the ids, as 64 bits.
SAMPLE_FIELDS = ("shard", "offset", "tokens", "start", "check")


@dataclass(frozen=True)
class Totals:
    """The totals of one split of one language. `bytes` and `characters` are those of its text."""

    bytes: int = 0
    characters: int = 0
    documents: int = 0
    tokens: int = 0
    samples: int = 0
    shards: int = 0


def ids_check(ids: np.ndarray) -> int:
    """The hash of a sample's ids, int32, that the index keeps: XXH3, as an int64."""
    hashed = xxhash.xxh3_64_intdigest(np.ascontiguousarray(ids, "<i4").data)
    return hashed - (1 << 64 if hashed >> 63 else 0)


def shard_name(language: str, split: str, number: int) -> str:
    """The file name of a shard: `sw-000000.tar`, `sw.heldout-000000.tar`."""
    return f"{language}{'' if split == 'train' else '.heldout'}-{number:06d}.tar"


def write_index(
    folder: Path,
    tokenizer: Tokenizer,
    totals: dict[str, tuple[Totals, Totals]],
    shards: np.ndarray,
    samples: np.ndarray,
) -> None:
    """Writes index.json and its arrays.

    totals: of train and heldout, by language, in order; shards: (shards,) of `SHARD`; samples:
    (fields, samples)
    """
    np.save(folder / SHARDS_FILE, shards.astype(SHARD, copy=False))
    np.save(folder / SAMPLES_FILE, np.ascontiguousarray(samples, "<i8"))  # field after field
    index = {
        "version": VERSION,
        "tokenizer": {"sha256": tokenizer.hash, "size": tokenizer.size},
        "languages": [
            {"name": name} | {split: asdict(part) for split, part in zip(SPLITS, of, strict=True)}
            for name, of in totals.items()
        ],
        "arrays": {name: _hash(folder / name) for name in (SHARDS_FILE, SAMPLES_FILE)},
    }
    (folder / FILE).write_text(json.dumps(index, indent=1) + "\n")


class Index:
    """An open index. `languages` and the lists of totals are in the order of the rows."""

    def __init__(self, folder: Path | str, raw: bytes, arrays: Path | None = None) -> None:
        """folder: named in errors; raw: index.json; arrays: the folder of the arrays, if another"""
        content = json.loads(raw)
        if content["version"] != VERSION:
            raise DataError(
                f"the index of {folder} is of version {content['version']}, and this polymlm "
                f"reads {VERSION}; write the shards again with `mlm shards`"
            )
        self.folder = folder
        self._arrays = Path(folder) if arrays is None else arrays
        self.hash = hashlib.sha256(raw).hexdigest()
        self.tokenizer_hash: str = content["tokenizer"]["sha256"]
        self.vocab_size: int = content["tokenizer"]["size"]  # real ids; the last one is <mask>
        self.languages: list[str] = [row["name"] for row in content["languages"]]
        self.totals = {
            split: [Totals(**row[split]) for row in content["languages"]] for split in SPLITS
        }
        self._array_hashes: dict[str, str] = content["arrays"]
        # By language and split, as the rows of the arrays.
        self._splits = [
            self.totals[split][n] for n in range(len(self.languages)) for split in SPLITS
        ]
        self._first_shard = _starts(split.shards for split in self._splits)
        self._first_sample = _starts(split.samples for split in self._splits)
        self._map()

    def _map(self) -> None:
        self.shards = self._array(SHARDS_FILE, SHARD, (self._first_shard[-1],))
        fields = self._array(SAMPLES_FILE, "<i8", (len(SAMPLE_FIELDS), self._first_sample[-1]))
        self.samples = dict(zip(SAMPLE_FIELDS, fields, strict=True))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The index of a shards folder; raises DataError where it is missing or damaged."""
        folder = Path(folder)
        try:
            return cls.parse(folder, (folder / FILE).read_bytes())
        except OSError as error:
            raise DataError(
                f"{folder} has no {FILE} that can be read ({error.strerror}); give a folder that "
                f"`mlm shards` wrote"
            ) from None

    @classmethod
    def parse(cls, folder: Path | str, raw: bytes, arrays: Path | None = None) -> Self:
        """The index whose `index.json` is `raw`; raises DataError where it is not one."""
        try:
            return cls(folder, raw, arrays)
        except DataError:
            raise
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{folder}/{FILE} is not an index of shards; write the shards again with "
                f"`mlm shards`"
            ) from None

    @property
    def train_tokens(self) -> list[int]:
        """Training tokens of each language."""
        return [part.tokens for part in self.totals["train"]]

    @property
    def heldout_tokens(self) -> list[int]:
        """Held-out tokens of each language."""
        return [part.tokens for part in self.totals["heldout"]]

    def first_tokens(self, split: str) -> np.ndarray:
        """The number of tokens before a split of each language, (languages,) int64."""
        starts = _starts(part.tokens for part in self._splits)[SPLITS.index(split) : -1]
        return np.array(starts[:: len(SPLITS)], np.int64)

    def sample_rows(self, split: str, language: int) -> slice:
        """The samples of a split of a language, as a slice of the columns of `samples`."""
        n = len(SPLITS) * language + SPLITS.index(split)
        return slice(self._first_sample[n], self._first_sample[n + 1])

    def split_of(self, shard: int) -> tuple[int, str]:
        """The language and the split of a shard."""
        n = self._split_number(shard)
        return n // len(SPLITS), SPLITS[n % len(SPLITS)]

    def shard_name(self, shard: int) -> str:
        """The file name of a shard, by its row."""
        language, split = self.split_of(shard)
        before = self._first_shard[self._split_number(shard)]
        return shard_name(self.languages[language], split, shard - before)

    def shard_row(self, name: str) -> int:
        """The row of a shard, by its file name; raises DataError where there is none."""
        for n, first in enumerate(self._first_shard[:-1]):
            head = shard_name(self.languages[n // len(SPLITS)], SPLITS[n % len(SPLITS)], 0)
            stem, _, number = name.removesuffix(".tar").rpartition("-")
            if stem == head.rpartition("-")[0] and number.isdigit():
                row = first + int(number)
                if row < self._first_shard[n + 1]:
                    return row
        raise DataError(f"{name} is not a shard of {self.folder}; give the folder that has it")

    def shard_path(self, shard: int) -> Path:
        """The path of a shard, by its row."""
        return Path(self.folder) / self.shard_name(shard)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises DataError unless the shards were written with this tokenizer."""
        if tokenizer.hash != self.tokenizer_hash:
            raise DataError(
                f"the shards in {self.folder} were written with tokenizer "
                f"{self.tokenizer_hash[:12]}, and {tokenizer.model_path} is "
                f"{tokenizer.hash[:12]}; give the tokenizer of the shards, or write shards with "
                f"this one"
            )

    def verify(self, deep: bool = False) -> None:
        """Raises DataError, naming the file, unless all shards exist with their sizes.

        deep: reads all shards, and checks their hashes and that the tokenizer has every id
        """
        self.verify_arrays()
        for bad in self.bad_shards():
            raise bad
        for row in range(len(self.shards)) if deep else ():
            path = self.shard_path(row)
            if _hash(path) != bytes(self.shards["sha256"][row]).hex():
                raise _changed(path, "its hash is not the one in the index")
        if deep:
            self._verify_ids()

    def verify_arrays(self) -> None:
        """Raises DataError unless the arrays are those written with index.json."""
        for name, hash in self._array_hashes.items():
            if _hash(self._arrays / name) != hash:
                raise _changed(self._arrays / name, "its hash is not the one in index.json")

    def bad_shards(self) -> Iterator[BadShard]:
        """The shards that are missing or have another size."""
        for row, size in enumerate(self.shards["bytes"].tolist()):
            path = self.shard_path(row)
            try:
                found = path.stat().st_size
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                why = "it is missing" if missing else f"it cannot be read ({error.strerror})"
                yield BadShard(path.name, 0, str(_changed(path, why)))
                continue
            if found != size:
                why = f"it has {found} bytes in place of {size}"
                yield BadShard(path.name, min(found, size), str(_changed(path, why)))

    def _verify_ids(self) -> None:
        fields = (self.samples[name].tolist() for name in ("shard", "offset", "tokens"))
        for shard, offset, tokens in zip(*fields, strict=True):
            path = self.shard_path(shard)
            ids = np.fromfile(path, "<i4", tokens, offset=offset)
            if len(ids) != tokens or ids.min() < 0 or ids.max() >= self.vocab_size:
                raise _changed(path, f"it has ids outside the {self.vocab_size} of the tokenizer")

    def _split_number(self, shard: int) -> int:
        return bisect_right(self._first_shard, shard) - 1

    def _array(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
        try:
            mapped = np.load(self._arrays / name, mmap_mode="r") if shape[-1] else np.empty(shape)
        except (OSError, ValueError, EOFError) as error:
            raise _changed(self._arrays / name, f"it cannot be read ({error})") from None
        if (shape[-1] and mapped.dtype != dtype) or mapped.shape != shape:
            raise _changed(self._arrays / name, f"it does not have the shape {shape} of index.json")
        return np.asarray(mapped)  # still a map, without the slow indexing of np.memmap


def _changed(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} is not as it was written: {what}; copy the shards again, or write them with "
        f"`mlm shards`"
    )


def _starts(counts: Iterable[int]) -> list[int]:
    """The sum of the counts before each one, and the sum of all at the end."""
    return [0, *np.cumsum(np.fromiter(counts, dtype=np.int64)).tolist()]


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise _changed(path, f"it cannot be read ({error.strerror})") from None
