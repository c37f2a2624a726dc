"""Files behind a URL, read by byte ranges through fsspec."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec

from mlm.errors import BadShard, DataError, UserError

WAITS = (0.25, 0.5, 1, 2, 4, 8)  # seconds before each further attempt
PERMANENT = (FileNotFoundError, PermissionError, NotImplementedError, ImportError)
TEMPORARY = (408, 425, 429)  # HTTP statuses below 500 after which a request is tried again
OUTSIDE = 416  # the HTTP status of a range after the end of a file, and its name in S3
OUTSIDE_S3 = "InvalidRange"
THREADS = 16  # parallel requests of a process
SECONDS_TO_CONNECT, SECONDS_TO_READ = 10, 30
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol: the extra of this package that installs it

Item = TypeVar("Item")
Made = TypeVar("Made")


def is_url(place: str) -> bool:
    """Whether shards are given by URL; else they are in a folder of this machine."""
    return "://" in place


class RemoteFolder:
    """The files below a URL. Threads may share one, and a fork may use its parent's."""

    def __init__(self, url: str) -> None:
        """Raises UserError for a URL that cannot be read here; connects to nothing."""
        self.url = url.rstrip("/")
        self._protocol = _checked(self.url)
        self._made: tuple[int, Any, str] | None = None
        self._lock = threading.Lock()

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` of a file, or fewer where it ends before.

        Tries again for some seconds after temporary errors. Raises BadShard for a missing file and
        DataError for all else, both with its URL and `start`.
        """
        began = time.monotonic()
        for wait in (*WAITS, None):
            try:
                return self._read(name, start, end)
            except Exception as error:  # each protocol has its own
                if _outside(error):
                    return b""
                if wait is None or _permanent(error):
                    raise self._failed(name, start, error, time.monotonic() - began) from None
                time.sleep(wait * random.uniform(0.75, 1.25))  # spreads the requests of ranks
        raise AssertionError("the last attempt returns or raises")

    def ignores_ranges(self, name: str) -> bool:
        """Whether the server sends all of a file, of 2 bytes or more, when 1 is requested."""
        return len(self.read(name, 0, 1)) > 1

    def _read(self, name: str, start: int, end: int | None) -> bytes:
        files, root = self._files()
        whole = start == 0 and end is None
        limits = {} if whole else {"start": start, "end": end}
        return files.cat_file(f"{root}/{name}", **limits)

    def _files(self) -> tuple[Any, str]:
        """The filesystem of this process, since a fork has none of its event loop's threads."""
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                options = _options(self._protocol)
                made = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, **options)
                self._made = (os.getpid(), *made)
            return self._made[1:]

    def _failed(self, name: str, start: int, error: Exception, seconds: float) -> DataError:
        url, status = f"{self.url}/{name}", getattr(error, "status", None)
        if isinstance(error, FileNotFoundError):
            return BadShard(
                name,
                start,
                f"{url} is not there; copy the shards to {self.url} again, or correct data.shards",
            )
        if isinstance(error, PermissionError) or status in (401, 403):
            return DataError(
                f"{url} may not be read at byte {start} ({_text(error)}); give this user the right "
                f"to read it"
            )
        if _without_credentials(error):
            return DataError(
                f"{url} cannot be read at byte {start} ({_text(error)}); give them as to any AWS "
                f"tool, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or with `aws configure`"
            )
        if _permanent(error):
            return DataError(
                f"{url} cannot be read at byte {start} ({_text(error)}); correct data.shards"
            )
        return DataError(
            f"{url} cannot be read at byte {start} ({_text(error)}), for {seconds:.0f} seconds; "
            f"check that the server is reachable, then start the run again"
        )


class RequestThreads:
    """Threads for requests, started in each process at their first use: a fork has none of them."""

    def __init__(self, count: int = THREADS) -> None:
        self._count = count
        self._made: tuple[int, ThreadPoolExecutor] | None = None

    def each(self, function: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
        """`function` of each item; once all have ended, raises the error of the first that
        failed."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), ThreadPoolExecutor(self._count, "remote")
        futures = [self._made[1].submit(function, item) for item in items]
        for future in futures:
            future.exception()
        return [future.result() for future in futures]


def _checked(url: str) -> str:
    """The protocol of a URL that can be read here; raises UserError for any other."""
    protocol, _, rest = url.partition("://")
    if "::" in url or "?" in url or "#" in url or not rest:
        raise UserError(
            f"data.shards={url} is not the plain URL of a folder; give one like https://host/path "
            f"or s3://bucket/prefix"
        )
    if "@" in rest.partition("/")[0] and protocol in ("http", "https"):
        host = rest.partition("@")[2]
        raise UserError(
            f"data.shards={protocol}://...@{host} has a password in it, which would be written to "
            f"the run's files; put it into ~/.netrc, and remove it from the URL"
        )
    if protocol == "memory" or protocol not in fsspec.available_protocols():
        raise UserError(
            f"data.shards={url} has the unsupported protocol {protocol}; give a folder, or a URL "
            f"of https, s3 or another protocol of fsspec"
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install 'polymlm[{extra}]'" if extra else str(error)
        raise UserError(
            f"data.shards={url} needs a package that is not installed here; {remedy}"
        ) from None
    return protocol


def _options(protocol: str) -> dict[str, Any]:
    """Options of a filesystem: timeouts, and no compression of files in transit."""
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=SECONDS_TO_CONNECT, sock_read=SECONDS_TO_READ
        )
        return {
            "headers": {"Accept-Encoding": "identity"},  # a compressed response has no ranges
            "client_kwargs": {"timeout": limits, "trust_env": True},  # proxies, ~/.netrc
        }
    if protocol in ("s3", "s3a"):
        return {
            "config_kwargs": {
                "connect_timeout": SECONDS_TO_CONNECT,
                "read_timeout": SECONDS_TO_READ,
                # Some servers send the checksum of the whole file; the index has those of samples.
                "response_checksum_validation": "when_required",
            }
        }
    return {}


def _permanent(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if status is not None:
        return 400 <= status < 500 and status not in TEMPORARY
    return isinstance(error, (*PERMANENT, ValueError)) or _without_credentials(error)


def _without_credentials(error: Exception) -> bool:
    return "Credentials" in type(error).__name__  # a class of botocore, which may not be installed


def _outside(error: Exception) -> bool:
    """Whether the range began after the end of the file."""
    if getattr(error, "status", None) == OUTSIDE:
        return True
    response = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == OUTSIDE_S3


def _text(error: Exception) -> str:
    """The message of an error in one line, or its class."""
    status, text = getattr(error, "status", None), " ".join(str(error).split())
    return f"status {status}" if status is not None else text or type(error).__name__
