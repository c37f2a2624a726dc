"""What the family's classes refuse: ValueError in one sentence with value, rule and remedy."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.family.family_fixtures import SEQ, TINY, VOCAB, noise, our_model, tokens

MODEL, MASKED = "XLMRobertaXLModel", "XLMRobertaXLForMaskedLM"
SEQUENCE = "XLMRobertaXLForSequenceClassification"
CHOICE = "XLMRobertaXLForMultipleChoice"
TOKEN = "XLMRobertaXLForTokenClassification"
QUESTION = "XLMRobertaXLForQuestionAnswering"
HIDDEN, POSITIONS = TINY["hidden_size"], TINY["max_position_embeddings"]
ROWS = 2
REMEDIES = ("give", "leave", "cut", "set", "choose", "convert", "use", "did you mean")


@contextmanager
def refused(*parts: object):
    """ValueError that names `parts` and says what to do."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is looked at here
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    assert any(remedy in message for remedy in REMEDIES), message
    for part in parts:
        assert str(part) in message, message


def ids() -> Tensor:
    return tokens(ROWS)


def mask_of(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


INPUTS: dict[str, tuple[dict, tuple]] = {
    "no input": ({}, ("neither", "input_ids", "inputs_embeds")),
    "two inputs": (
        {"input_ids": ids(), "inputs_embeds": noise(ROWS, SEQ, HIDDEN)},
        ("both", "input_ids", "inputs_embeds"),
    ),
    "an id too large": (
        {"input_ids": ids().index_fill(1, torch.tensor([3]), VOCAB)},
        (VOCAB, "vocab_size", VOCAB - 1),
    ),
    "an id below 0": (
        {"input_ids": ids().index_fill(1, torch.tensor([3]), -1)},
        (-1, "vocab_size"),
    ),
    "ids of one dim": ({"input_ids": ids()[0]}, ("input_ids", (SEQ,), "batch")),
    "ids of three dims": ({"input_ids": ids()[None]}, ("input_ids", (1, ROWS, SEQ))),
    "ids that are numbers": ({"input_ids": ids().float()}, ("input_ids", "float32", "int64")),
    "too many tokens": ({"input_ids": tokens(ROWS, SEQ + 1)}, (SEQ + 1, POSITIONS, SEQ)),
    "too many vectors": (
        {"inputs_embeds": noise(ROWS, SEQ + 1, HIDDEN)},
        (SEQ + 1, POSITIONS, SEQ),
    ),
    "vectors of another size": (
        {"inputs_embeds": noise(ROWS, SEQ, HIDDEN + 1)},
        ("inputs_embeds", HIDDEN + 1, "hidden_size", HIDDEN),
    ),
    "vectors of two dims": ({"inputs_embeds": noise(SEQ, HIDDEN)}, ("inputs_embeds", "batch")),
    "no rows": ({"input_ids": ids()[:0]}, ((0, SEQ),)),
    "no tokens": ({"input_ids": ids()[:, :0]}, ((ROWS, 0),)),
    "a mask too short": (
        {"input_ids": ids(), "attention_mask": mask_of(ROWS, SEQ - 1)},
        ("attention_mask", (ROWS, SEQ - 1), (ROWS, SEQ)),
    ),
    "a mask of one dim": (
        {"input_ids": ids(), "attention_mask": mask_of(SEQ)},
        ("attention_mask", (SEQ,), (ROWS, SEQ)),
    ),
    "a mask of one row": (
        {"input_ids": ids(), "attention_mask": mask_of(1, SEQ)},
        ("attention_mask", (1, SEQ), (ROWS, SEQ)),
    ),
    "a mask of too many queries": (
        {"input_ids": ids(), "attention_mask": mask_of(ROWS, SEQ + 1, SEQ)},
        ("attention_mask", (ROWS, SEQ + 1, SEQ), (ROWS, SEQ, SEQ)),
    ),
    "a mask of four dims": (
        {"input_ids": ids(), "attention_mask": mask_of(ROWS, 1, SEQ, SEQ)},
        ("attention_mask", (ROWS, 1, SEQ, SEQ)),
    ),
    "a mask of numbers to add": (
        {"input_ids": ids(), "attention_mask": mask_of(ROWS, SEQ).float() - 10001},
        ("attention_mask", -10000),
    ),
    "a token type too large": (
        {"input_ids": ids(), "token_type_ids": torch.full((ROWS, SEQ), 2)},
        ("token_type_ids", 2, "type_vocab_size"),
    ),
    "token types too short": (
        {"input_ids": ids(), "token_type_ids": mask_of(ROWS, SEQ - 1)},
        ("token_type_ids", (ROWS, SEQ - 1), (ROWS, SEQ)),
    ),
    "a position too large": (
        {"input_ids": ids(), "position_ids": torch.full((ROWS, SEQ), POSITIONS)},
        ("position_ids", POSITIONS, "max_position_embeddings"),
    ),
    "a position below 0": (
        {"input_ids": ids(), "position_ids": torch.full((ROWS, SEQ), -1)},
        ("position_ids", -1),
    ),
    "positions too short": (
        {"input_ids": ids(), "position_ids": mask_of(ROWS, SEQ - 1)},
        ("position_ids", (ROWS, SEQ - 1)),
    ),
    "a head too few": (
        {"input_ids": ids(), "head_mask": torch.ones(3)},
        ("head_mask", (3,), 4),
    ),
    "a layer too few": (
        {"input_ids": ids(), "head_mask": torch.ones(2, 4)},
        ("head_mask", (2, 4), (3, 4)),
    ),
    "heads and more dims": (
        {"input_ids": ids(), "head_mask": torch.ones(3, ROWS, 4, SEQ, SEQ)},
        ("head_mask", (3, 4)),
    ),
}


@pytest.fixture(scope="module")
def models() -> dict:
    made = {name: our_model(name).eval() for name in (MODEL, MASKED, CHOICE, QUESTION)}
    return made | {name: our_model(name, num_labels=3).eval() for name in (SEQUENCE, TOKEN)}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_do_not_fit_are_refused(case, models):
    given, parts = INPUTS[case]
    for name in (MODEL, MASKED):
        with refused(*parts):
            models[name](**given)


@pytest.mark.parametrize("cls_name", [SEQUENCE, TOKEN, QUESTION])
@pytest.mark.parametrize("case", ["no input", "two inputs", "an id too large", "too many tokens"])
def test_inputs_are_refused_alike_by_heads(cls_name, case, models):
    given, parts = INPUTS[case]
    with refused(*parts):
        models[cls_name](**given)


@pytest.mark.parametrize("cls_name", [MODEL, MASKED])
def test_decoder_arguments_are_refused_by_an_encoder(cls_name, models):
    model = models[cls_name]
    states = noise(ROWS, 7, HIDDEN)
    with refused("encoder_hidden_states", "add_cross_attention=True"):
        model(ids(), encoder_hidden_states=states)
    with refused("encoder_attention_mask", "encoder_hidden_states"):
        model(ids(), encoder_attention_mask=mask_of(ROWS, 7))


def test_cache_is_refused_by_an_encoder(models):
    model = models[MODEL]
    past = tuple((noise(ROWS, 4, 3, 8), noise(ROWS, 4, 3, 8)) for _ in range(3))
    with refused("past_key_values", "is_decoder"):
        model(ids(), past_key_values=past)
    with refused("use_cache=True", "is_decoder"):
        model(ids(), use_cache=True)
    assert model(ids(), use_cache=False).past_key_values is None


LABELS: dict[str, tuple[str, Tensor, tuple]] = {
    "a word too large": (MASKED, torch.full((ROWS, SEQ), VOCAB), (VOCAB, VOCAB - 1, -100)),
    "a word below 0": (MASKED, torch.full((ROWS, SEQ), -1), (-1, -100)),
    "words too short": (MASKED, mask_of(ROWS, SEQ - 1), ((ROWS, SEQ - 1), (ROWS, SEQ))),
    "words of one dim": (MASKED, mask_of(ROWS * SEQ), ((ROWS * SEQ,), (ROWS, SEQ))),
    "words that are numbers": (MASKED, torch.ones(ROWS, SEQ), ("float32",)),
    "a class too large": (SEQUENCE, torch.tensor([0, 3]), (3, 2)),
    "a class below 0": (SEQUENCE, torch.tensor([0, -1]), (-1, -100)),
    "a class too many": (SEQUENCE, torch.tensor([0, 1, 2]), ((3,), ROWS)),
    "several classes transposed": (SEQUENCE, torch.ones(3, ROWS), ((3, ROWS), (ROWS, 3))),
    "too few of several classes": (SEQUENCE, torch.ones(ROWS, 2), ((ROWS, 2), (ROWS, 3))),
    "a token's class too large": (TOKEN, torch.full((ROWS, SEQ), 3), (3, 2, -100)),
    "token classes of rows": (TOKEN, torch.tensor([0, 1]), ((2,), (ROWS, SEQ))),
    "several whole classes": (
        SEQUENCE,
        torch.ones(ROWS, 3).long(),
        ((ROWS, 3), (ROWS,), "int64", "floats (multi_label_classification)"),
    ),
    "two classes for each row": (SEQUENCE, torch.ones(ROWS, 2).long(), ((ROWS, 2), (ROWS,))),
    "token classes that are numbers": (TOKEN, torch.ones(ROWS, SEQ), ("float32",)),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_do_not_fit_are_refused(case, models):
    cls_name, labels, parts = LABELS[case]
    with refused(*parts):
        models[cls_name](ids(), labels=labels)


def test_labels_of_floats_are_refused_as_classes():
    model = our_model(SEQUENCE, num_labels=3, problem_type="single_label_classification")
    with refused("float32", "single_label_classification"):
        model(ids(), labels=torch.tensor([0.2, 1.7]))


def test_choices_that_do_not_fit_are_refused(models):
    model, choices = models[CHOICE], tokens(2 * ROWS).view(ROWS, 2, SEQ)
    with refused((ROWS, SEQ), "(batch, choices, seq_len"):
        model(ids())
    with refused((ROWS, 2, SEQ), "(batch, choices, seq_len, hidden_size)"):
        model(inputs_embeds=noise(ROWS, 2, SEQ))
    with refused("neither", "input_ids"):
        model()
    with refused("both", "input_ids"):
        model(choices, inputs_embeds=noise(ROWS, 2, SEQ, HIDDEN))
    with refused("attention_mask"):
        model(choices, attention_mask=mask_of(ROWS, SEQ))
    with refused(2, 1):
        model(choices, labels=torch.tensor([0, 2]))
    with refused((3,), ROWS):
        model(choices, labels=torch.tensor([0, 1, 0]))
    with refused((ROWS, 2), (ROWS,)):
        model(choices, labels=mask_of(ROWS, 2))
    for wrong in (torch.arange(SEQ), mask_of(ROWS, SEQ), mask_of(2 * ROWS, 1, SEQ)):
        for name in ("position_ids", "token_type_ids", "attention_mask"):
            with refused(name, tuple(wrong.shape), "(batch, choices, seq_len)"):
                model(choices, **{name: wrong})
    model(choices, position_ids=torch.arange(2, SEQ + 2).view(1, 1, SEQ))


def test_answer_positions_that_do_not_fit_are_refused(models):
    model, place = models[QUESTION], torch.tensor([1, 2])
    for given in ({"start_positions": place}, {"end_positions": place}):
        with refused("start_positions", "end_positions", "both"):
            model(ids(), **given)
    with refused((3,), ROWS):
        model(ids(), start_positions=torch.tensor([1, 2, 3]), end_positions=place)
    with refused("float32"):
        model(ids(), start_positions=place.float(), end_positions=place)
    with refused("num_labels=3", "start"):
        our_model(QUESTION, num_labels=3)


@pytest.mark.parametrize("given", [[[5, 6]], "text", 3], ids=str)
def test_arguments_that_are_no_tensors_are_refused(given, models):
    of, due = type(given).__name__, "a tensor is expected"
    with refused("input_ids", of, due):
        models[MODEL](given)
    with refused("inputs_embeds", of, due):
        models[MODEL](inputs_embeds=given)
    for name in ("attention_mask", "token_type_ids", "position_ids", "head_mask"):
        for model in (models[MODEL], models[MASKED], models[SEQUENCE], models[QUESTION]):
            with refused(name, of, due):
                model(ids(), **{name: given})
    for cls_name in (MASKED, SEQUENCE, TOKEN):
        with refused("labels", of, due):
            models[cls_name](ids(), labels=given)
    for name in ("start_positions", "end_positions"):
        place = {each: torch.tensor([1, 2]) for each in ("start_positions", "end_positions")}
        with refused(name, of, due):
            models[QUESTION](ids(), **place | {name: given})
    choices = tokens(2 * ROWS).view(ROWS, 2, SEQ)
    for name in ("attention_mask", "labels", "position_ids", "head_mask"):
        with refused(name, of, due):
            models[CHOICE](choices, **{name: given})
    with refused("input_ids", of, due):
        models[CHOICE](given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_embeds_are_cast_to_the_dtype_of_the_weights(dtype, models):
    vectors = noise(ROWS, SEQ, HIDDEN).to(dtype)
    for model in (models[MASKED], our_model(MASKED).eval().bfloat16()):
        found = model(inputs_embeds=vectors).logits
        assert found.dtype == model.dtype
        assert torch.equal(found, model(inputs_embeds=vectors.to(model.dtype)).logits)
    crossed = our_model("XLMRobertaXLForCausalLM", is_decoder=True, add_cross_attention=True)
    found = crossed(ids(), encoder_hidden_states=vectors).logits
    assert torch.equal(found, crossed(ids(), encoder_hidden_states=vectors.float()).logits)
    for name, given in (("inputs_embeds", {}), ("encoder_hidden_states", {"input_ids": ids()})):
        with refused(name, "int64"):
            crossed(**given, **{name: vectors.long()})


def test_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="output_attention"):
        our_model(MODEL)(ids(), output_attention=True)
