"""What a command reports besides its answers: `mlm: ...`, a line each, on standard error."""

import logging
import sys


class _Messages(logging.Handler):
    """Unlike `StreamHandler`, it writes to what `sys.stderr` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        # A bar that another process draws on this line is drawn again below.
        clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
        print(clear + self.format(record), file=sys.stderr, flush=True)


def show_messages() -> None:
    """Shows the messages of our own packages; once for a process."""
    for name in ("launch", "mlm", "parallel"):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Messages) for handler in logger.handlers):
            handler = _Messages(logging.INFO)
            handler.setFormatter(logging.Formatter("mlm: %(message)s"))
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
