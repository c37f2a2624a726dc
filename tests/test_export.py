"""Exported folders, held against transformers and sentencepiece."""

import json
import lzma
import shutil
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm import checkpoint
from mlm.errors import DataError, UserError
from mlm.hf import check
from mlm.hf import export as hf
from mlm.hf.charsmap import normalizer, rules
from mlm.hf.tokenizer import backend, write_tokenizer
from mlm.text.tokenizer import Tokenizer
from mlm.text.training import train
from mlm.trained import open_checkpoint, open_trained
from tests.export_fixtures import STEPS, exported, trained_run
from tests.text_fixtures import REAL, paragraphs, tokenizer

# fmt: off
LANGUAGES = [
    "ar", "bn", "de", "en", "fa", "fi", "he", "hi", "ja", "ko",
    "mr", "pl", "ru", "sw", "ta", "th", "tr", "vi", "yo", "zh-Hans",
]
# fmt: on
LINES = 200
UNUSUAL = [
    "",
    " ",
    "\u3000\u2028",
    "  two   blanks and a tab\there ",
    "👩🏽‍🚀 🇰🇪🇯🇵 ❤️‍🔥 ☃",
    "\x00\x01a\x07b\x1b[0m\x7f\x85\u200b\ufeff\ufffd",
    "▁ ▁▁a▁",
    "ọ̀rọ̀ e\u0323\u0301 e\u0301\u0323 a\u0323\u0302 o\u0331\u0301",
    "か\u3099 ﾊﾞ ᄀ\u1161\u11a8 각\u11a8 ㅎㅏ ㅋㅋㅋ",
    "র\u09c7\u09be \u0b95\u0bc6\u0bbe क\u093c क़ กำ",
    "شَدَّة ב\u05bc\u05b0 ﷺ ½ ﬁ ™ ¨ ª\u0301 ｆｕｌｌ ～",
    "word " * 5000,
    "x" * 3000,
]


@cache
def real_lines() -> dict[str, list[str]]:
    """The first paragraphs of each language."""
    found = {}
    for language in LANGUAGES:
        path = REAL / f"{language}.txt.xz"
        if not path.is_file():
            pytest.skip(f"{path} is not there: it comes with the project's shared data")
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = (line.rstrip("\n") for line in file)
            found[language] = list(islice((line for line in lines if line), LINES))
    return found


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory) -> Tokenizer:
    """A tokenizer of 5,000 ids for twenty languages."""
    folder = tmp_path_factory.mktemp("multilingual")
    (folder / "corpus").mkdir()
    for language, lines in real_lines().items():
        (folder / "corpus" / f"{language}.txt").write_text("\n".join(lines), encoding="utf-8")
    train(folder / "corpus", folder / "tokenizer", 5000)
    return Tokenizer.load(folder / "tokenizer")


@pytest.fixture(scope="module")
def in_transformers(multilingual, tmp_path_factory):
    """The same one, written as an export does and loaded by transformers."""
    folder = tmp_path_factory.mktemp("folder")
    write_tokenizer(multilingual, 512, folder)
    shutil.copy(exported() / "config.json", folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def padded_batch(config) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([20, 7, 1])
    ids = torch.randint(4, config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(torch.arange(20) >= lengths[:, None], config.pad_token_id), lengths


def test_transformers_gives_the_logits_of_the_run():
    model = AutoModelForMaskedLM.from_pretrained(exported(), local_files_only=True).eval()
    assert type(model).__name__ == "XLMRobertaXLForMaskedLM"
    assert model.dtype == torch.float32
    trained = open_checkpoint(trained_run())
    ids, lengths = padded_batch(model.config)
    real = torch.arange(20) < lengths[:, None]
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=real.long()).logits
    ours = trained.model().logits(ids, lengths)
    assert ours.std() > 0.1, "all logits alike would agree, too"
    assert (ours - theirs)[real].abs().max() <= 1e-4
    plain = check.plain_logits(exported(), ids, lengths)
    assert (plain - theirs)[real].abs().max() <= 1e-4
    again = open_trained(exported()).model().logits(ids, lengths)
    assert torch.equal(again, ours)


def test_weights_are_those_of_the_checkpoint_under_the_published_names():
    shapes, read = checkpoint.open_weights(checkpoint.newest(trained_run()))
    weights = {name: read(name) for name in shapes}
    with safe_open(exported() / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), weights[name]) for name in weights)
    _, report = AutoModelForMaskedLM.from_pretrained(
        exported(), local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_config_and_card_say_what_the_model_is():
    config = json.loads((exported() / "config.json").read_text())
    assert config["vocab_size"] == tokenizer().padded_size > tokenizer().size
    assert config["model_type"] == "xlm-roberta-xl"
    assert "output_dropout" not in config
    card = (exported() / "README.md").read_text()
    assert card.startswith('---\nlanguage:\n- "el"\n- "sw"\n')
    assert "| sw | 5.7500 | 5.1250 |" in card
    assert f"| Steps | {STEPS} of {STEPS} |" in card
    assert "| Tokens in all | 512 |" in card


def test_the_tokenizer_has_the_real_ids_and_no_padded_ones():
    theirs = AutoTokenizer.from_pretrained(exported(), local_files_only=True)
    assert len(theirs) == theirs.vocab_size == tokenizer().size
    assert theirs.mask_token_id == tokenizer().mask
    special = [theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id]
    assert special == [0, 1, 2, 3]
    assert (theirs.cls_token_id, theirs.sep_token_id) == (0, 2)
    assert theirs.model_max_length == 32
    assert theirs.get_vocab() == {
        piece: id for id, piece in enumerate(tokenizer().pieces(range(tokenizer().size)))
    }
    assert theirs.decode(theirs("kabu ab", add_special_tokens=False).input_ids) == "kabu ab"


@pytest.mark.parametrize("language", [*LANGUAGES, "unusual"])
def test_ids_equal_those_of_sentencepiece(language, multilingual, in_transformers):
    lines = UNUSUAL if language == "unusual" else real_lines()[language]
    assert language == "unusual" or len(lines) == LINES
    processor = sentencepiece.SentencePieceProcessor(model_file=str(multilingual.model_path))
    expected = [[3 if id == 0 else id + 1 for id in ids] for ids in processor.encode(lines)]
    assert [ids.tolist() for ids in multilingual.encode(lines)] == expected
    found = in_transformers(lines, add_special_tokens=False).input_ids
    assert found == expected
    assert in_transformers(lines).input_ids == [[0, *ids, 2] for ids in expected]
    pairs = in_transformers(lines, lines[::-1]).input_ids
    turned = zip(expected, expected[::-1], strict=True)
    assert pairs == [[0, *one, 2, 2, *two, 2] for one, two in turned]


def test_a_tie_is_no_reason_to_refuse_and_other_ids_are(multilingual):
    """Scores of models trained elsewhere are not rounded, and fp32 sums then decide ties."""
    theirs = backend(multilingual)
    lines = {str(number): line for number, line in enumerate(real_lines()["ko"])}
    check._check_ids(multilingual, theirs, lines)
    ids = multilingual.encode(["kabu"])[0].tolist()
    assert check._tie(multilingual, ids, ids)
    letters = multilingual.encode(["k", "abu"])
    assert not check._tie(multilingual, [*letters[0].tolist(), *letters[1].tolist()], ids)
    theirs.normalizer = tokenizers.normalizers.Strip()
    with pytest.raises(UserError, match=r"gives other ids than sentencepiece to a line of ti, 'ｋ"):
        check._check_ids(multilingual, theirs, {"ti": "ｋａｂｕ"})


@cache
def normalizers() -> tuple[sentencepiece.SentencePieceNormalizer, object, list[str]]:
    """Sentencepiece's own, ours, and the strings that its rules are about."""
    raw = tokenizer().model_path.read_bytes()
    charsmap = sentencepiece_model_pb2.ModelProto.FromString(raw).normalizer_spec
    found = rules(charsmap.precompiled_charsmap)
    theirs = sentencepiece.SentencePieceNormalizer(model_proto=raw)
    return theirs, normalizer(charsmap.precompiled_charsmap), sorted(found)


PARTS = st.one_of(
    st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]),
    st.sampled_from("aeoABω \u0323\u0300\u0302\u0331\u0345\u064e\u0651\u093cㅏᆨ각가\u200d🏽¨"),
    st.integers(0, 225_000).map(lambda place: normalizers()[2][place % len(normalizers()[2])]),
)


@given(st.lists(PARTS, max_size=12).map("".join))
@example("\u0341").via("a mark at the start")
@example("o\u0323\u0300").via("two marks, of which one composes")
@settings(max_examples=400, deadline=None)
def test_text_is_normalised_as_sentencepiece_does(text):
    theirs, ours, _ = normalizers()
    if max(text, default="") >= "\U000105c9":
        return  # scripts that came after the Unicode of the tokenizers library
    expected = theirs.normalize(text).replace("▁", " ").strip(" ")
    assert ours.normalize_str(text) == expected


def test_rules_are_read_from_the_model():
    _, _, sources = normalizers()
    assert len(sources) > 200_000
    assert {"ﬁ", "e\u0301", "ᄀ\u1161\u11a8", "\t"} <= set(sources)


def test_a_swapped_pair_of_tensors_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    write = hf.write_safetensors
    names = [
        "roberta.encoder.layer.0.attention.self.query.weight",
        "roberta.encoder.layer.0.attention.self.key.weight",
    ]
    other = dict(zip(names, names[::-1], strict=True))

    def swapping(path, shapes, read):
        write(path, shapes, lambda name: read(other.get(name, name)))

    monkeypatch.setattr(hf, "write_safetensors", swapping)
    with pytest.raises(UserError, match=r"differ from the checkpoint's by up to [0-9.]+"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_tokenizer_is_refused(tmp_path, monkeypatch):
    def shifted(trained):
        made = backend(trained)
        made.normalizer = tokenizers.normalizers.Lowercase()
        return made

    monkeypatch.setattr("mlm.hf.tokenizer.backend", shifted)
    with pytest.raises(UserError, match="gives other ids than sentencepiece"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_without_transformers_the_files_are_checked_and_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    step = checkpoint.newest(trained_run())
    hf.export(str(step), str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "read again: ids are equal on 31 lines" in said
    assert said.rstrip().endswith("transformers is not installed, so it was not asked.")
    for path in exported().iterdir():
        expected = path.read_text("utf-8", "ignore").replace("exported", "out")
        assert (tmp_path / "out" / path.name).read_text("utf-8", "ignore") == expected


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 40_000)
    hf.export(str(trained_run()), str(tmp_path / "out"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    whole = open_trained(exported())
    parts = open_trained(tmp_path / "out")
    assert index["metadata"]["total_size"] == 4 * whole.config.parameters()
    assert all(torch.equal(parts.read(name), whole.read(name)) for name in whole.shapes)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", local_files_only=True)
    weight = model.roberta.embeddings.word_embeddings.weight
    assert torch.equal(weight, whole.read("roberta.embeddings.word_embeddings.weight"))


def test_what_is_there_is_not_written_over(tmp_path):
    with pytest.raises(UserError, match="exists, and nothing is written over; choose another"):
        hf.export(str(trained_run()), str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out cannot be written: .*; free some space"):
        hf.export(str(trained_run()), str(tmp_path / "file" / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path, shapes, read):
        path.write_bytes(b"the beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "write_safetensors", full)
    with pytest.raises(UserError, match="out cannot be written: No space left on device; free"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(UserError, match="missing is not a folder; give a run folder"):
        open_checkpoint(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no whole checkpoint; give a run folder that has"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="is a Hugging Face folder already"):
        open_checkpoint(exported())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="a model of the type bert, and this command reads xlm"):
        open_trained(tmp_path)


def copied_run(tmp_path: Path, change) -> Path:
    """A copy of the run whose settings, in the manifest of its checkpoint, are changed."""
    run = tmp_path / "run"
    shutil.copytree(trained_run(), run)
    path = checkpoint.newest(run) / checkpoint.MANIFEST
    values = json.loads(path.read_text())
    change(values["config"])
    path.write_text(json.dumps(values))
    return run


def test_the_tokenizer_is_taken_from_where_it_still_is(tmp_path):
    shards = tmp_path / "shards"
    run = copied_run(
        tmp_path, lambda config: config["data"].update(tokenizer="gone", shards=str(shards))
    )
    with pytest.raises(DataError, match=r"the tokenizer of .*run is in none of gone, .*shards"):
        open_checkpoint(run)
    shutil.copytree(tokenizer().model_path.parent, shards / "tokenizer")
    assert open_checkpoint(run).tokenizer.model_path.is_relative_to(shards)
    other = tmp_path / "corpus"
    other.mkdir()
    (other / "en.txt").write_text("\n".join(paragraphs("en", 100)))
    shutil.rmtree(shards / "tokenizer")
    train(other, shards / "tokenizer", 100)
    with pytest.raises(DataError, match=r"is not the tokenizer that .*run was trained with"):
        open_checkpoint(run)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run = copied_run(tmp_path, lambda config: None)
    part = next(iter(checkpoint.newest(run).glob("*.distcp")))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(DataError, match=r"distcp is damaged"):
        hf.export(str(run), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path):
    run = copied_run(tmp_path, lambda config: config["model"].update(intermediate_size=128))
    with pytest.raises(DataError, match=r"intermediate\.dense|output\.dense"):
        open_checkpoint(run)
