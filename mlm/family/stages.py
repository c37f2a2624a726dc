"""A class of the family as one list of layers that pipeline stages are cut from."""

from mlm.batch.labelled_batch import LabelledBatch
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.head_layers import HeadSettings
from mlm.family.heads import HEADS, Head
from mlm.family.model import Headed
from mlm.family.pretrained import Pretrained
from mlm.model.encoder import SetWeights, encoder_layers
from mlm.model.initial import initialise
from parallel.groups import Group
from parallel.pipeline.stages import StageLayer


def stage_layers(
    model: type[Pretrained],
    config: XLMRobertaXLConfig,
    *,
    group: Group = None,
    seed: int = 0,
    attention: str = "auto",
    seq_len: int = 512,
    set_weights: SetWeights | None = None,
) -> list[StageLayer]:
    """A class of the family with a head as layers for `build_engine`.

    The last one gives a micro-batch's mean loss times its `loss_scale`. Batches are of the type
    `LabelledBatch`; `check_labels` checks their labels where they are made.
    group: splits every layer; seed: of the initial weights; set_weights: gives a module, by its
    published name, other ones, such as `mlm.weights.load` reads from a folder; seq_len: weighs the
    layers.
    Raises ValueError for what a stage cannot do.
    """
    shape = config.shape()
    if config.add_cross_attention or config.pruned_heads:
        what = "add_cross_attention=True" if config.add_cross_attention else "pruned_heads"
        raise ValueError(
            f"{what} is unsupported in pipeline stages, whose layers are all alike and see one "
            f"text; train such a model as one module"
        )
    head = _head_of(model)
    assert head.layers is not None
    set_weights = set_weights or (lambda module, name: initialise(module, name, shape, seed))
    layers = encoder_layers(
        shape,
        set_weights,
        group=group,
        seq_len=seq_len,
        options=config.layer_options(attention),
        tied=head.tied,
    )
    return layers + head.layers(model, HeadSettings(config, group, set_weights, seq_len))


def check_labels(model: type[Pretrained], config: XLMRobertaXLConfig, batch: LabelledBatch) -> None:
    """Raises ValueError for labels that the head cannot be trained on: once, where a batch is
    made, since the layers of a pipeline do not read the values of a tensor."""
    _head_of(model)
    assert issubclass(model, Headed)
    model.check_labels(config, batch.labels, batch.attention_mask, batch.choices)


def _head_of(model: type[Pretrained]) -> Head:
    head = HEADS.get(model.__name__)
    if head is None or head.layers is None:
        raise ValueError(
            f"{model.__name__} has no head that gives a loss; choose from "
            f"{', '.join(name for name, each in HEADS.items() if each.layers)}"
        )
    return head
