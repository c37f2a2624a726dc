"""Preparation of a corpus, and checks of data before a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from mlm.data.checks import check_data, with_tokenizer
from mlm.data.prepare import corpus_digest, key, prepare
from mlm.errors import DataError, UserError
from tests.launch.launch_fixtures import quiet, small_config, with_shards, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text"))


def test_prepare_makes_data_once_for_equal_bytes_and_settings(corpus, tmp_path):
    first = with_shards(small_config(corpus), tmp_path)
    made = Path(str(first.data.shards), "index.json").stat().st_mtime_ns
    again = with_shards(replace(small_config(corpus), seed=9), tmp_path)
    assert again.data == first.data
    assert Path(str(again.data.shards), "index.json").stat().st_mtime_ns == made
    other = with_shards(small_config(corpus, alpha=0.7), tmp_path)
    assert Path(str(other.data.shards)) != Path(str(first.data.shards))
    more = with_shards(small_config(corpus, heldout=0.1), tmp_path)
    assert more.data.tokenizer == first.data.tokenizer
    assert more.data.shards != first.data.shards
    given = with_shards(small_config(corpus, tokenizer=first.data.tokenizer), tmp_path)
    assert given.data.tokenizer == first.data.tokenizer
    assert check_data(given) == check_data(first)


@pytest.mark.parametrize(
    ("name", "line", "size", "remedy"),
    [
        ("en.txt", "Too short.", 200, "data.vocab_size=200 is more than .*; choose 13 or fewer"),
        ("en.jsonl", "[]", 200, "give data.field=NAME where .*, or add data.on_bad_line=skip"),
        ("en.txt", "Only one.", 13, r"or hold nothing out \(data.heldout=0\)"),
    ],
)
def test_prepare_names_the_settings_of_train(tmp_path, name, line, size, remedy):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / name).write_text(line + "\n")
    with pytest.raises(DataError, match=remedy):
        prepare(small_config(tmp_path / "text", vocab_size=size).data, tmp_path / "out", quiet())


def test_keys_are_of_names_bytes_and_settings(corpus, tmp_path):
    def key_of(folder: Path, *made_by) -> str:
        return key(corpus_digest(folder, lambda done, total: None), made_by)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in corpus.iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    assert key_of(tmp_path / "a", 1) == key_of(tmp_path / "b", 1) == key_of(corpus, 1)
    assert key_of(tmp_path / "a", 1) != key_of(tmp_path / "a", 2)
    (tmp_path / "a" / "de.txt").rename(tmp_path / "a" / "nl.txt")
    with (tmp_path / "b" / "de.txt").open("a") as file:
        file.write("x")
    assert len({key_of(tmp_path / "a", 1), key_of(tmp_path / "b", 1), key_of(corpus, 1)}) == 3


def test_with_tokenizer_finds_the_tokenizer_in_the_shards(corpus, tmp_path):
    made = with_shards(small_config(corpus), tmp_path)
    shards = replace(made.data, corpus=None, tokenizer=None)
    assert check_data(replace(made, data=with_tokenizer(shards))) == check_data(made)
    for path in Path(str(made.data.shards), "tokenizer").iterdir():
        path.unlink()
    Path(str(made.data.shards), "tokenizer").rmdir()
    with pytest.raises(UserError, match=r"holds no tokenizer; add data.tokenizer=DIR"):
        with_tokenizer(shards)


def test_check_data_refuses_the_tokenizer_of_other_shards(corpus, tmp_path):
    made = with_shards(small_config(corpus), tmp_path)
    other = with_shards(small_config(corpus, vocab_size=150), tmp_path)
    mixed = replace(made, data=replace(made.data, tokenizer=other.data.tokenizer))
    with pytest.raises(DataError, match="tokenizer"):
        check_data(mixed)
