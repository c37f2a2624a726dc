"""The `mlm` command: composition of settings, and the start of the ranks.

`python -m launch` and torchrun put the working folder in front of `sys.path`, where a user's own
`conf/` or `parallel/` would shadow ours. It is removed before anything of ours is imported, unless
our packages are there.
"""

import site
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IS_CHECKOUT = str(ROOT) not in site.getsitepackages()  # else it is on every path already

FIRST = sys.path[:1] if not sys.flags.safe_path else []

if FIRST in ([""], [str(Path.cwd())]) and Path.cwd() != ROOT:
    del sys.path[0]
