"""Shards behind a URL: their index, tokenizer and samples, through a cache on this machine.

`<cache>/<first 16 hex digits of the index's hash>/` holds the files of an index, its tokenizer and
its samples. A changed index thus gets another folder, and all ranks of a machine, in every start of
a run, map the same files.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import get_ident

import numpy as np
from numpy.typing import DTypeLike

from mlm.data.index import FILE, ID_BYTES, SAMPLES_FILE, SHARDS_FILE, Index
from mlm.data.order.order import CHUNK
from mlm.data.reading.remote_files import RemoteFolder, RequestThreads, is_url
from mlm.data.reading.remote_store import RemoteStore, no_ranges
from mlm.data.reading.sample_cache import FULL, SampleCache, bytes_below, cache_errors, disk_bytes
from mlm.data.reading.store import FolderStore, Store
from mlm.errors import BadShard, DataError, UserError
from mlm.files.hashes import sha256
from mlm.files.locks import lock
from mlm.tokenizer.ids import MODEL_FILE

TOKENIZER = "tokenizer"
HASH_DIGITS = 16
PIECE = 1 << 26  # bytes of a large file in one request
SIZES_CHECKED = 1000  # shards whose sizes are compared before a start
GB = 10**9


def open_index(shards: str, cache: str | None) -> Index:
    """The index of a shards folder, or of a URL through the folder `cache` (None: the user's).

    Raises DataError where it is missing or damaged, and UserError where the cache is unwritable.
    """
    return RemoteIndex.open_url(shards, cache) if is_url(shards) else Index.open(Path(shards))


def open_store(index: Index, cache_gb: float) -> Store:
    """Where the samples of an index are read. cache_gb: the limit of the cache of remote ones"""
    if not isinstance(index, RemoteIndex):
        return FolderStore(index)
    cache = index.cache(cache_gb)
    return RemoteStore(index, index.files, cache, max(1, cache.limit // index.sample_bytes))


def tokenizer_beside(index: Index, given: str | None = None) -> Path | None:
    """The folder of the tokenizer of remote shards: the one that is given, or else a folder of the
    cache with the tokenizer beside the shards; None where there is none."""
    assert isinstance(index, RemoteIndex)
    if given is not None and Path(given).resolve() != index.cached / TOKENIZER:
        return Path(given).resolve()
    return index.tokenizer_folder()


class RemoteIndex(Index):
    """An index behind a URL, whose arrays are in the folder `cached`. Made by `open_index`."""

    def __init__(self, folder: Path | str, raw: bytes, arrays: Path | None = None) -> None:
        assert arrays is not None
        self.files, self.cached = RemoteFolder(str(folder)), arrays
        super().__init__(folder, raw, arrays)

    @classmethod
    def open_url(cls, url: str, cache: str | None) -> "RemoteIndex":
        files = RemoteFolder(url)
        raw = files.read(FILE)
        key = hashlib.sha256(raw).hexdigest()[:HASH_DIGITS]
        return cls.parse(files.url, raw, cache_folder(cache) / key)

    def cache(self, gb: float) -> SampleCache:
        """The cache of its samples, in a cache folder limited to `gb`."""
        return SampleCache(self.cached.parent, self.cached.name, int(gb * GB))

    @property
    def sample_bytes(self) -> int:
        """The bytes on disk of its largest sample."""
        rows = [self.sample_rows("train", n) for n in range(len(self.languages))]
        tokens = [int(self.samples["tokens"][row.start]) for row in rows if row.stop > row.start]
        return disk_bytes(max(tokens, default=1) * ID_BYTES)

    def tokenizer_folder(self) -> Path | None:
        """A folder of the cache with the tokenizer beside the shards; None where there is none."""
        name = f"{TOKENIZER}/{MODEL_FILE}"
        try:
            _fetch(self.files, name, self.cached, self.tokenizer_hash, verify=True)
        except BadShard:
            return None
        return self.cached / TOKENIZER

    def verify(self, deep: bool = False) -> None:
        """Raises DataError, naming the file, unless arrays and shards are as they were written.

        Compares the sizes of `SIZES_CHECKED` shards, or the hashes of all if `deep`. Damaged arrays
        in the cache are fetched again.
        """
        self.verify_arrays()
        for bad in self.bad_shards():
            raise bad
        if deep:
            RequestThreads().each(self._verify_hash, range(len(self.shards)))

    def verify_arrays(self) -> None:
        for name in (SHARDS_FILE, SAMPLES_FILE):  # no names of the index: they would become paths
            if _fetch(self.files, name, self.cached, self._array_hashes[name], verify=True):
                self._map()
        if self.files.ignores_ranges(FILE):
            raise no_ranges(self.files.url)

    def bad_shards(self) -> Iterator[BadShard]:
        """Of `SIZES_CHECKED` shards, spread evenly, those that are missing or have another size."""
        count = len(self.shards)
        checked = np.linspace(0, count - 1, min(count, SIZES_CHECKED)).astype(np.int64)
        for bad in RequestThreads().each(self._wrong_size, np.unique(checked).tolist()):
            if bad is not None:
                yield bad

    def _array(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
        _fetch(self.files, name, self.cached, self._array_hashes[name])
        try:
            return super()._array(name, dtype, shape)
        except DataError:  # the file in the cache is damaged
            _fetch(self.files, name, self.cached, self._array_hashes[name], verify=True)
            return super()._array(name, dtype, shape)

    def _wrong_size(self, shard: int) -> BadShard | None:
        # The last byte and the one after it, which should not exist: one request, in any protocol,
        # with no rights other than those of reading.
        name, size = self.shard_name(shard), int(self.shards["bytes"][shard])
        try:
            found = len(self.files.read(name, size - 1, size + 1))
        except BadShard as missing:
            return missing
        if found == 1:
            return None
        return BadShard(
            name,
            size,
            f"the shard {self.files.url}/{name} has {'fewer' if found == 0 else 'more'} than "
            f"the {size} bytes of the index; copy it again, or write the shards with `mlm shards`",
        )

    def _verify_hash(self, shard: int) -> None:
        name, expected = self.shard_name(shard), bytes(self.shards["sha256"][shard]).hex()
        hashed = hashlib.sha256()
        for piece in _pieces(self.files, name):
            hashed.update(piece)
        if hashed.hexdigest() != expected:
            raise _changed(f"{self.files.url}/{name}", "the index")


def cache_folder(given: str | None) -> Path:
    """The absolute path of the cache: the folder that is given, or the user's."""
    if given is not None:
        return Path(given).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "polymlm"


def check_room(index: Index, languages: Iterable[int], tokens: int, window: int, gb: float) -> None:
    """Raises UserError where the cache of a remote index is smaller than the samples in use at a
    time, or larger than the disk.

    languages: those trained on; tokens: of a block; window: chunks shuffled together
    """
    if not isinstance(index, RemoteIndex):
        return
    cache = index.cache(gb)
    needed = int((_in_use(index, languages, tokens, window) + _bytes(index.cached)) / FULL)
    if cache.limit < needed:
        raise UserError(
            f"data.cache_gb={gb} is less than the {_rounded_up(needed)} of the samples among which "
            f"data.shuffle_window={window} shuffles; give data.cache_gb={_rounded_up(needed)} or "
            f"more, or a smaller data.shuffle_window"
        )
    total, of_index = bytes_below(cache.root), bytes_below(index.cached)
    wanted = min(cache.limit - total, int(index.shards["bytes"].sum()) - of_index)
    free = shutil.disk_usage(cache.root).free
    if wanted > free:
        raise UserError(
            f"data.cache_gb={gb} is more than {cache.root} has room for, with {free / GB:.2f} free "
            f"and {total / GB:.2f} in the cache; give data.cache_gb="
            f"{_rounded_up(total + 0.9 * free)}, or another folder as data.cache"
        )


def _in_use(index: Index, languages: Iterable[int], tokens: int, window: int) -> int:
    """Bytes of the samples that hold one window of each language and its held-out blocks."""
    total = 0
    for language in languages:
        for split in ("train", "heldout"):
            rows = index.sample_rows(split, language)
            count = rows.stop - rows.start
            if not count:
                continue
            size = int(index.samples["tokens"][rows.start])  # of all samples but the last
            spanned = -(-CHUNK * tokens // size) + 1  # samples that a chunk may span
            used = min(count, window * spanned if split == "train" else 2)
            total += used * disk_bytes(size * ID_BYTES)
    return total


def _rounded_up(size: float) -> str:
    """Bytes in GB."""
    return f"{math.ceil(size / GB * 1e4) / 1e4:g}"


def _bytes(folder: Path) -> int:
    """The bytes on disk of the files of an index, without its samples."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return sum(disk_bytes(path.stat().st_size) for path in files)


def _fetch(
    files: RemoteFolder, name: str, folder: Path, expected: str, verify: bool = False
) -> bool:
    """Fetches a file of the URL into a folder of the cache, unless it is there, by one process.

    expected: its SHA-256; verify: of a file that is there as well. Returns whether it was fetched.
    Raises DataError, and UserError where the cache cannot be written.
    """
    path = folder / name
    if path.is_file() and not (verify and sha256(path) != expected):
        return False
    with cache_errors(folder.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            lock(file)
            if path.is_file() and sha256(path) == expected:  # another process was faster
                return False
            if files.ignores_ranges(FILE):
                raise no_ranges(files.url)
            part = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}")
            try:
                with part.open("wb") as out:
                    for piece in _pieces(files, name):
                        out.write(piece)
                if sha256(part) != expected:
                    raise _changed(f"{files.url}/{name}", FILE)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    return True


def _pieces(files: RemoteFolder, name: str) -> Iterable[bytes]:
    """The bytes of a file in order, in pieces of which each is tried again by itself."""
    start, size = 0, PIECE
    while size == PIECE:
        piece = files.read(name, start, start + PIECE)
        if len(piece) > PIECE:
            raise no_ranges(files.url)
        yield piece
        size = len(piece)
        start += size


def _changed(url: str, where: str) -> DataError:
    return DataError(
        f"{url} is not as it was written: its hash is not the one in {where}; copy the shards "
        f"again, or write them with `mlm shards`"
    )
