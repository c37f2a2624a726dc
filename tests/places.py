"""Where the tests find the project, and real text in many languages next to it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "pretrain"
