"""Compares a Hugging Face folder with the checkpoint that it was made of, on real text.

`plain_logits` reads the folder's own files and nothing else, and shares no code with the model or
with what wrote them.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from mlm.errors import UserError
from mlm.text.corpus import documents, languages, sample_corpus
from mlm.text.ids import FIRST_PIECE, SHIFT
from mlm.text.tokenizer import Tokenizer
from mlm.trained import Checkpoint

TOLERANCE = 1e-4  # of a logit, absolute
LANGUAGES = ("en", "de", "ru", "ar", "hi", "zh-Hans")  # whose logits are compared
TOKENS = 48  # of a text at most
TIE = 1e-5  # between scores of two segmentations, relative: what sentencepiece's fp32 cannot tell
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def check_export(trained: Checkpoint, folder: Path) -> str:
    """A sentence that says what was compared; raises UserError where something differs."""
    lines = {name: next(documents(path))[0] for name, path in languages(sample_corpus()).items()}
    tokenizer = trained.tokenizer
    _check_ids(tokenizer, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), lines)
    limit = min(TOKENS, trained.config.max_tokens)
    ids, lengths = padded(tokenizer, [lines[name] for name in LANGUAGES], limit)
    expected = trained.model().logits(ids, lengths)
    largest = _difference(plain_logits(folder, ids, lengths), expected, lengths)
    _refuse(largest, "read again from its files")
    said = (
        f"Its files were read again: ids are equal on {len(lines)} lines, and logits on "
        f"{int(lengths.sum())} tokens of {len(LANGUAGES)} languages differ by at most {largest:.1e}"
    )
    if find_spec("transformers") is None:
        return f"{said}. transformers is not installed, so it was not asked."
    version, logits, theirs = _transformers(folder, ids, lengths)
    _check_ids(tokenizer, theirs, lines)
    largest = _difference(logits, expected, lengths)
    _refuse(largest, f"loaded in transformers {version}")
    return f"{said}; loaded in transformers {version}, by at most {largest:.1e}."


def _transformers(
    folder: Path, ids: Tensor, lengths: Tensor
) -> tuple[str, Tensor, tokenizers.Tokenizer]:
    """The version of transformers, its logits, and the tokenizer that it loads from a folder."""
    import transformers

    version = transformers.__version__
    try:
        with _quiet(transformers.logging), torch.no_grad():
            model = transformers.AutoModelForMaskedLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
            loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            mask = _attended(ids, lengths).long()
            logits = model.eval()(input_ids=ids, attention_mask=mask).logits
    except Exception as error:  # whatever it raises, the folder does not load in it
        raise UserError(
            f"transformers {version} cannot load the exported model "
            f"({(str(error) or repr(error)).splitlines()[0]}), so nothing was written; report it, "
            f"or export where another version is installed"
        ) from error
    return version, logits, loaded.backend_tokenizer


def padded(tokenizer: Tokenizer, texts: list[str], limit: int) -> tuple[Tensor, Tensor]:
    """Ids of texts as `<s> text </s>`, cut to `limit` tokens and padded: (texts, longest), and
    the lengths (texts,)."""
    rows = [ids[: limit - 2].tolist() for ids in tokenizer.encode(texts)]
    rows = [[tokenizer.bos, *row, tokenizer.eos] for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), tokenizer.pad)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids, lengths


@torch.no_grad()
def plain_logits(folder: Path, ids: Tensor, lengths: Tensor) -> Tensor:
    """The logits that a folder's files give: (batch, seq_len) -> (batch, seq_len, vocab_size).

    XLM-R-XL written out from its published description, in fp32, a weight in memory at a time.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]
    act, pad = ACTIVATIONS[config["hidden_act"]], config["pad_token_id"]
    read = _reader(folder)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ read(f"{name}.weight").T + read(f"{name}.bias")

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], read(f"{name}.weight"), read(f"{name}.bias"), eps)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    words = read("roberta.embeddings.word_embeddings.weight")
    positions = pad + (ids != pad).cumsum(1) * (ids != pad)
    x = words[ids] + read("roberta.embeddings.position_embeddings.weight")[positions]
    x = x + read("roberta.embeddings.token_type_embeddings.weight")[0]
    hidden = torch.where(_attended(ids, lengths), 0.0, -math.inf)[:, None, None, :]
    for number in range(config["num_hidden_layers"]):
        layer = f"roberta.encoder.layer.{number}"
        y = norm(x, f"{layer}.attention.self_attn_layer_norm")
        query, key, value = (
            split(linear(y, f"{layer}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1]) + hidden
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{layer}.attention.output.dense")
        y = act(linear(norm(x, f"{layer}.LayerNorm"), f"{layer}.intermediate.dense"))
        x = x + linear(y, f"{layer}.output.dense")
    x = norm(x, "roberta.encoder.LayerNorm")
    x = norm(F.gelu(linear(x, "lm_head.dense")), "lm_head.layer_norm")
    return x @ words.T + read("lm_head.bias")


def _reader(folder: Path) -> Callable[[str], Tensor]:
    """Finds a tensor by name in whichever of the folder's safetensors files has it."""
    files: dict[str, Path] = {}
    for path in folder.glob("*.safetensors"):
        files |= dict.fromkeys(safe_open(path, framework="pt").keys(), path)

    def read(name: str) -> Tensor:
        if name not in files:
            raise UserError(f"the export has no {name} in its files; report this, with its model")
        with safe_open(files[name], framework="pt") as file:
            return file.get_tensor(name)

    return read


def _attended(ids: Tensor, lengths: Tensor) -> Tensor:
    """(batch, seq_len) bool, true before the padding."""
    return torch.arange(ids.shape[1]) < lengths[:, None]


def _difference(found: Tensor, expected: Tensor, lengths: Tensor) -> float:
    """The largest on any position before the padding; NaN where any is."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected)[_attended(expected[..., 0], lengths)].abs().max())


def _refuse(largest: float, how: str) -> None:
    if not largest <= TOLERANCE:  # NaN, too
        raise UserError(
            f"the exported model, {how}, gives logits that differ from the checkpoint's by up to "
            f"{largest:.3g}, and {TOLERANCE:g} is allowed, so nothing was written; check the "
            f"checkpoint, and report this where it is a good one"
        )


def _check_ids(ours: Tokenizer, theirs: tokenizers.Tokenizer, lines: dict[str, str]) -> None:
    if (theirs.get_vocab_size(), theirs.token_to_id("<mask>")) != (ours.size, ours.mask):
        raise UserError(
            f"the exported tokenizer has {theirs.get_vocab_size()} ids in place of {ours.size}, so "
            f"nothing was written; check {ours.model_path} for a piece that stands in it twice"
        )
    for language, ids in zip(lines, ours.encode(list(lines.values())), strict=True):
        found = theirs.encode(lines[language], add_special_tokens=False).ids
        if found != ids.tolist() and not _tie(ours, found, ids.tolist()):
            raise UserError(
                f"the exported tokenizer gives other ids than sentencepiece to a line of "
                f"{language}, {lines[language][:40]!r}, so nothing was written; report this with "
                f"the model {ours.model_path}"
            )


def _tie(tokenizer: Tokenizer, found: list[int], ids: list[int]) -> bool:
    """Whether two segmentations of one text have the same score as far as fp32 tells.

    Sentencepiece adds scores up in fp32 and the tokenizers library in fp64, so a tie that only
    rounding breaks may fall to either side; the ids of a line in some hundred thousand differ so.
    """
    if "".join(tokenizer.pieces(found)) != "".join(tokenizer.pieces(ids)):
        return False
    processor = SentencePieceProcessor(model_file=str(tokenizer.model_path))
    one, two = (
        sum(processor.get_score(id - SHIFT) for id in row if id >= FIRST_PIECE)
        for row in (found, ids)
    )
    return abs(one - two) <= TIE * abs(two)


@contextmanager
def _quiet(logging) -> Iterator[None]:
    """Without the warnings and bars of a library that has this `logging`."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
