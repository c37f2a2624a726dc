"""Ctrl-C during the training of a tokenizer."""

import os
import signal
import time
from threading import Timer

import pytest

from mlm.tokenizer.training import train
from tests.text_fixtures import corpus


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_interrupt_of_the_training_is_seen_at_once(tmp_path, seconds):
    """Also while sentencepiece reads lines, which reported it as an error of the text."""

    def on_fit(size: int) -> None:
        Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(1)  # the thread that reads lines; a large corpus takes that long

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train(corpus(), tmp_path / "out", vocab_size=400, on_fit=on_fit)
    assert time.monotonic() - began < 30
    assert list(tmp_path.iterdir()) == []
