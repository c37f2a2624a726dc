"""Jobs for worker processes, in a module that workers import quickly."""

import os

from mlm.errors import DataError


def die(progress, name: str) -> None:
    os._exit(9)


def endless_or_bad(progress, name: str) -> None:
    if name == "bad":
        raise DataError("bad text")
    while True:
        progress(0)


def add(progress, amount: int) -> int:
    progress(amount)
    return 10 * amount
