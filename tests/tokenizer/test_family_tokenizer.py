"""The tokenizer of the family, compared with transformers' and sentencepiece's own.

It is compared with two of transformers': the class as it is, where that gives sentencepiece's ids,
and the class with sentencepiece's normalisation, which always does (unless scores tie).
"""

import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer as TheirAuto
from transformers import DataCollatorWithPadding
from transformers import XLMRobertaTokenizer as Theirs

from mlm.trained.auto_tokenizer import AutoTokenizer
from tests.tokenizer.tokenizer_fixtures import (
    LIMIT,
    UNUSUAL,
    folder,
    ours,
    real_lines,
    sample_lines,
    theirs,
    theirs_exact,
)

# fmt: off
LANGUAGES = [
    "am", "ar", "bn", "de", "el", "en", "fa", "fi", "he", "hi", "ja", "ka", "km", "ko",
    "mr", "my", "pl", "ru", "sw", "ta", "th", "tr", "ur", "vi", "yo", "zh-Hans", "zh-Hant",
]
# fmt: on
ALL: dict[str, Any] = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_length": True,
}


def assert_equal(found, expected) -> None:
    """Every field and every place of a batch."""
    assert list(found.keys()) == list(expected.keys())
    for name, values in expected.items():
        if torch.is_tensor(values):
            assert found[name].dtype == values.dtype
            assert torch.equal(found[name], values), name
        else:
            assert found[name] == values, name
    assert len(found.encodings) == len(expected.encodings)
    for row in range(len(expected.encodings)):
        assert found.word_ids(row) == expected.word_ids(row)
        assert found.sequence_ids(row) == expected.sequence_ids(row)
        names = [token.replace(" <mask>", "<mask>") for token in expected.tokens(row)]
        assert [token.lstrip(" \t") for token in found.tokens(row)] == [
            token.lstrip(" \t") for token in names
        ]


def texts(seed: int = 0, count: int = 60) -> list[str]:
    """Sample lines with a few unusual ones among them."""
    lines = [*sample_lines(), *UNUSUAL]
    return random.Random(seed).sample(lines, count)


@pytest.mark.parametrize("language", [*LANGUAGES, "sample", "unusual"])
def test_tokenizer_gives_ids_of_sentencepiece_and_offsets_of_transformers(language):
    lines = {"unusual": UNUSUAL, "sample": sample_lines()}.get(language) or real_lines(language)
    found = ours()(lines, **ALL)
    assert_equal(found, theirs_exact()(lines, **ALL))
    plain = [line for line in lines if "<" not in line]
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(folder() / "sentencepiece.bpe.model")
    )
    expected = [[3 if id == 0 else id + 1 for id in ids] for ids in processor.encode(plain)]
    assert ours()(plain, add_special_tokens=False).input_ids == expected
    assert ours()(plain).input_ids == [[0, *ids, 2] for ids in expected]
    as_it_is = theirs()(lines, **ALL)
    same = [row for row, ids in enumerate(as_it_is.input_ids) if ids == found.input_ids[row]]
    assert len(same) >= (0.3 if language in ("yo", "unusual") else 0.8) * len(lines)
    for row in same:
        assert found.offset_mapping[row] == as_it_is.offset_mapping[row]
        assert found.word_ids(row) == as_it_is.word_ids(row)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest", "pad_to_multiple_of": 8, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 40},
        {"padding": "max_length", "max_length": 24, "truncation": True, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 24, "pad_to_multiple_of": 16},
        {"padding": True, "add_special_tokens": False},
        {"padding": True, "truncation": True, "max_length": 16, "pad_to_multiple_of": 8},
    ],
    ids=str,
)
def test_padding_equals_that_of_transformers_on_both_sides(side, options):
    lines: Any
    for lines in ([texts()], [texts(1), texts(2)], [texts()[3]], [texts()[0], texts()[1]]):
        found = ours()(*lines, padding_side=side, **options, **ALL)
        assert_equal(found, theirs_exact()(*lines, padding_side=side, **options, **ALL))


@pytest.mark.parametrize("cut_side", ["left", "right"])
@pytest.mark.parametrize("strategy", [True, "longest_first", "only_first", "only_second", None])
@pytest.mark.parametrize("stride", [0, 3])
@pytest.mark.parametrize("overflow", [False, True])
def test_truncation_equals_that_of_transformers(cut_side, strategy, stride, overflow):
    mine, other = AutoTokenizer.from_pretrained(folder(), truncation_side=cut_side), theirs_exact()
    first, second = sample_lines()[:40], sample_lines()[60:100]
    options: dict[str, Any] = {
        "max_length": 21,
        "stride": stride,
        "return_overflowing_tokens": overflow,
        **ALL,
    }
    calls: list[list[Any]] = [[first]] if strategy != "only_second" else []
    if strategy in ("only_first", "only_second"):
        short = [" ".join(line.split()[:2])[:9] for line in second]
        calls.append([first, short] if strategy == "only_first" else [short, first])
    else:
        calls += [[first, second], [second, first[::-1]], [first[0], second[0]]]
    other.truncation_side = cut_side
    try:
        for given in calls:
            for special in (True, False):
                options |= {"truncation": strategy, "add_special_tokens": special}
                idle = stride and not overflow
                with pytest.warns(UserWarning, match="stride=3") if idle else nullcontext():
                    found = mine(*given, **options)
                assert max(map(len, _rows(found))) <= 21
                assert_equal(found, other(*given, **options))
    finally:
        other.truncation_side = "right"


def _rows(batch) -> list:
    return batch.input_ids if isinstance(batch.input_ids[0], list) else [batch.input_ids]


@pytest.mark.parametrize("pair", [False, True])
def test_words_are_encoded_as_by_transformers(pair):
    lines = [line.split() for line in texts(3) if line.split()]
    lines[0] = ["New York", " blank before", "", "<mask>", "x<mask> y", "  ", *lines[0]]
    given: list[Any] = [lines, lines[::-1]] if pair else [lines]
    options: dict[str, Any] = {
        "is_split_into_words": True,
        "truncation": True,
        "max_length": 30,
        "padding": True,
    }
    more: dict[str, Any]
    for more in ({}, {"return_overflowing_tokens": True, "stride": 2}):
        found = ours()(*given, **options, **more, **ALL)
        assert_equal(found, theirs_exact()(*given, **options, **more, **ALL))
    one = [each[0] for each in given]
    assert_equal(
        ours()(*one, is_split_into_words=True), theirs_exact()(*one, is_split_into_words=True)
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_encoding_finds_characters_tokens_and_words_from_each_other(side):
    options: dict[str, Any] = {
        "padding": True,
        "truncation": True,
        "max_length": 40,
        "padding_side": side,
    }
    first, second = sample_lines()[:30], sample_lines()[50:80]
    mine, other = (each(first, second, **options) for each in (ours(), theirs_exact()))
    for row in range(len(first)):
        for sequence, text in enumerate((first[row], second[row])):
            for place in range(len(text) + 1):
                given = {"batch_or_char_index": row, "char_index": place}
                for name in ("char_to_token", "char_to_word"):
                    expected = getattr(other, name)(**given, sequence_index=sequence)
                    assert getattr(mine, name)(**given, sequence_index=sequence) == expected
            for word in range(len(text.split())):
                expected = other.word_to_tokens(row, word, sequence_index=sequence)
                assert mine.word_to_tokens(row, word, sequence_index=sequence) == expected
                if expected is not None:
                    expected = other.word_to_chars(row, word, sequence_index=sequence)
                    assert mine.word_to_chars(row, word, sequence_index=sequence) == expected
        for token in range(len(mine.input_ids[row])):
            assert mine.token_to_chars(row, token) == other.token_to_chars(row, token)
            if mine.token_to_chars(row, token) is not None:
                assert mine.token_to_word(row, token) == other.token_to_word(row, token)
                assert mine.token_to_sequence(row, token) == other.token_to_sequence(row, token)
    assert ours()("kabu ab").char_to_token(0) == 1
    assert mine.n_sequences == 2


def test_decode_equals_that_of_transformers():
    batch = ours()([*sample_lines(), *UNUSUAL], padding=True)
    rows = batch.input_ids
    for skip in (False, True):
        for clean in (None, True):
            options: dict[str, Any] = {
                "skip_special_tokens": skip,
                "clean_up_tokenization_spaces": clean,
            }
            expected = theirs().batch_decode(rows, **options)
            assert ours().batch_decode(rows, **options) == expected
            assert ours().decode(torch.tensor(rows), **options) == expected
            assert ours().decode(np.array(rows[0]), **options) == expected[0]
    assert ours().decode(len(ours()) + 5) == theirs().decode(len(ours()) + 5) == ""
    assert ours().decode([]) == ""
    assert ours().decode([4, 4, 5]) == theirs().decode([4, 4, 5])
    assert ours().decode(ours()("so it is").input_ids, True) == "so it is"


def test_vocabulary_and_special_tokens_equal_those_of_transformers():
    mine, other = ours(), theirs()
    assert len(mine) == mine.vocab_size == len(other) == other.vocab_size == 4000
    assert mine.get_vocab() == other.get_vocab()
    assert mine.all_special_tokens == other.all_special_tokens
    assert mine.all_special_ids == other.all_special_ids
    assert mine.special_tokens_map == other.special_tokens_map
    for role in ("bos", "eos", "sep", "cls", "unk", "pad", "mask"):
        for name in (f"{role}_token", f"{role}_token_id"):
            assert getattr(mine, name) == getattr(other, name)
    for name in ("model_max_length", "padding_side", "truncation_side", "pad_token_type_id"):
        assert getattr(mine, name) == getattr(other, name)
    assert mine.model_input_names == other.model_input_names
    assert mine.max_len_single_sentence == other.max_len_single_sentence == LIMIT - 2
    for pair in (False, True):
        assert mine.num_special_tokens_to_add(pair) == other.num_special_tokens_to_add(pair)
    some = ["<s>", "▁", "<mask>", "no such piece", *list(mine.get_vocab())[1000:1010]]
    assert mine.convert_tokens_to_ids(some) == other.convert_tokens_to_ids(some)
    assert mine.convert_tokens_to_ids("▁") == other.convert_tokens_to_ids("▁")
    ids = [0, 3, 17, 3999, 5000]
    for skip in (False, True):
        assert mine.convert_ids_to_tokens(ids, skip) == other.convert_ids_to_tokens(ids, skip)
    assert mine.convert_ids_to_tokens(7) == other.convert_ids_to_tokens(7)
    line = "so it is ☃ there"
    assert mine.tokenize(line) == other.tokenize(line)
    assert mine.tokenize(line, line, True) == other.tokenize(line, line, True)
    assert mine.encode(line, line, max_length=9) == other.encode(line, line, max_length=9)
    row = mine.encode(line, line)
    expected = other.get_special_tokens_mask(row, already_has_special_tokens=True)
    assert mine.get_special_tokens_mask(row, already_has_special_tokens=True) == expected


def test_token_type_ids_are_zero():
    """Transformers counts pairs in the rows of what was cut off, and only there."""
    options: dict[str, Any] = {
        "max_length": 12,
        "return_token_type_ids": True,
        "return_overflowing_tokens": True,
    }
    batch = ours()(sample_lines()[:5], sample_lines()[5:10], truncation=True, **options)
    assert len(batch.token_type_ids) > 10
    assert not any(map(any, batch.token_type_ids))
    expected = theirs()(["a"], ["b"], return_token_type_ids=True).token_type_ids
    assert ours()(["a"], ["b"], return_token_type_ids=True).token_type_ids == expected


def test_pad_collates_samples_as_transformers_does():
    lines = sample_lines()[:9]
    samples = [dict(ours()(line), labels=place) for place, line in enumerate(lines)]
    options: dict[str, Any]
    for options in (
        {"return_tensors": "pt"},
        {"padding_side": "left"},
        {"padding": "max_length", "max_length": 300, "return_tensors": "np"},
        {"pad_to_multiple_of": 16},
    ):
        found, expected = ours().pad(samples, **options), theirs().pad(samples, **options)
        assert found.keys() == expected.keys()
        for name in expected:
            assert np.array_equal(found[name], expected[name]), name
    bare = [{"input_ids": torch.tensor(each["input_ids"])} for each in samples]
    found = ours().pad(bare)
    assert torch.equal(
        found.attention_mask, ours()(lines, padding=True, return_tensors="pt")["attention_mask"]
    )
    assert ours().pad({"input_ids": [0, 5, 2]}, padding="max_length", max_length=5) == {
        "input_ids": [0, 5, 2, 1, 1],
        "attention_mask": [1, 1, 1, 0, 0],
    }
    tokenizer: Any = ours()  # has the methods that the collator calls
    collated = DataCollatorWithPadding(tokenizer)(samples)
    assert collated["labels"].tolist() == list(range(9))


def test_save_pretrained_writes_what_both_libraries_read(tmp_path):
    mine = AutoTokenizer.from_pretrained(folder(), padding_side="left", model_max_length=64)
    files = mine.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer_config.json").is_file()
    assert len(files) == 4
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    again.save_pretrained(tmp_path / "saved")  # onto itself
    other = Theirs.from_pretrained(tmp_path / "saved", local_files_only=True)
    for each in (again, other):
        assert (each.padding_side, each.model_max_length) == ("left", 64)
    lines = sample_lines()
    options: dict[str, Any] = {"padding": True, "truncation": True}
    assert again(lines, **options) == mine(lines, **options)
    assert dict(other(lines, **options)) == dict(mine(lines, **options))
    for kind in (Theirs, TheirAuto):  # transformers 5 saves no sentencepiece model
        kept = tmp_path / kind.__name__
        kind.from_pretrained(folder(), local_files_only=True).save_pretrained(kept)
        assert not (kept / "sentencepiece.bpe.model").exists()
        read = AutoTokenizer.from_pretrained(kept)
        assert read(lines).input_ids == ours()(lines).input_ids
        assert read.model_max_length == LIMIT
        read.save_pretrained(tmp_path / "whole")
        assert AutoTokenizer.from_pretrained(tmp_path / "whole")(lines) == ours()(lines)
