"""A tokenizer.json next to a sentencepiece model: the same ids, or the folder is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from mlm.errors import DataError, UserError
from mlm.hf import ids
from mlm.hf.ids import check_source_ids, lines
from mlm.hf.importing import import_model
from mlm.tokenizer.ids import JSON_FILE, MODEL_FILE, SPACE
from mlm.tokenizer.published_files import backend, write_tokenizer
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.trained.opening import open_trained
from tests.published_folders import MASKED, folder_of, left_nothing, model, tokenizer_in
from tests.text_fixtures import tokenizer
from tests.tokenizer.tokenizer_fixtures import folder as large_folder


def written_by_us(folder: Path) -> None:
    write_tokenizer(tokenizer(), 64, folder)


def written_by_transformers_5(folder: Path) -> None:
    """Made of the sentencepiece model: it normalises by graphemes."""
    write_tokenizer(tokenizer(), 64, folder)
    (folder / JSON_FILE).unlink()
    made = transformers.XLMRobertaTokenizer.from_pretrained(folder, local_files_only=True)
    made.save_pretrained(folder)
    assert (folder / JSON_FILE).is_file()


def as_transformers_4_has_it(folder: Path) -> None:
    """Its converter's steps, as published files have them, too."""
    made = backend(tokenizer())
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(tokenizer().charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), SPACE),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always")
    (folder / JSON_FILE).write_text(made.to_str(), encoding="utf-8")


@pytest.mark.parametrize(
    "write", [written_by_us, written_by_transformers_5, as_transformers_4_has_it]
)
def test_import_takes_the_files_of_one_tokenizer(write, tmp_path, capsys):
    source = folder_of(model(MASKED), tmp_path / "source")
    write(source)
    import_model(str(source), str(tmp_path / "out"))
    printed = capsys.readouterr().out
    compared = f"ids are equal to those of {MODEL_FILE} and {JSON_FILE} on {len(lines())} lines, "
    assert compared in printed
    assert tokenizer_in(tmp_path / "out").hash == tokenizer().hash
    (source / MODEL_FILE).unlink()
    import_model(str(source), str(tmp_path / "alone"))
    assert f"ids are equal to those of {JSON_FILE} on" in capsys.readouterr().out
    assert tokenizer_in(tmp_path / "alone").same_ids(tokenizer())


def test_import_allows_lines_that_transformers_normalises_differently(tmp_path):
    """Its class drops marks of Yoruba, but the rules are the same, and they decide."""
    source = shutil.copytree(large_folder(), tmp_path / "source")
    loaded = Tokenizer.load(source)
    (source / JSON_FILE).unlink()
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(source, local_files_only=True)
    theirs.save_pretrained(source)
    text = {"yo": "ọ̀rọ̀ o\u0323\u0300"}
    found = theirs(text["yo"], add_special_tokens=False)["input_ids"]
    assert found != loaded.encode([text["yo"]])[0].tolist()
    loaded.check_beside(source)
    for name in (MODEL_FILE, JSON_FILE):
        check_source_ids(loaded, source / name, lines() | text)


def swapped(values: dict[str, Any]) -> None:
    pieces = values["model"]["vocab"]
    pieces[10], pieces[11] = pieces[11], pieces[10]


def rescored(values: dict[str, Any]) -> None:
    values["model"]["vocab"][20][1] -= 1.0


def lowered(values: dict[str, Any]) -> None:
    values["normalizer"] = {"type": "Lowercase"}


def replaced(values: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
    values["normalizer"]["normalizers"].append(step)


def without_rules(values: dict[str, Any]) -> None:
    values["normalizer"] = None


def without_a_first_blank(values: dict[str, Any]) -> None:
    values["pre_tokenizer"]["prepend_scheme"] = "never"


def cut_in_digits(values: dict[str, Any]) -> None:
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, values["pre_tokenizer"]]
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


def emptied(values: dict[str, Any]) -> None:
    values.clear()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swapped, "gives other ids than"),
        (rescored, "gives other ids than"),
        (lowered, "it normalises by Lowercase"),
        (replaced, "it replaces"),
        (without_rules, "leaves several blanks"),
        (without_a_first_blank, "it puts no blank before words"),
        (cut_in_digits, "it cuts by Digits"),
        (emptied, "some of it is missing"),
    ],
)
def test_import_refuses_contradicting_tokenizer_files(
    change: Callable[[dict[str, Any]], None], reason, tmp_path
):
    source = folder_of(model(MASKED), tmp_path / "source")
    written_by_us(source)
    path = source / JSON_FILE
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    for given in (None, str(source)):
        with pytest.raises(DataError) as caught:
            import_model(str(source), str(tmp_path / "out"), given)
        error = str(caught.value)
        assert reason in error
        for part in (str(path), str(source / MODEL_FILE), "; move "):
            assert part in error
        assert "\n" not in error
    with pytest.raises(DataError, match=reason):
        open_trained(source)
    path.unlink()
    import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source", "out")


def test_import_refuses_a_tokenizer_other_than_tokenizer_json(tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")
    written_by_us(source)
    values = json.loads((source / JSON_FILE).read_text("utf-8"))
    swapped(values)
    (source / JSON_FILE).write_text(json.dumps(values), encoding="utf-8")
    given = str(tokenizer().model_path.parent)
    with pytest.raises(DataError, match=rf"tokenizer=.* gives other ids than .*{JSON_FILE}, which"):
        import_model(str(source), str(tmp_path / "out"), given)
    assert left_nothing(tmp_path, "source")


def test_import_skips_added_tokens_if_asked(tmp_path, capsys):
    """Even if one of them occurs in the lines that are compared."""
    source = folder_of(model(MASKED), tmp_path / "source")
    written_by_us(source)
    word = next(iter(lines().values())).split()[0]
    made = backend(tokenizer())
    made.add_tokens([AddedToken(word, normalized=False)])
    (source / JSON_FILE).write_text(made.to_str(), encoding="utf-8")
    with pytest.raises(DataError, match=f"such as '{word}' with the id 400.*; add tokenizer="):
        import_model(str(source), str(tmp_path / "out"))
    import_model(str(source), str(tmp_path / "out"), str(source))
    assert "ids are equal to those of" in capsys.readouterr().out


def test_import_compares_ids_on_lines(tmp_path, monkeypatch):
    source = folder_of(model(MASKED), tmp_path / "source")
    right = ids._sentencepiece

    def wrong(path: Path) -> ids.Encode:
        return lambda text: right(path)(text)[:-1]

    monkeypatch.setattr(ids, "_sentencepiece", wrong)
    with pytest.raises(UserError, match=rf"{MODEL_FILE} gives other ids than the tokenizer that w"):
        import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")
