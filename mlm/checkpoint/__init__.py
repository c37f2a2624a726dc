"""Checkpoints: the canonical state under layout-free names, whole or not at all.

`checkpoints/step-00001000/` holds the files of torch.distributed.checkpoint (fp32 master weights
under `weight/<name>`, the moments under `exp_avg/<name>` and `exp_avg_sq/<name>`, all by their
published names) and `checkpoint.json`: step, config, data phase, tracker id, and the SHA-256 of
every file. It is written aside, verified and renamed, so a folder of that name was whole. That of
an import is of step 0 and has no moments.
"""

from mlm.checkpoint.choice import choose
from mlm.checkpoint.folder import (
    FOLDER,
    MANIFEST,
    Imported,
    Manifest,
    all_checkpoints,
    newest,
    read_manifest,
    save_import,
    verify,
)
from mlm.checkpoint.state import restore
from mlm.checkpoint.writing import Keep, Saver

__all__ = [
    "FOLDER",
    "MANIFEST",
    "Imported",
    "Keep",
    "Manifest",
    "Saver",
    "all_checkpoints",
    "choose",
    "newest",
    "read_manifest",
    "restore",
    "save_import",
    "verify",
]
