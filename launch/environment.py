"""What a run was started with: a row of `starts.jsonl`."""

import json
import os
import secrets
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

from launch import ROOT

PACKAGES = ("polymlm", "torch", "deepspeed", "sentencepiece", "webdataset", "hydra-core", "wandb")


def started_with() -> dict[str, Any]:
    """Time, host, command and versions of this process; `commit` and whether files differ from it,
    where the code is of a git repository; `attempt`, by which an outcome is known to be of it."""
    return {
        "attempt": attempt(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": os.uname().nodename,
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "versions": {"python": sys.version.split()[0]} | _versions(),
        **_commit(),
    }


@cache
def attempt() -> str:
    """The name of this start: a script's POLYMLM_ATTEMPT, which its outcome has, or a new one."""
    return os.environ.get("POLYMLM_ATTEMPT") or secrets.token_hex(4)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return found


def _commit() -> dict[str, Any]:
    """Of the checkout, or of the git repository that pip installed from."""
    if (ROOT / ".git").exists():
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return {} if commit is None else {"commit": commit, "modified": bool(changed)}
    try:
        direct = metadata.distribution("polymlm").read_text("direct_url.json")
        commit = json.loads(direct or "{}").get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError):
        commit = None
    return {} if commit is None else {"commit": commit, "modified": False}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
