import shutil
from pathlib import Path

import pytest

from tests.data.reading.remote_fixtures import Nginx, cut_shards


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    return cut_shards(tmp_path_factory.mktemp("cut") / "shards")


@pytest.fixture
def copy(cut, tmp_path) -> Path:
    return shutil.copytree(cut, tmp_path / "copy")


@pytest.fixture
def nginx(copy, tmp_path):
    server = Nginx(tmp_path / "nginx", copy)
    server.start()
    yield server
    server.stop()
