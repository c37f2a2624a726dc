"""A corpus is prepared once, and data that cannot be trained on is refused before a start."""

from dataclasses import replace
from pathlib import Path

import pytest

from mlm.data.prepare import check_data, corpus_key, prepare, with_tokenizer
from mlm.errors import DataError, UserError
from tests.launch.launch_fixtures import quiet, small, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text"))


def test_data_is_prepared_once_for_the_same_bytes_and_settings(corpus, tmp_path):
    first = prepare(small(corpus), tmp_path, quiet())
    made = Path(first.data.shards, "index.json").stat().st_mtime_ns
    again = prepare(replace(small(corpus), seed=9), tmp_path, quiet())
    assert again.data == first.data
    assert Path(again.data.shards, "index.json").stat().st_mtime_ns == made
    other = prepare(small(corpus, alpha=0.7), tmp_path, quiet())
    assert Path(other.data.shards) != Path(first.data.shards)
    given = prepare(small(corpus, tokenizer=first.data.tokenizer), tmp_path, quiet())
    assert given.data.tokenizer == first.data.tokenizer
    assert check_data(given) == check_data(first)


def test_a_corpus_is_known_by_its_names_and_bytes(corpus, tmp_path):
    def key(folder: Path, *made_by) -> str:
        return corpus_key(folder, list(made_by), lambda done, total: None)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in corpus.iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    assert key(tmp_path / "a", 1) == key(tmp_path / "b", 1) == key(corpus, 1)
    assert key(tmp_path / "a", 1) != key(tmp_path / "a", 2)
    (tmp_path / "a" / "de.txt").rename(tmp_path / "a" / "nl.txt")
    with (tmp_path / "b" / "de.txt").open("a") as file:
        file.write("x")
    assert len({key(tmp_path / "a", 1), key(tmp_path / "b", 1), key(corpus, 1)}) == 3


def test_shards_bring_their_tokenizer_along(corpus, tmp_path):
    made = prepare(small(corpus), tmp_path, quiet())
    shards = replace(made, data=replace(made.data, corpus=None, tokenizer=None))
    assert check_data(with_tokenizer(shards)) == check_data(made)
    for path in Path(made.data.shards, "tokenizer").iterdir():
        path.unlink()
    Path(made.data.shards, "tokenizer").rmdir()
    with pytest.raises(UserError, match=r"holds no tokenizer; add data.tokenizer=DIR"):
        with_tokenizer(shards)


def test_a_tokenizer_of_other_shards_is_refused(corpus, tmp_path):
    made = prepare(small(corpus), tmp_path, quiet())
    other = prepare(small(corpus, vocab_size=150), tmp_path, quiet())
    mixed = replace(made, data=replace(made.data, tokenizer=other.data.tokenizer))
    with pytest.raises(DataError, match="tokenizer"):
        check_data(mixed)
