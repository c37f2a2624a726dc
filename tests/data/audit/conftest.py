from pathlib import Path

import pytest

from mlm.errors import DONE
from tests.data.audit.test_audit import made, with_data
from tests.training_fixtures import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An unbroken run of a single process."""
    folder = with_data(tmp_path_factory.mktemp("whole"))
    assert run(folder, made())["code"] == DONE
    return folder
