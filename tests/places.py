"""Where the tests find the project and, beside it, real text in many languages."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "pretrain"
