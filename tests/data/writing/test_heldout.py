"""What is held out: about the share of the text, by its hash, and on one side in all languages."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlm.data.index import Index
from mlm.data.writing import first_pass as passes
from mlm.data.writing import shards
from mlm.data.writing.first_pass import FirstPass, first_pass
from mlm.data.writing.heldout import HeldOutRule, choose, joined
from mlm.errors import DataError
from mlm.text.sources import Source
from tests.data.writing.test_shards import expected_ids, webdataset_ids
from tests.text_fixtures import LANGUAGES, documents_of, paragraphs, shards_folder, tokenizer

Documents = list[list[str]]
FAST = (0, 1, 8)  # in 8 a later language adds a paragraph of an earlier one
SEEDS = [pytest.param(seed, marks=() if seed in FAST else pytest.mark.slow) for seed in range(20)]


def passed(folder: Path, language: str, documents: Documents, share: float) -> FirstPass:
    path = folder / f"{language}.txt"
    path.write_text("\n\n".join("\n".join(document) for document in documents))
    return first_pass(language, (Source(str(path), "txt"),), lambda amount: None, share)


def rules(
    folder: Path, languages: dict[str, Documents], share: float = 0.01
) -> dict[str, HeldOutRule]:
    return choose((passed(folder, *of, share).text for of in languages.items()), share)


def split(rule: HeldOutRule, document: list[str]) -> tuple[list[str], list[str]]:
    return rule.split(document, joined(document).encode())


def held_share(rule: HeldOutRule, documents: Documents) -> float:
    """The part of the text that is held out."""
    held = sum(len("".join(split(rule, document)[1])) for document in documents)
    return held / len("".join(line for document in documents for line in document))


def lengths(generator: random.Random, documents: int) -> Iterator[int]:
    """Paragraphs of documents, most of them short and a few very long."""
    for _ in range(documents):
        yield min(1 + int(generator.paretovariate(0.8)), 400)


def corpus_of(seed: int) -> dict[str, Documents]:
    """Languages of all sizes, which share documents and single lines."""
    generator = random.Random(seed)
    shared = [["; ".join([f"shared {n} {k}"] * 5) for k in range(1 + n % 7)] for n in range(60)]
    shared += [[line] for document in shared[:20] for line in document]
    languages = {}
    for number in range(6):
        count = int(3 * 10 ** generator.uniform(0, 2.3))
        documents = [
            ["; ".join([f"{number} {n} {k}"] * generator.randint(1, 30)) for k in range(length)]
            for n, length in enumerate(lengths(generator, count))
        ]
        documents += generator.sample(shared, generator.randint(0, len(shared)))
        generator.shuffle(documents)
        languages[f"l{number}"] = documents
    return languages


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_text_is_on_one_side_in_all_languages(tmp_path, seed):
    languages = corpus_of(seed)
    found = rules(tmp_path, languages)
    splits: dict[str, tuple[list[str], list[str]]] = {}
    by_line: dict[str, bool] = {}
    for name, documents in languages.items():
        for document in documents:
            both = split(found[name], document)
            assert sorted(both[0] + both[1]) == sorted(document)
            assert splits.setdefault(joined(document), both) == both
            if len(document) == 1:
                assert by_line.setdefault(document[0], bool(both[1])) == bool(both[1])
    for name, documents in languages.items():
        divided = [split(found[name], each) for each in documents if found[name].paragraphs]
        for train, held in divided:
            assert not any(by_line.get(line) for line in train if held)


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_text_is_about_its_share(tmp_path, seed):
    for name, documents in corpus_of(seed).items():
        for share in (0.01, 0.1):
            rule = rules(tmp_path, {name: documents}, share)[name]
            found = held_share(rule, documents)
            few = len({line for document in documents for line in document}) * share < 4
            assert (0 if few else share / 2) < found <= (0.5 if few else 1.5 * share)


def test_held_out_text_of_one_long_document_is_a_part_of_it(tmp_path):
    """Found where it had the smallest hash of all, and took 92 % of the text."""
    documents = [[line] for line in paragraphs("en", 24)] + [paragraphs("en", 300)]
    rule = rules(tmp_path, {"en": documents})["en"]
    assert 0.005 < held_share(rule, documents) < 0.015
    train, held = split(rule, documents[-1])
    assert train
    assert held
    # A document of one paragraph cannot be divided: it is trained on, whatever its hash.
    for number in range(20):
        long = [["x".join([str(number)] * 20000)]]
        rule = rules(tmp_path, {"en": documents[:-1] + long})["en"]
        assert 0 < held_share(rule, documents[:-1] + long) < 0.1
        assert split(rule, long[0]) == (long[0], [])


def test_held_out_rule_depends_on_text_alone(tmp_path):
    languages = {"en": documents_of("en"), "sw": documents_of("sw")}
    expected = rules(tmp_path, languages)
    turned = {name: languages[name][::-1] for name in ("sw", "en")}
    assert rules(tmp_path, turned) == expected
    assert not expected["en"].paragraphs
    assert expected["sw"].paragraphs  # forty documents, each of them more than its share


def test_held_out_documents_of_many_are_those_below_the_cutoff(tmp_path, monkeypatch):
    documents = [[line] for line in paragraphs("en", 8000)]
    rule = rules(tmp_path, {"en": documents})["en"]
    assert (rule.added, rule.removed, rule.divided) == (frozenset(),) * 3
    assert 0.0055 < held_share(rule, documents) < 0.0145  # four standard deviations
    monkeypatch.setattr(passes, "MANY", 1000)
    few = passed(tmp_path, "en", documents, 0.01)
    assert not few.text.complete
    assert 40 < len(few.text.documents.hashes) < 2000
    assert choose([few.text], 0.01)["en"] == rule


def test_held_out_text_by_paragraph_of_many_is_the_same(tmp_path, monkeypatch):
    documents = [paragraphs("en", 4000)]
    rule = rules(tmp_path, {"en": documents})["en"]
    monkeypatch.setattr(passes, "MANY", 1000)
    assert rules(tmp_path, {"en": documents})["en"].facts()[0] == rule.cutoff
    assert split(rules(tmp_path, {"en": documents})["en"], documents[0]) == split(
        rule, documents[0]
    )


@pytest.mark.parametrize("count", [2, 5, 19])
def test_held_out_text_of_few_paragraphs_is_one_of_them(tmp_path, count):
    document = paragraphs("sw", count)
    train, held = split(rules(tmp_path, {"sw": [document]})["sw"], document)
    assert len(held) == 1
    assert sorted(train + held) == sorted(document)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_held_out_text_can_be_none_or_all(tmp_path, share):
    languages = {"el": documents_of("el"), "en": [["one paragraph"]]}
    for name, rule in rules(tmp_path, languages, share).items():
        assert held_share(rule, languages[name]) == share


def test_held_out_rule_keeps_repeated_text_in_one_split(tmp_path):
    lines = paragraphs("en", 4)
    rule = rules(tmp_path, {"en": [lines, lines, lines] * 20})["en"]
    assert [len(part) for part in split(rule, lines)] == [3, 1]
    for documents, count in (([["again"]] * 50, 1), ([], 0)):
        with pytest.raises(DataError, match=f"language en has {count} different paragraphs, .*add"):
            rules(tmp_path, {"en": documents})


def test_held_out_text_of_a_language_that_others_have_too(tmp_path):
    """All of a small language's text occurs in a large one."""
    large = documents_of("en")
    found = rules(tmp_path, {"en": large, "xx": large[:3]})
    for name, documents in (("en", large), ("xx", large[:3])):
        assert 0 < held_share(found[name], documents) < 0.1
    for document in large[:3]:
        assert split(found["en"], document) == split(found["xx"], document)


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_webdataset_reads_the_ids_of_sentencepiece(tmp_path, language):
    folder, documents = shards_folder(), {name: documents_of(name) for name in LANGUAGES}
    rule = rules(tmp_path, documents)[language]
    splits = zip(*(split(rule, document) for document in documents[language]), strict=True)
    for mark, found in zip(("", ".heldout"), splits, strict=True):
        ids = webdataset_ids([folder / f"{language}{mark}-000000.tar"]).tolist()
        assert ids == expected_ids([lines for lines in found if lines])
    index = Index.open(folder)
    number = index.languages.index(language)
    held, train = index.heldout_tokens[number], index.train_tokens[number]
    assert 0.004 < held / (train + held) < 0.03


def test_shards_hold_out_what_is_asked_for(tmp_path):
    (tmp_path / "text").mkdir()
    documents = [[line] for line in paragraphs("en", 3000)]
    passed(tmp_path / "text", "en", documents, 0)
    for share in (0.0, 0.05, 0.2, 1.0):
        out = tmp_path / str(share)
        options = shards.Options(heldout=share)
        shards.write(tmp_path / "text", tokenizer(), out, workers=1, options=options)
        index = Index.open(out)
        index.verify(deep=True)
        held, train = index.heldout_tokens[0], index.train_tokens[0]
        assert held / (held + train) == pytest.approx(share, rel=0.15)
