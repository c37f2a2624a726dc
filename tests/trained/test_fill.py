"""`mlm fill`, held against transformers' tokenizer and a fill-mask written out by hand."""

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm.errors import UserError
from mlm.trained.fill import encode, fill, fill_masks
from tests.exported_run import exported, trained_run
from tests.text_fixtures import LANGUAGES, paragraphs, tokenizer

TEXTS = [
    f"{paragraphs('en', 3)[0][:12]} <mask> {paragraphs('en', 3)[1][:12]}",
    f"<mask>{paragraphs('sw', 3)[0][:12]}  <mask>, [bold]<mask>",
    f"{paragraphs('ja', 3)[0][:12]}<mask>。",
]


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "<mask>",
        "  <mask>  ",
        "<mask><mask> <mask>",
        "a<mask>b <mask> c<mask>, d",
        "ab</s> <s>ab <pad><unk> <mask>",
        "<MASK> < mask> <mask>>",
        *(f"{paragraphs(language, 3)[0]} <mask>" for language in LANGUAGES),
    ],
)
def test_encode_gives_the_ids_of_transformers(text):
    theirs = AutoTokenizer.from_pretrained(exported(), local_files_only=True)
    assert encode(tokenizer(), text) == theirs(text).input_ids


@pytest.mark.parametrize("folder", ["run", "exported"])
def test_fill_gives_the_candidates_of_a_plain_computation(folder):
    model = AutoModelForMaskedLM.from_pretrained(exported(), local_files_only=True).eval()
    theirs = AutoTokenizer.from_pretrained(exported(), local_files_only=True)
    found = fill(str(trained_run() if folder == "run" else exported()), TEXTS, 4)
    assert [len(masks) for masks in found] == [1, 3, 1]
    for text, masks in zip(TEXTS, found, strict=True):
        batch = theirs(text, return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**batch).logits[0].softmax(-1)
        places = (batch.input_ids[0] == theirs.mask_token_id).nonzero().flatten()
        for place, candidates in zip(places, masks, strict=True):
            allowed = set(range(4, theirs.mask_token_id))
            order = probabilities[place].argsort(descending=True).tolist()
            best = [id for id in order if id in allowed][:4]
            assert [piece for piece, _ in candidates] == theirs.convert_ids_to_tokens(best)
            expected = probabilities[place, best].tolist()
            assert [value for _, value in candidates] == pytest.approx(expected, rel=1e-4)


def test_fill_proposes_only_real_pieces():
    every = tokenizer().size - 5  # all but five special ids
    [[candidates]] = fill(str(exported()), ["<mask>"], every)
    assert len({piece for piece, _ in candidates}) == every
    assert not {"<s>", "<pad>", "</s>", "<unk>", "<mask>"} & {piece for piece, _ in candidates}
    with pytest.raises(UserError, match=rf"top={every + 1} is not between 1 and the {every}"):
        fill(str(exported()), ["<mask>"], every + 1)


def test_fill_puts_the_best_candidates_into_the_text():
    [found] = fill_masks(exported(), ["  ☃ <mask> [x]<mask>!"], 2)
    first, second = (candidates[0][0].replace("▁", " ") for candidates in found.masks)
    assert found.best == f"☃{first} [x]{second}!".strip()


def test_fill_prints_a_table(capsys):
    found = fill(str(exported()), TEXTS, 2)
    shown = capsys.readouterr().out
    for text, masks in zip(TEXTS, found, strict=True):
        assert text.split("<mask>")[0] in shown
        for piece, value in (candidate for mask in masks for candidate in mask):
            assert f"{value:.1%}  {piece}" in shown
    assert "[bold]" in shown


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the text '' is empty; give one that holds <mask>"),
        (" \n", "is empty"),
        ("<mask> \udcff", "holds bytes that are not UTF-8; write it in UTF-8"),
        ("no place", "the text 'no place' holds no <mask>; write <mask> where"),
        ("<mask> kabu" * 100, r"has \d+ tokens, and the model has positions for 64; give a short"),
    ],
)
def test_fill_refuses_texts(text, sentence):
    with pytest.raises(UserError, match=sentence):
        fill(str(exported()), ["<mask>", text], 3)


def test_fill_takes_a_text_of_the_maximal_length():
    fill(str(exported()), ["<mask>" * 62], 1)
    with pytest.raises(UserError, match="has 65 tokens"):
        fill(str(exported()), ["<mask>" * 63], 1)
