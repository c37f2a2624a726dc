"""Laws of the tokenizer's rows, and what it refuses."""

import json
import pickle
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm.errors import DataError, UserError
from mlm.tokenizer.family.tokenizer import XLMRobertaTokenizer
from mlm.tokenizer.ids import MODEL_FILE
from mlm.trained.auto_tokenizer import AutoTokenizer
from tests.exported_run import trained_run
from tests.places import ROOT
from tests.text_fixtures import tokenizer
from tests.tokenizer.tokenizer_fixtures import LIMIT, folder, ours, sample_lines

CHARACTERS = "aeot ABωж漢字한ก क्षأ ½ﬁ\u0301\u0323\u200b\u3000☃😀\n<>"
TEXTS = st.one_of(
    st.text(st.sampled_from(CHARACTERS), max_size=30),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.lists(st.sampled_from(["<mask>", "</s>", "<s>", " ", "so", "it is", "漢"]), max_size=6).map(
        "".join
    ),
    st.integers(0, 123).map(lambda place: sample_lines()[place][:60]),
)
SIDES = st.sampled_from(["left", "right"])
lawful = settings(max_examples=150, deadline=None)


@given(TEXTS)
@lawful
def test_offsets_lie_in_the_text_and_rise(text):
    batch = ours()(text, return_offsets_mapping=True, add_special_tokens=False)
    spans, words = batch.offset_mapping, [word for word in batch.word_ids() if word is not None]
    assert len(words) == len(spans)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert spans == sorted(spans)
    assert [end for _, end in spans] == sorted(end for _, end in spans)
    assert words == sorted(words)
    assert set(words) == set(range(words[-1] + 1 if words else 0))
    for token, (start, _) in enumerate(spans):
        first = batch.char_to_token(start)
        assert first is not None
        assert first <= token


@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(2, 12), st.integers(0, 9), SIDES)
@lawful
def test_windows_keep_to_max_length_and_cover_the_text(texts, room, stride, side):
    made = AutoTokenizer.from_pretrained(folder(), truncation_side=side)
    options: dict[str, Any] = {
        "max_length": room + 2,
        "truncation": True,
        "return_overflowing_tokens": True,
    }
    whole = ours()(texts).input_ids
    if stride >= room and any(len(ids) > room + 2 for ids in whole):
        with pytest.raises(ValueError, match=f"stride={stride} is not below the {room} tokens"):
            made(texts, stride=stride, **options)
        return
    stride = min(stride, room - 1)
    batch = made(texts, stride=stride, **options)
    assert max(map(len, batch.input_ids)) <= room + 2
    for sample, expected in enumerate(whole):
        rows = zip(batch.input_ids, batch.overflow_to_sample_mapping, strict=True)
        windows = [ids[1:-1] for ids, of in rows if of == sample]
        joined = windows.pop(0)
        for window in windows:
            joined = (
                joined + window[stride:] if side == "right" else window[: -stride or None] + joined
            )
        assert joined == expected[1:-1]


@given(TEXTS, TEXTS, st.integers(2, 12), SIDES)
@lawful
def test_windows_on_pairs_cover_both_texts(first, second, room, side):
    made = AutoTokenizer.from_pretrained(folder(), truncation_side=side)
    batch = made(
        first,
        second,
        max_length=room + 4,
        truncation=True,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert max(map(len, batch.input_ids)) <= room + 4
    whole = ours()(first, second, return_offsets_mapping=True)
    covered = set()
    for row, spans in enumerate(batch.offset_mapping):
        covered |= set(zip(batch.sequence_ids(row), spans, strict=True))
    assert covered == set(zip(whole.sequence_ids(), whole.offset_mapping, strict=True))


@given(st.lists(TEXTS, min_size=1, max_size=5), SIDES, st.sampled_from([None, 4]))
@lawful
def test_pads_only_lengthen_rows(texts, side, multiple):
    plain = ours()(texts)
    samples = [dict(ours()(text)) for text in texts]
    options: dict[str, Any] = {
        "padding_side": side,
        "pad_to_multiple_of": multiple,
        "return_tensors": "np",
    }
    for padded in (ours()(texts, padding=True, **options), ours().pad(samples, **options)):
        assert padded.input_ids.shape[1] % (multiple or 1) == 0
        for row, ids in enumerate(plain.input_ids):
            real = padded.attention_mask[row] == 1
            assert padded.input_ids[row][real].tolist() == ids
            assert (padded.input_ids[row][~real] == 1).all()
            assert real[0 if side == "right" else -1]


@given(st.lists(TEXTS, max_size=5))
@lawful
def test_batch_equals_its_texts_encoded_one_by_one(texts):
    batch = ours()(texts, return_offsets_mapping=True)
    ones = [ours()(text, return_offsets_mapping=True) for text in texts]
    for name in ("input_ids", "attention_mask", "offset_mapping"):
        assert batch[name] == [one[name] for one in ones]
    assert [batch.word_ids(row) for row in range(len(texts))] == [one.word_ids() for one in ones]
    assert [batch.tokens(row) for row in range(len(texts))] == [one.tokens() for one in ones]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((None,), {}, "no text was given"),
        ((7,), {}, "7 is a int and not a text"),
        ((["a", None],), {}, "None is a NoneType and not a text"),
        (("a\ud800",), {}, r"holds '\\ud800', which is no character"),
        ((["a\ud800"] * 20,), {}, r"holds '\\ud800', which is no character"),
        ((["a"], "b"), {}, "text is a list and text_pair is one text"),
        (("a", ["b"]), {}, "text_pair is a list and text is one text"),
        ((["a", "b"], ["c"]), {}, "text has 2 texts and text_pair 1; give as many"),
        (([("a", "b"), "c"],), {}, "some texts of the list are pairs and others not"),
        (("a b",), {"is_split_into_words": True}, "'a b' is not a list of words"),
        (("a",), {"padding": "longer"}, "padding='longer' is unsupported; choose True, False"),
        (("a",), {"truncation": "first"}, "truncation='first' is unsupported"),
        (("a",), {"padding": True, "padding_side": "top"}, "padding_side='top' is unsupported"),
        (("a",), {"return_tensors": "tf"}, "return_tensors='tf' is unsupported; choose 'pt'"),
        (("a",), {"max_length": 0}, "max_length=0 is not a number of tokens; give 1 or more"),
        (("a b c",), {"max_length": 1}, "leaves no room beside 2 special tokens; give at least 2"),
        (("a b c",), {"max_length": 9.5}, "max_length=9.5 is not a number of tokens"),
        (("a",), {"stride": -1, "truncation": True}, "stride=-1 is not a number of tokens"),
        (("a " * 9,), {"max_length": 5, "truncation": "only_second"}, "needs a text_pair"),
        (("a", "b " * 9), {"max_length": 9, "truncation": "only_first"}, "cannot cut 1. tokens"),
        ((["a", "a b c"],), {"return_tensors": "pt"}, "input_ids cannot be one tensor"),
        (
            ("a",),
            {"padding": True, "truncation": True, "max_length": 9, "pad_to_multiple_of": 8},
            "rows cut to max_length=9 cannot be padded to pad_to_multiple_of=8",
        ),
        (("a",), {"text_target": "b"}, "text_target='b' is unsupported; omit it"),
        (("a",), {"split_special_tokens": True}, "split_special_tokens=True is unsupported"),
    ],
)
def test_unsupported_arguments_are_refused(given, options, message):
    with pytest.raises(ValueError, match=message):
        ours()(*given, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 9, "padding": True}, "max_length=9 has no effect without truncation"),
        ({"max_length": 9, "truncation": False}, "max_length=9 has no effect without truncation"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8 has no effect without padding=True"),
        ({"stride": 2, "truncation": True}, "stride=2 has no effect without truncation=True and"),
    ],
)
def test_options_without_effect_are_warned_of(options, message):
    with pytest.warns(UserWarning, match=message):
        ours()("a b c", **options)


def test_batch_encoding_can_be_moved_copied_and_pickled():
    batch = ours()(["a b", "漢"], padding=True, return_tensors="pt", return_offsets_mapping=True)
    assert batch.to("cpu") is batch
    assert batch.input_ids.dtype == batch["attention_mask"].dtype == torch.int64
    assert batch.offset_mapping.shape == (*batch.input_ids.shape, 2)
    assert set(dict(**batch)) == {"input_ids", "attention_mask", "offset_mapping"}
    with pytest.raises(AttributeError, match="labels"):
        batch.labels  # noqa: B018
    sent = pickle.loads(pickle.dumps(batch))
    assert torch.equal(sent.input_ids, batch.input_ids)
    with pytest.raises(ValueError, match="no longer knows its texts"):
        sent.word_ids()
    assert ours()([], padding=True) == {"input_ids": [], "attention_mask": []}
    again = pickle.loads(pickle.dumps(ours()))
    assert again("a <mask>") == ours()("a <mask>")
    lists = ours()(["a b"])
    lists.input_ids[0].append(7)
    assert len(lists.word_ids(0)) == len(ours()("a b").input_ids)
    arrays = ours()("a b", return_tensors="np")
    assert arrays.input_ids.dtype == np.int64


def test_invalid_ids_and_samples_are_refused():
    for ids in ([-100], "a", [1.5], None, [[0], [-1]]):
        with pytest.raises(ValueError, match="are not ids; give numbers from 0"):
            ours().decode(ids)
    with pytest.raises(ValueError, match="input_ids are not among labels"):
        ours().pad([{"labels": [1]}])
    with pytest.raises(ValueError, match="labels is not in every sample"):
        ours().pad([{"input_ids": [1], "labels": 1}, {"input_ids": [1]}])


def test_auto_tokenizer_reads_folders_of_files_and_of_runs(tmp_path):
    bare = AutoTokenizer.from_pretrained(tokenizer().model_path.parent)
    assert isinstance(bare, XLMRobertaTokenizer)
    assert bare.model_max_length == 10**30
    with pytest.raises(ValueError, match="names no model_max_length; give max_length"):
        bare("a b c", truncation=True)
    shutil.copy(folder() / MODEL_FILE, tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 130, "pad_token_id": 1}')
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 128
    assert AutoTokenizer.from_pretrained(str(tmp_path), model_max_length=9).model_max_length == 9
    run = AutoTokenizer.from_pretrained(trained_run())
    assert run.get_vocab() == bare.get_vocab()
    assert 0 < run.model_max_length < LIMIT


def test_from_pretrained_refuses_a_folder_that_would_give_other_ids(tmp_path):
    def refused(message: str, **changes: object) -> None:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(folder(), tmp_path / "copy")
        path = tmp_path / "copy" / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(ValueError, match=message):
            AutoTokenizer.from_pretrained(tmp_path / "copy")

    refused(r"tokenizer_config\.json has pad_token='<p>', which would change", pad_token="<p>")
    refused("has extra_special_tokens=", extra_special_tokens=["<e>"])
    refused("has do_lower_case=True", do_lower_case=True)
    refused("padding_side='top' is unsupported", padding_side="top")
    added = {"4000": {"content": "<new>"}}
    refused("tokens that were added, such as '<new>'", added_tokens_decoder=added)
    path = tmp_path / "copy" / "tokenizer.json"
    shutil.copy(folder() / "tokenizer_config.json", path.parent)
    path.write_text(path.read_text().replace('"content":"<mask>"', '"content":"<new>"'))
    with pytest.raises(DataError, match="tokens that were added, such as '<new>'"):
        AutoTokenizer.from_pretrained(path.parent)
    shutil.copy(folder() / "tokenizer.json", path)
    (path.parent / MODEL_FILE).write_bytes(b"not a model")
    with pytest.raises(DataError, match="is not a sentencepiece model"):
        AutoTokenizer.from_pretrained(path.parent)
    (path.parent / MODEL_FILE).unlink()
    values = json.loads(path.read_text())
    values["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=r"tokenizer\.json holds no tokenizer like XLM-R's .it norm"
    ):
        AutoTokenizer.from_pretrained(path.parent)
    path.rename(path.with_name("config.json"))  # a folder of a model, without a tokenizer
    with pytest.raises(DataError, match=r"has no sentencepiece\.bpe\.model and no tokenizer\.json"):
        AutoTokenizer.from_pretrained(path.parent)
    with pytest.raises(UserError, match="is not a folder here, and nothing is downloaded"):
        AutoTokenizer.from_pretrained("facebook/xlm-roberta-xl")
    with pytest.raises(ValueError, match="do_lower_case=True is unsupported; choose from clean_up"):
        AutoTokenizer.from_pretrained(folder(), do_lower_case=True)


def test_auto_tokenizer_imports_no_transformers_or_torch():
    program = (
        "import sys; from mlm import AutoTokenizer;"
        f"made = AutoTokenizer.from_pretrained({str(folder())!r});"
        "made(['a <mask>', 'b'], padding=True, return_offsets_mapping=True, return_tensors='np');"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    root = ROOT
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
