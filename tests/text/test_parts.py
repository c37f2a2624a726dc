"""Ways in which programs number the parts of a language's text."""

import pytest

from mlm.errors import DataError
from mlm.text.corpus import languages
from mlm.text.documents import documents


def write(folder, names: list[str]):
    for number, name in enumerate(names):
        (folder / name).write_text(f"document {number}")
    return folder


@pytest.mark.parametrize(
    "form",
    [
        "en-{:05d}-of-00012.txt",
        "en_{}_of_12.txt",
        "en.{:05d}.txt",
        "en-{:04d}.txt",
        "en_part_{}.txt",
        "en-part{:02d}.txt",
        "en.Shard-{}.txt",
        "en_chunk_{:06d}.txt",
        "en.split.{:03d}-of-012.txt",
    ],
)
def test_languages_take_numbered_files_as_parts_of_one_language(tmp_path, form):
    write(tmp_path, [form.format(number) for number in range(12)])
    found = languages(tmp_path)
    assert list(found) == ["en"]
    texts = {document[0] for document in documents(found["en"])}
    assert texts == {f"document {number}" for number in range(12)}


@pytest.mark.parametrize("form", ["en_{}.txt", "en-{:02d}.txt", "en{}.txt", "en-{:03d}.txt"])
def test_languages_refuse_names_that_differ_in_a_short_number(tmp_path, form):
    write(tmp_path, [form.format(number) for number in range(3)])
    with pytest.raises(DataError) as raised:
        languages(tmp_path)
    one, other = (form.format(number).removesuffix(".txt") for number in range(2))
    assert str(raised.value).startswith(f"{one} and {other} in {tmp_path} differ in a number only")
    assert "rename them to en-0000, en-0001 ..., or, if they are languages, name" in str(
        raised.value
    )


def test_languages_keep_regions_with_three_digits_apart(tmp_path):
    write(tmp_path, ["es.txt", "es-419.txt", "en.txt", "en-001.txt", "zh-Hans.txt"])
    assert list(languages(tmp_path)) == ["en", "en-001", "es", "es-419", "zh-Hans"]


def test_languages_put_parts_in_the_order_of_their_names(tmp_path):
    write(tmp_path, ["en-00001-of-00002.txt", "en-00000-of-00002.txt"])
    assert list(documents(languages(tmp_path)["en"])) == [["document 1"], ["document 0"]]


def test_languages_refuse_a_part_beside_a_whole_file(tmp_path):
    write(tmp_path, ["en.txt", "en-00000-of-00001.txt"])
    with pytest.raises(DataError, match="are both of the language en, which can have one file"):
        languages(tmp_path)
