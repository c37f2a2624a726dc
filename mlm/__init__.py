"""Multilingual masked language models: pretraining, and the published XLM-RoBERTa-XL family.

The classes of the family are imported when they are asked for: `import mlm` loads no torch.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "AutoTokenizer": "mlm.trained.auto_tokenizer",
    "XLMRobertaXLConfig": "mlm.family.config",
    "XLMRobertaXLForCausalLM": "mlm.family.language",
    "XLMRobertaXLForMaskedLM": "mlm.family.language",
    "XLMRobertaXLForMultipleChoice": "mlm.family.classification",
    "XLMRobertaXLForQuestionAnswering": "mlm.family.question_answering",
    "XLMRobertaXLForSequenceClassification": "mlm.family.classification",
    "XLMRobertaXLForTokenClassification": "mlm.family.classification",
    "XLMRobertaXLModel": "mlm.family.model",
}
__all__ = list(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    """Of the distribution; "unknown" in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("polymlm")
    except PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES, "__version__"])
