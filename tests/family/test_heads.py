"""The classes with a head for a task against transformers with the same weights."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.family.family_fixtures import (
    PAD,
    SEQ,
    TINY,
    VOCAB,
    compare,
    gradients_of,
    noise,
    padded,
    pair,
    same,
    tokens,
)

MASKED = "XLMRobertaXLForMaskedLM"
SEQUENCE = "XLMRobertaXLForSequenceClassification"
CHOICE = "XLMRobertaXLForMultipleChoice"
TOKEN = "XLMRobertaXLForTokenClassification"
QUESTION = "XLMRobertaXLForQuestionAnswering"
ROWS, HIDDEN = 4, TINY["hidden_size"]
LENGTHS = (SEQ, 13, 1, 7)


def drawn(high: int, *shape: int, seed: int = 6) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def some_ignored(labels: Tensor) -> Tensor:
    return labels.masked_fill(noise(*labels.shape, seed=7) > 0.3, -100)


def ids_and_mask(side: str = "right") -> dict[str, Tensor]:
    ids, mask = padded(LENGTHS, side)
    return {"input_ids": ids, "attention_mask": mask}


INPUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "right padding": ids_and_mask,
    "left padding": lambda: ids_and_mask("left"),
    "pads without a mask": lambda: {"input_ids": padded(LENGTHS)[0]},
    "one token": lambda: {"input_ids": tokens(ROWS, 1)},
    "embeddings": lambda: {
        "inputs_embeds": noise(ROWS, SEQ, HIDDEN),
        "attention_mask": padded(LENGTHS)[1],
        "position_ids": drawn(SEQ + 2, ROWS, SEQ),
        "token_type_ids": drawn(2, ROWS, SEQ),
    },
    "all of ids": lambda: {
        **ids_and_mask(),
        "position_ids": drawn(SEQ + 2, ROWS, SEQ),
        "token_type_ids": drawn(2, ROWS, SEQ),
    },
}
# What a class is made with, and its labels for inputs of (ROWS, length).
TASKS: dict[str, tuple[dict, Callable[[int], dict[str, Tensor]]]] = {
    MASKED: ({}, lambda length: {"labels": some_ignored(drawn(VOCAB, ROWS, length))}),
    SEQUENCE: ({"num_labels": 3}, lambda length: {"labels": drawn(3, ROWS)}),
    CHOICE: ({}, lambda length: {"labels": drawn(2, ROWS // 2)}),
    TOKEN: ({"num_labels": 5}, lambda length: {"labels": some_ignored(drawn(5, ROWS, length))}),
    QUESTION: (
        {},
        lambda length: {
            "start_positions": drawn(length, ROWS),
            "end_positions": drawn(length, ROWS, seed=16),
        },
    ),
}


def task(cls_name: str, inputs: str = "right padding") -> tuple[dict, dict[str, Tensor]]:
    """What a class is made with, and its inputs and labels; two choices of multiple choice."""
    config, labels = TASKS[cls_name]
    given = INPUTS[inputs]()
    length = next(iter(given.values())).shape[1]
    if cls_name == CHOICE:
        given = {key: value.unflatten(0, (ROWS // 2, 2)) for key, value in given.items()}
    return config, given | labels(length)


def without_labels(given: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ("labels", "start_positions", "end_positions")
    return {key: value for key, value in given.items() if key not in names}


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("cls_name", [SEQUENCE, CHOICE, TOKEN, QUESTION])
def test_heads_equal_transformers(cls_name, inputs):
    config, given = task(cls_name, inputs)
    ours, theirs = pair(cls_name, **config)
    loss = compare(ours, theirs, given).loss.item()
    assert loss > 0.1 or (cls_name == QUESTION and inputs == "one token")  # of one place, 0
    compare(ours, theirs, without_labels(given))


@pytest.mark.parametrize("cls_name", [SEQUENCE, CHOICE, TOKEN, QUESTION])
def test_output_tuple_has_the_fields_that_are_not_none(cls_name):
    config, given = task(cls_name)
    model = pair(cls_name, **config)[0]
    with torch.no_grad():
        output = model(**given, output_attentions=True)
        plain = model(**given, output_attentions=True, return_dict=False)
        model.config.output_attentions, model.config.return_dict = True, False
        by_config = model(**without_labels(given))
    names = ["start_logits", "end_logits"] if cls_name == QUESTION else ["logits"]
    assert list(output.keys()) == ["loss", *names, "attentions"]
    assert output.hidden_states is None
    assert type(plain) is tuple
    assert len(plain) == len(names) + 2
    assert plain[0] == output.loss
    assert type(by_config) is tuple
    assert len(by_config) == len(names) + 1
    for place, name in enumerate(names):
        assert torch.equal(plain[place + 1], output[name])
        assert torch.equal(by_config[place], getattr(output, name))


THREE, NUMBERS = {"num_labels": 3}, noise(ROWS, 3, seed=11)
SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"
LABELS: dict[str, tuple[dict, Tensor]] = {
    "single": (THREE, drawn(3, ROWS)),
    "single, in a column": (THREE, drawn(3, ROWS, 1)),
    "single, some ignored": (THREE, torch.tensor([-100, 2, 0, -100])),
    "single, named": ({**THREE, "problem_type": SINGLE}, drawn(3, ROWS)),
    "several": (THREE, (NUMBERS > 0).float()),
    "several, named": ({**THREE, "problem_type": SEVERAL}, (NUMBERS > 0).float()),
    "several of one": (
        {"num_labels": 1, "problem_type": SEVERAL},
        (NUMBERS[:, :1] > 0).float(),
    ),
    "regression": ({"num_labels": 1}, NUMBERS[:, 0]),
    "regression, in a column": ({"num_labels": 1}, NUMBERS[:, :1]),
    "regression, named": ({"num_labels": 1, "problem_type": "regression"}, NUMBERS[:, 0]),
    "regression of three": ({**THREE, "problem_type": "regression"}, NUMBERS),
}


@pytest.mark.parametrize("kind", LABELS)
def test_sequence_classification_takes_all_kinds_of_labels(kind):
    config, labels = LABELS[kind]
    ours, theirs = pair(SEQUENCE, **config)
    before = copy.deepcopy(ours.config.to_dict())
    given = {**INPUTS["right padding"](), "labels": labels}
    found = compare(ours, theirs, given)
    assert found.logits.shape == (ROWS, config["num_labels"])
    assert ours.config.to_dict() == before, "a call changed the config"


def test_regression_takes_one_row():
    ours, theirs = pair(SEQUENCE, num_labels=1)
    compare(ours, theirs, {"input_ids": tokens(1), "labels": torch.tensor([0.7])})


def test_sequence_classification_finds_the_kind_of_labels_at_every_call():
    ours, _ = pair(SEQUENCE, num_labels=3)
    ids = tokens(ROWS)
    with torch.no_grad():
        logits = ours(ids).logits
        several = ours(ids, labels=torch.ones(ROWS, 3)).loss
        single = ours(ids, labels=torch.zeros(ROWS, dtype=torch.long)).loss
    same(several, F.binary_cross_entropy_with_logits(logits, torch.ones(ROWS, 3)))
    same(single, F.cross_entropy(logits, torch.zeros(ROWS, dtype=torch.long)))


def test_token_classification_ignores_padding():
    ours, theirs = pair(TOKEN, num_labels=5)
    given = {**INPUTS["right padding"](), "labels": drawn(5, ROWS, SEQ)}
    with torch.no_grad():
        found = ours(**given)
    real = given["attention_mask"].bool()
    same(found.loss, F.cross_entropy(found.logits[real], given["labels"][real]))
    unmasked = {key: value for key, value in given.items() if key != "attention_mask"}
    with torch.no_grad():
        whole = ours(**unmasked)
    same(whole.loss, F.cross_entropy(whole.logits.flatten(0, 1), given["labels"].flatten()))
    compare(ours, theirs, given)
    compare(ours, theirs, unmasked)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ([3, SEQ, 5, 0], [4, 500, SEQ - 1, 19]),
        ([-1, 2, -100, 7], [-7, 2, 3, -2]),
        ([SEQ - 1, SEQ, SEQ + 1, 10**9], [0, 1, SEQ, -(10**9)]),
    ],
    ids=["past the end", "negative", "at the edges"],
)
@pytest.mark.parametrize("column", [False, True], ids=["row", "column"])
def test_question_answering_ignores_positions_after_the_input(start, end, column):
    """Past the end they are ignored, below 0 they are 0."""
    ours, theirs = pair(QUESTION)
    positions = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    if column:
        positions = {key: value.unsqueeze(1) for key, value in positions.items()}
    kept = {key: value.clone() for key, value in positions.items()}
    compare(ours, theirs, {**INPUTS["right padding"](), **positions})
    assert all(torch.equal(kept[key], positions[key]) for key in kept)


def test_question_answering_takes_positions_in_a_column():
    ours, theirs = pair(QUESTION)
    given = {"start_positions": torch.tensor([[2]]), "end_positions": torch.tensor([[5]])}
    compare(ours, theirs, {"input_ids": tokens(1), **given})


def test_question_answering_counts_one_end_where_the_other_is_outside():
    ours, _ = pair(QUESTION)
    outside, inside = torch.full((ROWS,), SEQ), torch.arange(ROWS)
    with torch.no_grad():
        found = ours(tokens(ROWS), start_positions=outside, end_positions=inside)
    same(found.loss, F.cross_entropy(found.end_logits, inside) / 2)


def all_ignored(cls_name: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    if cls_name == QUESTION:
        outside = torch.full((ROWS,), SEQ + 3)
        return {**given, "start_positions": outside, "end_positions": outside}
    return {**given, "labels": torch.full_like(given["labels"], -100)}


@pytest.mark.parametrize("cls_name", TASKS)
def test_loss_without_labels_is_zero_without_a_gradient(cls_name):
    config, given = task(cls_name)
    ours, _ = pair(cls_name, **config)
    ours.train()
    usual = gradients_of(ours, lambda: ours(**given).loss)
    ignored = all_ignored(cls_name, given)
    assert ours(**ignored).loss.item() == 0.0
    found = gradients_of(ours, lambda: ours(**ignored).loss)
    assert set(found) == set(usual)
    assert not any(gradient.any() for gradient in found.values())
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_token_classification_of_padding_alone_is_zero():
    ours, _ = pair(TOKEN, num_labels=5)
    ids = tokens(ROWS)
    labels = drawn(5, ROWS, SEQ)
    mask = torch.zeros_like(ids)
    assert ours(ids, attention_mask=mask, labels=labels).loss.item() == 0.0


@pytest.mark.parametrize("cls_name", TASKS)
def test_loss_is_smoothed(cls_name):
    config, given = task(cls_name)
    plain, _ = pair(cls_name, **config)
    ours, _ = pair(cls_name, **config, label_smoothing=0.3)
    assert plain.config.label_smoothing == 0.0
    with torch.no_grad():
        unsmoothed, found = plain(**given).loss, ours(**given)

    def expected(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.flatten(), label_smoothing=0.3
        )

    if cls_name == QUESTION:
        start = expected(found.start_logits, given["start_positions"])
        loss = (start + expected(found.end_logits, given["end_positions"])) / 2
    else:
        labels = given["labels"]
        if cls_name == TOKEN:
            labels = labels.masked_fill(given["attention_mask"] == 0, -100)
        loss = expected(found.logits, labels)
    same(found.loss, loss)
    assert abs(found.loss - unsmoothed) > 1e-4


@pytest.mark.parametrize("choices", [1, 3])
def test_multiple_choice_takes_any_number_of_choices(choices):
    ours, theirs = pair(CHOICE)
    ids = tokens(2 * choices).view(2, choices, SEQ)
    ids[0, 0, 9:] = PAD
    given = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    found = compare(ours, theirs, {**given, "labels": torch.tensor([0, choices - 1])})
    assert found.logits.shape == (2, choices)
