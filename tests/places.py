"""Where the tests find the project, and real text in many languages."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# One `LANGUAGE.txt.xz` per language; tests that need it are skipped where it is missing.
REAL = Path(os.environ.get("POLYMLM_REAL_TEXT", ROOT.parent / "shared" / "data" / "pretrain"))
