"""The published worked examples with our import line, on a small folder in the hub's place.

Each ends with transformers: it reads what ours wrote and gives the same numbers.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import mlm
from mlm.tokenizer.published_files import write_tokenizer
from tests.family.family_fixtures import TINY, same
from tests.text_fixtures import paragraphs
from tests.text_fixtures import tokenizer as trained_tokenizer

POSITIONS = 130
# That a head is new is said, and looked at in one of the tests.
pytestmark = pytest.mark.filterwarnings("ignore:.*must be trained before it is used")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """What `facebook/xlm-roberta-xl` is in the examples: a masked language model, tokenizer."""
    from mlm import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM

    folder = tmp_path_factory.mktemp("xlm-roberta-tiny")
    words = trained_tokenizer()
    shape = {"vocab_size": words.padded_size, "max_position_embeddings": POSITIONS}
    config = XLMRobertaXLConfig(**(TINY | shape | {"type_vocab_size": 1}))
    XLMRobertaXLForMaskedLM(config, seed=1).save_pretrained(folder)
    write_tokenizer(words, POSITIONS - 2, folder)
    return str(folder)


def in_transformers(model, folder: Path):
    """The model that transformers reads from what ours writes; every weight is there."""
    model.save_pretrained(folder)
    kind = getattr(transformers, type(model).__name__)
    theirs, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return theirs.eval()


def their_tokenizer(checkpoint: str):
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


def sentence(number: int = 0) -> str:
    return " ".join(paragraphs("en", 10)[number].split()[:8])


def test_import_alone_loads_no_torch():
    code = "import mlm, sys; assert 'torch' not in sys.modules; print(*sorted(mlm.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    named = [name.removeprefix("XLMRobertaXL") for name in done.stdout.split()]
    heads = ["ForCausalLM", "ForMaskedLM", "ForMultipleChoice", "ForQuestionAnswering"]
    heads += ["ForSequenceClassification", "ForTokenClassification", "Model"]
    assert named == ["AutoTokenizer", "Config", *heads]
    assert all(isinstance(getattr(mlm, name), type) for name in mlm.__all__)


def test_example_of_the_configuration():
    from mlm import XLMRobertaXLConfig, XLMRobertaXLModel

    with torch.device("meta"):  # 3.5 billion parameters
        model = XLMRobertaXLModel(XLMRobertaXLConfig())
    configuration = model.config
    assert configuration.num_hidden_layers == len(model.encoder.layer) == 36


def test_example_of_the_model(checkpoint, tmp_path):
    from mlm import AutoTokenizer, XLMRobertaXLModel

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = XLMRobertaXLModel.from_pretrained(checkpoint)

    inputs = tokenizer(sentence(), return_tensors="pt")
    outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state

    assert not model.training, "what is read from a folder is in evaluation mode, as published"
    assert last_hidden_states.shape == (*inputs.input_ids.shape, TINY["hidden_size"])
    theirs = in_transformers(model, tmp_path)
    with torch.no_grad():
        given = their_tokenizer(checkpoint)(sentence(), return_tensors="pt")
        expected = theirs(**given)
    same(last_hidden_states, expected.last_hidden_state)
    same(outputs.pooler_output, expected.pooler_output)


def one_piece_word(tokenizer) -> str:
    words = " ".join(paragraphs("en", 40)).replace(".", "").lower().split()
    return next(word for word in words if len(tokenizer(word)["input_ids"]) == 3)


def test_example_of_masked_lm(checkpoint):
    from mlm import AutoTokenizer, XLMRobertaXLForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = XLMRobertaXLForMaskedLM.from_pretrained(checkpoint)
    word, text = one_piece_word(tokenizer), sentence()

    inputs = tokenizer(f"{text} <mask> {word}", return_tensors="pt")

    with torch.no_grad():
        logits = model(**inputs).logits

    mask_token_index = (inputs.input_ids == tokenizer.mask_token_id)[0].nonzero(as_tuple=True)[0]
    assert mask_token_index.tolist() == [inputs.input_ids.shape[1] - 3]

    predicted_token_id = logits[0, mask_token_index].argmax(axis=-1)
    decoded = tokenizer.decode(predicted_token_id)

    labels = tokenizer(f"{text} {word} {word}", return_tensors="pt")["input_ids"]
    labels = torch.where(inputs.input_ids == tokenizer.mask_token_id, labels, -100)

    outputs = model(**inputs, labels=labels)
    assert round(outputs.loss.item(), 2) > 0

    theirs = transformers.AutoModelForMaskedLM.from_pretrained(checkpoint)
    words = their_tokenizer(checkpoint)
    given = words(f"{text} <mask> {word}", return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**given, labels=labels)
    same(logits, expected.logits)
    same(outputs.loss, expected.loss)
    assert decoded == words.decode(predicted_token_id)


def test_example_of_masked_lm_of_transformers_5(checkpoint):
    from mlm import AutoTokenizer, XLMRobertaXLForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = XLMRobertaXLForMaskedLM.from_pretrained(
        checkpoint, dtype=torch.float16, device_map="auto", attn_implementation="sdpa"
    )
    inputs = tokenizer(f"{sentence()} <mask>.", return_tensors="pt").to(model.device)

    with torch.no_grad():
        predictions = model(**inputs).logits
    masked_index = torch.where(inputs["input_ids"] == tokenizer.mask_token_id)[1]
    predicted_token_id = predictions[0, masked_index].argmax(dim=-1)
    predicted_token = tokenizer.decode(predicted_token_id)
    assert isinstance(predicted_token, str)
    assert model.dtype == torch.float16
    assert len(masked_index) == 1


def test_example_of_causal_lm(checkpoint, tmp_path):
    from mlm import AutoTokenizer, XLMRobertaXLConfig, XLMRobertaXLForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = XLMRobertaXLConfig.from_pretrained(checkpoint)
    config.is_decoder = True
    model = XLMRobertaXLForCausalLM.from_pretrained(checkpoint, config=config)

    inputs = tokenizer(sentence(), return_tensors="pt")
    prediction_logits = model(**inputs).logits
    outputs = model(**inputs, labels=inputs["input_ids"])
    theirs = in_transformers(model, tmp_path)
    with torch.no_grad():
        expected = theirs(**inputs, labels=inputs["input_ids"])
    same(prediction_logits, expected.logits)
    same(outputs.loss, expected.loss)
    assert theirs.config.is_decoder


def test_example_of_sequence_classification(checkpoint, tmp_path):
    from mlm import AutoTokenizer, XLMRobertaXLForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = XLMRobertaXLForSequenceClassification.from_pretrained(checkpoint)

    inputs = tokenizer(sentence(), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits

    predicted_class_id = logits.argmax().item()
    assert model.config.id2label[predicted_class_id] in ("LABEL_0", "LABEL_1")

    assert len(model.config.id2label) == 2
    with pytest.warns(UserWarning, match=r"no classifier.dense.weight.*must be trained"):
        model = XLMRobertaXLForSequenceClassification.from_pretrained(checkpoint, num_labels=3)

    labels = torch.tensor([1])
    outputs = model(**inputs, labels=labels)
    assert model.config.id2label[2] == "LABEL_2"
    with torch.no_grad():
        expected = in_transformers(model, tmp_path)(**inputs, labels=labels)
    same(outputs.logits, expected.logits)
    same(outputs.loss, expected.loss)


def test_example_of_sequence_classification_with_several_labels(checkpoint, tmp_path):
    from mlm import AutoTokenizer, XLMRobertaXLForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = XLMRobertaXLForSequenceClassification.from_pretrained(
        checkpoint, num_labels=4, problem_type="multi_label_classification"
    )

    inputs = tokenizer(sentence(), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits

    chosen = torch.sigmoid(logits).squeeze(dim=0) > 0.5
    predicted_class_ids = torch.arange(0, logits.shape[-1])[chosen]

    num_labels = len(model.config.id2label)
    hot = torch.nn.functional.one_hot(predicted_class_ids[None, :].clone(), num_classes=num_labels)
    labels = torch.sum(hot, dim=1).to(torch.float)
    loss = model(**inputs, labels=labels).loss
    with torch.no_grad():
        expected = in_transformers(model, tmp_path)(**inputs, labels=labels)
    same(loss, expected.loss)


def test_example_of_token_classification(checkpoint, tmp_path):
    from mlm import AutoTokenizer, XLMRobertaXLForTokenClassification

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = XLMRobertaXLForTokenClassification.from_pretrained(checkpoint)

    inputs = tokenizer(sentence(), add_special_tokens=False, return_tensors="pt")

    with torch.no_grad():
        logits = model(**inputs).logits

    predicted_token_class_ids = logits.argmax(-1)
    predicted_tokens_classes = [
        model.config.id2label[t.item()] for t in predicted_token_class_ids[0]
    ]
    assert len(predicted_tokens_classes) == inputs.input_ids.shape[1]
    assert not {0, 2} & set(inputs.input_ids[0].tolist())

    labels = predicted_token_class_ids
    loss = model(**inputs, labels=labels).loss
    with torch.no_grad():
        same(loss, in_transformers(model, tmp_path)(**inputs, labels=labels).loss)


def test_example_of_question_answering(checkpoint, tmp_path):
    from mlm import AutoTokenizer, XLMRobertaXLForQuestionAnswering

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = XLMRobertaXLForQuestionAnswering.from_pretrained(checkpoint)

    question, text = sentence(0), sentence(1)

    inputs = tokenizer(question, text, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)

    answer_start_index = outputs.start_logits.argmax()
    answer_end_index = outputs.end_logits.argmax()

    predict_answer_tokens = inputs.input_ids[0, answer_start_index : answer_end_index + 1]
    answer = tokenizer.decode(predict_answer_tokens, skip_special_tokens=True)

    target_start_index = torch.tensor([14])
    target_end_index = torch.tensor([15])

    outputs = model(**inputs, start_positions=target_start_index, end_positions=target_end_index)
    words = their_tokenizer(checkpoint)
    given = words(question, text, return_tensors="pt")
    with torch.no_grad():
        expected = in_transformers(model, tmp_path)(
            **given, start_positions=target_start_index, end_positions=target_end_index
        )
    assert answer == words.decode(predict_answer_tokens, skip_special_tokens=True)
    same(outputs.start_logits, expected.start_logits)
    same(outputs.loss, expected.loss)


def test_example_of_multiple_choice(checkpoint, tmp_path):
    from mlm import AutoTokenizer, XLMRobertaXLForMultipleChoice

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = XLMRobertaXLForMultipleChoice.from_pretrained(checkpoint)

    prompt, choice0, choice1 = sentence(0), sentence(1), sentence(2)
    labels = torch.tensor(0).unsqueeze(0)

    encoding = tokenizer([prompt, prompt], [choice0, choice1], return_tensors="pt", padding=True)
    outputs = model(**{k: v.unsqueeze(0) for k, v in encoding.items()}, labels=labels)

    words = their_tokenizer(checkpoint)
    given = words([prompt, prompt], [choice0, choice1], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = in_transformers(model, tmp_path)(
            **{k: v.unsqueeze(0) for k, v in given.items()}, labels=labels
        )
    assert outputs.logits.shape == (1, 2)
    same(outputs.logits, expected.logits)
    same(outputs.loss, expected.loss)
