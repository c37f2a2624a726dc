"""The table of verbs, in the order of the way from text to a published model."""

from launch.verbs import (
    audit,
    checkpoints,
    export,
    fill,
    import_,
    shards,
    tokenizer,
    train,
)

VERBS = {
    "tokenizer": tokenizer.VERB,
    "shards": shards.VERB,
    "train": train.VERB,
    "checkpoints": checkpoints.VERB,
    "audit": audit.VERB,
    "fill": fill.VERB,
    "import": import_.VERB,
    "export": export.VERB,
}
