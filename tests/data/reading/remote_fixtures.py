"""Shards of many small samples, and the real servers that they are read from."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mlm.config import TrainConfig
from mlm.data.checks import with_tokenizer
from mlm.data.index import Index
from mlm.data.reading.reader import TokenReader
from mlm.data.reading.remote import open_index, open_store
from mlm.data.writing import shards, tars
from mlm.tokenizer.ids import MODEL_FILE
from tests.text_fixtures import corpus, tokenizer
from tests.training_fixtures import config

SECONDS_TO_START = 30
GRPC = 10_000
KEY, SECRET, BUCKET = "key", "secret", "bucket"

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format requests '$status $request_method $uri $connection $http_range';
    access_log {folder}/access.log requests;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        {more}
        location = /seen {{ return 204; }}
        location /forbidden/ {{ deny all; }}
        if (-f {folder}/down) {{ return 503; }}
    }}
}}
"""


def cut_shards(folder: Path) -> Path:
    """Shards with 100 ids in a sample and five samples in a tar, with their tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tars, "SAMPLE_IDS", 100)
        patch.setattr(tars, "SHARD_SAMPLES", 5)
        shards.write(corpus(), tokenizer(), folder, workers=1)
    return add_tokenizer(folder)


def add_tokenizer(folder: Path) -> Path:
    """Adds the tokenizer to a folder of shards, and returns the folder."""
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / MODEL_FILE).write_bytes(tokenizer().model)
    return folder


def free_port(above: int = 0) -> int:
    """A free port, of which the one `above` it is free as well."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if not above:
                return port
            with suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + above))
                return port


def answers(port: int, path: str = "/") -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


class Server:
    """A process that serves HTTP on a port of this machine, from `start` to `stop`."""

    def __init__(self, folder: Path, port: int, command: list[str], cwd: Path | None = None):
        self.folder, self.port, self._command, self._cwd = folder, port, command, cwd
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self.folder / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._cwd, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        end = time.monotonic() + SECONDS_TO_START
        while not answers(self.port, "/seen"):
            assert self._process.poll() is None, (self.folder / "output.log").read_text()
            assert time.monotonic() < end, f"{self._command[0]} does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        """Kills the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Request(NamedTuple):
    status: str
    path: str
    connection: str
    span: str  # the requested range, or -


class Nginx(Server):
    """nginx over a folder. `down` makes it answer 503; `more` is added to its configuration."""

    def __init__(self, folder: Path, root: Path, more: str = ""):
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if program is None:
            assert "CI" not in os.environ, ".ci/run installs nginx"
            pytest.skip("nginx is not here (on Debian and Ubuntu: apt install nginx-light)")
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self._root = root
        super().__init__(folder, port, [program, "-c", str(folder / "nginx.conf")])
        self.configure(more)

    def configure(self, more: str) -> None:
        """Changes the configuration of the next start."""
        text = NGINX.format(folder=self.folder, port=self.port, root=self._root, more=more)
        (self.folder / "nginx.conf").write_text(text)

    def down(self, is_down: bool) -> None:
        if is_down:
            (self.folder / "down").touch()
        else:
            (self.folder / "down").unlink()

    def requests(self) -> list[Request]:
        """The GET requests answered since the last call."""
        assert answers(self.port, "/seen?last")  # nginx logs in the order of its answers
        lines, end = [], time.monotonic() + 10
        while not lines or not lines[-1].startswith("204 GET /seen"):
            assert time.monotonic() < end, lines[-5:]
            lines = (self.folder / "access.log").read_text().splitlines()
        (self.folder / "access.log").write_text("")
        rows = [line.split(" ", 4) for line in lines]
        return [Request(row[0], *row[2:]) for row in rows if row[2] != "/seen"]


def plain_server(folder: Path, root: Path) -> Server:
    """Python's own server, which does not support ranges."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    return Server(folder, port, command, cwd=root)


class SeaweedFS(Server):
    """Master, volumes, filer and S3 in one process, with grpc `GRPC` ports above each."""

    def __init__(self, folder: Path):
        program = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert program is not None, "pip install -e '.[test]' brings it, on Linux"
        folder.mkdir(parents=True, exist_ok=True)
        user = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
        users = {"identities": [user | {"actions": ["Admin", "Read", "Write", "List"]}]}
        (folder / "users.json").write_text(json.dumps(users))
        (folder / "data").mkdir()
        names = ("master", "volume", "filer", "s3")
        self._ports = dict(zip(names, (free_port(GRPC) for _ in names), strict=True))
        command = [
            program,
            f"-logdir={folder}",
            "server",
            f"-dir={folder / 'data'}",
            "-s3",
            "-ip=127.0.0.1",
        ]
        command += ["-ip.bind=127.0.0.1", f"-s3.config={folder / 'users.json'}"]
        command += [f"-{name}.port={port}" for name, port in self._ports.items()]
        command += ["-volume.max=8", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        super().__init__(folder, self._ports["s3"], command)

    def stop(self) -> None:
        super().stop()
        for path in Path("/tmp").glob("seaweedfs-*.sock"):  # their place is fixed
            if any(
                path.stem.endswith(f"-{port + up}")
                for port in self._ports.values()
                for up in (0, GRPC)
            ):
                path.unlink(missing_ok=True)


def reader(server: Server, cache: Path, gb: float = 1.0) -> TokenReader:
    index = open_index(server.url, str(cache))
    return TokenReader(index, open_store(index, gb))


def ranges(server: Nginx) -> Counter:
    """The number of times that each range of a tar was sent."""
    sent = server.requests()
    return Counter((row.path, row.span) for row in sent if row.path.endswith(".tar"))


def request_of(index: Index, sample: int) -> tuple[str, str]:
    """The path and the range in the request for a sample."""
    row = {name: int(values[sample]) for name, values in index.samples.items()}
    last = row["offset"] + 4 * row["tokens"] - 1
    return f"/{index.shard_name(row['shard'])}", f"bytes={row['offset']}-{last}"


def everything(made: TokenReader) -> list[np.ndarray]:
    """The training tokens of each language."""
    return [made.read("train", n, 0, tokens) for n, tokens in enumerate(made.index.train_tokens)]


def used(cache: Path) -> int:
    """The bytes on disk of a folder."""
    out = subprocess.run(["du", "-s", "-B1", cache], capture_output=True, text=True, check=True)
    return int(out.stdout.split()[0])


def offered(server: Server, cache: Path, **data) -> TrainConfig:
    """The config of a run whose shards are a server's, with the paths that the launcher adds."""
    return config_of(server.url, cache, **data)


def config_of(url: str, cache: Path, **data) -> TrainConfig:
    made = config(data={"shards": url, "cache": str(cache), **data})
    return replace(made, data=with_tokenizer(made.data))
