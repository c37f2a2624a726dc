"""The terminal while a bar is on it: `^C` is not written into the bar."""

import json
import os
import pty
import sys
import termios
from contextlib import suppress

from launch.terminal import terminal_for_bars


def on_terminal(call) -> list:
    """What a call returns in a process whose terminal is a new one."""
    child, terminal = pty.fork()
    if child == 0:
        sys.stdin = os.fdopen(0)  # in place of the one of pytest
        try:
            os.write(1, json.dumps(call()).encode())
        finally:
            os._exit(0)
    raw = b""
    with suppress(OSError):  # the child has ended
        while part := os.read(terminal, 1 << 16):
            raw += part
    os.close(terminal)
    os.waitpid(child, 0)
    return json.loads(raw)


def shows_control_characters() -> bool:
    return bool(termios.tcgetattr(0)[3] & termios.ECHOCTL)


def test_terminal_shows_no_control_characters_during_a_bar():
    def states() -> list[bool]:
        found = [shows_control_characters()]
        with suppress(KeyError), terminal_for_bars():
            found.append(shows_control_characters())
            raise KeyError
        return [*found, shows_control_characters()]

    assert on_terminal(states) == [True, False, True]


def test_terminal_is_left_alone_in_the_background():
    """Setting it would stop the process."""

    def codes() -> list[int]:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)  # a group of its own, which is not in the foreground
            code = 1
            with terminal_for_bars():
                code = 0 if shows_control_characters() else 2
            os._exit(code)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]

    assert on_terminal(codes) == [0]


def test_terminal_need_not_be_one(monkeypatch, tmp_path):
    with (tmp_path / "file").open("w+") as file:
        monkeypatch.setattr("sys.stdin", file)
        with terminal_for_bars():
            pass
    monkeypatch.setattr("sys.stdin", None)
    with terminal_for_bars():
        pass
