import hashlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm.errors import DataError, UserError
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.training import (
    LONGEST_WORD,
    MAX_LINE,
    _unigram,
    shares,
    split_paragraph,
    train,
)
from tests.places import ROOT
from tests.text_fixtures import LANGUAGES, corpus, paragraphs, tokenizer, write_corpus

LINES = [paragraphs(language, 3)[0] for language in LANGUAGES] + ["", "漢字 and ☃", " two  spaces "]


def test_encode_gives_the_ids_of_sentencepiece_plus_one():
    ours = tokenizer()
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(ours.model_path))
    for line, ids in zip(LINES, ours.encode(LINES), strict=True):
        assert ids.dtype == np.int32
        expected = theirs.encode(line)
        assert ids.tolist() == [3 if id == 0 else id + 1 for id in expected]
    assert 3 in ours.encode(["漢字 and ☃"])[0]


def test_encode_gives_the_same_ids_line_by_line_and_in_threads():
    lines = [line for language in LANGUAGES for line in paragraphs(language, 40)] + LINES
    expected = [tokenizer().encode([line])[0] for line in lines]
    for threads in (1, 2):
        found = tokenizer().encode(lines, threads)
        assert len(found) == len(expected)
        assert all(map(np.array_equal, found, expected))


def test_vocab_size_counts_every_id():
    ours = tokenizer()
    assert (ours.bos, ours.pad, ours.eos, ours.unk) == (0, 1, 2, 3)
    assert ours.size == 400
    assert ours.mask == 399
    assert ours.padded_size == 512
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(ours.model_path))
    assert theirs.get_piece_size() == 398
    assert ours.pieces([4, 398]) == [theirs.id_to_piece(3), theirs.id_to_piece(397)]
    assert ours.hash == hashlib.sha256(ours.model_path.read_bytes()).hexdigest()
    with pytest.raises(IndexError):
        ours.pieces([400])


def test_decode_restores_text_and_skips_special_ids():
    ours = tokenizer()
    for language in LANGUAGES:
        line = paragraphs(language, 3)[0]
        assert ours.decode(ours.encode([line])[0]) == line
    assert ours.pieces([0, 1, 2, 3, 399]) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    ids = ours.encode(["ab ab"])[0].tolist()
    assert ours.decode([0, *ids, 2, 1, 1]) == "ab ab"
    assert "<mask>" in ours.decode([0, *ids, 399])


def test_encode_normalises_by_nmt_nfkc():
    full, plain = tokenizer().encode(["ｋａｂｕ　１２", "kabu 12"])
    assert full.tolist() == plain.tolist()


def test_train_is_reproducible_on_any_number_of_cores(tmp_path):
    one = min(os.sched_getaffinity(0))
    program = (
        f"import os, pathlib; os.sched_setaffinity(0, [{one}])\n"
        f"from mlm.tokenizer.training import train\n"
        f"train(pathlib.Path({str(corpus())!r}), pathlib.Path({str(tmp_path / 'again')!r}), 400)"
    )
    root = ROOT
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
    for file in ("sentencepiece.bpe.model", "training.json"):
        first = tokenizer().model_path.with_name(file).read_bytes()
        assert (tmp_path / "again" / file).read_bytes() == first


def test_train_samples_by_alpha_and_seed_up_to_sample_bytes(tmp_path):
    for seed in (1, 2):
        train(corpus(), tmp_path / str(seed), 200, alpha=0.3, sample_bytes=20000, seed=seed)
    made = json.loads((tmp_path / "1" / "training.json").read_text())
    sizes = {name: row["bytes"] for name, row in made["languages"].items()}
    quotas = shares(sizes, 0.3, 20000)
    for name, row in made["languages"].items():
        # Of the last document only a part is taken, less what would be part of a word.
        expected = min(row["bytes"], quotas[name])
        assert expected - 4 * LONGEST_WORD < row["sampled"] <= expected
    assert sizes["en"] > 5 * sizes["el"]
    assert made["languages"]["en"]["sampled"] < 2 * made["languages"]["el"]["sampled"]
    models = [(tmp_path / str(seed) / "sentencepiece.bpe.model").read_bytes() for seed in (1, 2)]
    assert models[0] != models[1]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_train_takes_part_of_a_document_larger_than_the_share(tmp_path, language):
    """One paragraph, and a document of many, a hundred times as large as the sample."""
    line = " ".join(paragraphs(language, 40)) if language == "en" else "".join(paragraphs("ja", 40))
    for name, text in (("one", line * 100), ("many", "\n".join([line] * 100))):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{language}.txt").write_text(text)
        train(tmp_path / name, tmp_path / f"{name}-out", 60, sample_bytes=len(line.encode()))
        made = json.loads((tmp_path / f"{name}-out" / "training.json").read_text())
        taken = made["languages"][language]["sampled"]
        assert len(line.encode()) - 4 * LONGEST_WORD < taken <= len(line.encode())


def test_train_takes_a_language_below_its_share_whole(tmp_path):
    write_corpus(tmp_path / "corpus")
    (tmp_path / "corpus" / "el.txt").write_text("αβγ δε\nζη\n\nθικ\n")
    train(tmp_path / "corpus", tmp_path / "out", 200, alpha=0.0)
    row = json.loads((tmp_path / "out" / "training.json").read_text())["languages"]["el"]
    assert row["sampled"] == row["bytes"] == len("αβγ δεζηθικ".encode())


@given(
    st.dictionaries(st.text("abc", min_size=1), st.integers(1, 10**12), min_size=2),
    st.floats(0, 1),
)
def test_shares_rise_more_slowly_than_sizes(sizes, alpha):
    found = shares(sizes, alpha, 10**9)
    assert sum(found.values()) <= 10**9
    for (a, size_a), (b, size_b) in zip(sizes.items(), list(sizes.items())[1:], strict=False):
        if size_a <= size_b:
            assert found[a] <= found[b] <= (found[a] + 1) * (size_b / size_a) + 1


@given(st.text(st.sampled_from("ab語 "), max_size=5 * MAX_LINE))
@settings(max_examples=50, deadline=None)
def test_split_paragraph_cuts_long_lines_between_words_and_keeps_their_text(text):
    text = text.strip()
    parts = list(split_paragraph(text))
    assert all(0 < len(part.encode()) <= 4192 for part in parts)
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert len(parts) <= 1 or len(text) > MAX_LINE


def test_train_keeps_long_lines(tmp_path):
    (tmp_path / "corpus").mkdir()
    words = " ".join(paragraphs("sw", 400))
    assert len(words) > 20000
    (tmp_path / "corpus" / "sw.txt").write_text(words)
    train(tmp_path / "corpus", tmp_path / "out", 100)
    assert Tokenizer.load(tmp_path / "out").size == 100


def test_train_names_the_largest_possible_vocabulary(tmp_path):
    with pytest.raises(DataError, match="vocab_size=90000 is more than this text") as caught:
        train(corpus(), tmp_path / "out", 90000)
    most = int(re.findall(r"choose (\d+) or fewer", str(caught.value))[0])
    with pytest.raises(DataError, match=f"choose {most} or fewer"):
        train(corpus(), tmp_path / "out", most + 1)
    assert list(tmp_path.iterdir()) == []
    train(corpus(), tmp_path / "out", most)
    assert Tokenizer.load(tmp_path / "out").size == most


def test_train_names_the_smallest_possible_vocabulary(tmp_path):
    with pytest.raises(DataError, match="too small for the characters") as caught:
        train(corpus(), tmp_path / "out", 30, character_coverage=1.0)
    least = int(re.findall(r"choose (\d+) or more", str(caught.value))[0])
    train(corpus(), tmp_path / "out", least, character_coverage=1.0)
    assert Tokenizer.load(tmp_path / "out").size == least
    with pytest.raises(DataError, match="vocab_size=5 leaves no id for a piece"):
        train(corpus(), tmp_path / "other", 5)


def test_train_leaves_no_files_after_unreadable_text(tmp_path):
    write_corpus(tmp_path / "corpus")
    with (tmp_path / "corpus" / "sw.txt").open("ab") as file:
        file.write(b"\xff\n")
    with pytest.raises(DataError, match=r"sw\.txt, line \d+: byte 0xff at position 1"):
        train(tmp_path / "corpus", tmp_path / "out", 400)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("before", [0, 5, 200])
def test_train_raises_the_error_of_the_reader(before):
    def lines():
        yield from paragraphs("en", 200)[:before]
        raise DataError("the disk went away")

    with pytest.raises(DataError, match=r"^the disk went away$"):
        _unigram(lines(), 100, 1.0, False)


def test_train_refuses_a_corpus_of_empty_files(tmp_path):
    (tmp_path / "en.txt").write_text("\n\n")
    with pytest.raises(DataError, match="holds no text to train on"):
        train(tmp_path, tmp_path / "out", 400)


def test_train_overwrites_no_files(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not an empty folder, and nothing is overwritten"):
        train(corpus(), tmp_path, 400)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match=r"cannot be written: [A-Z].*; free some space"):
        train(corpus(), tmp_path / "file" / "out", 400)


def test_train_progress_ends_at_its_total(tmp_path):
    seen = []
    train(corpus(), tmp_path / "out", 400, on_progress=lambda *pair: seen.append(pair))
    done, totals = zip(*seen, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0] == 2 * sum(path.stat().st_size for path in corpus().iterdir())


def test_load_refuses_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(DataError, match=r"has no sentencepiece\.bpe\.model .* `mlm tokenizer`"):
        Tokenizer.load(tmp_path)
    model = tmp_path / "sentencepiece.bpe.model"
    for content in (b"", b"not a model"):
        model.write_bytes(content)
        with pytest.raises(DataError, match="is not a sentencepiece model"):
            Tokenizer.load(tmp_path)
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(paragraphs("en", 200)),
        model_writer=other,
        vocab_size=100,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=2,
    )
    model.write_bytes(other.getvalue())
    with pytest.raises(DataError, match="begins with the pieces <pad>, <unk>, <s>, and"):
        Tokenizer.load(tmp_path)
