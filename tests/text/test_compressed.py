"""Compressed files against the tools that make them: nothing is lost in silence."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess

import pytest
import zstandard

from mlm.text.compressed import ERRORS, FORMATS, ZSTD_WINDOW, unpacked

PACK = {
    "xz": lzma.compress,
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "bz2": bz2.compress,
}
TOOL = {"xz": "xz", "gz": "gzip", "zst": "zstd", "bz2": "bzip2"}
ONE, TWO = b"first " * 50_000, bytes(range(256)) * 9
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # a frame of zstandard without data
ZEROS = bytes(4)


def read(content: bytes, packed: str) -> bytes:
    return unpacked(io.BufferedReader(io.BytesIO(content)), packed).read()


def tool(content: bytes, packed: str) -> bytes | None:
    """What the format's own program makes of a file; None: it refuses it."""
    done = subprocess.run([TOOL[packed], "-dc"], input=content, capture_output=True)
    return done.stdout if done.returncode == 0 else None


def damaged(stream: bytes) -> bytes:
    return stream[:13] + bytes([stream[13] ^ 0xFF]) + stream[14:]


def files(packed: str) -> dict[str, bytes]:
    one, two = PACK[packed](ONE), PACK[packed](TWO)
    made = {
        "one": one,
        "one after another": one + two,
        "empty data": PACK[packed](b"") + two,
        "no bytes": b"",
        "cut": one[:-3],
        "cut in the second": one + two[:-3],
        "cut in the second's header": one + two[:3],
        "damaged": damaged(one),
        "second damaged near its start": one + damaged(two),
        "text behind": one + b"and more",
        "a byte behind": one + b"x",
        "zeros before": ZEROS + one,
    }
    if packed == "xz":
        made |= {
            "padding": one + ZEROS,
            "padding between": one + ZEROS * 3 + two + ZEROS,
            "padding that is too short": one + ZEROS[:3] + two,
            "text behind padding": one + ZEROS + b"and more",
        }
    if packed == "zst":
        made |= {"a skippable frame between": one + SKIPPABLE + two, "zeros behind": one + ZEROS}
    return made


CASES = [(packed, what) for packed in FORMATS for what in files(packed)]


@pytest.mark.parametrize(("packed", "what"), CASES)
def test_unpacked_reads_or_refuses_what_the_formats_own_tool_does(packed, what):
    if shutil.which(TOOL[packed]) is None:
        pytest.skip(f"{TOOL[packed]} is not installed")
    content = files(packed)[what]
    expected = tool(content, packed)
    if packed == "bz2" and "behind" in what:
        assert expected == ONE  # it warns, and succeeds
        expected = None
    if expected is not None:
        assert read(content, packed) == expected
        return
    with pytest.raises(ERRORS):
        read(content, packed)


@pytest.mark.parametrize("packed", FORMATS)
def test_unpacked_reads_streams_that_end_anywhere_in_what_is_read_at_once(packed, monkeypatch):
    monkeypatch.setattr("mlm.text.compressed.READ", 5)
    assert read(PACK[packed](ONE) + PACK[packed](TWO), packed) == ONE + TWO
    if packed == "xz":
        padded = PACK[packed](ONE) + ZEROS * 2 + PACK[packed](TWO)
        assert read(padded, packed) == ONE + TWO


def test_unpacked_reads_zstandard_with_a_window_of_two_gigabytes():
    """As `zstd --long=31` writes it: the reader's default is at most 128 MiB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = frame.compress(ONE) + frame.flush()  # without its size, as of a pipe
    assert zstandard.get_frame_parameters(content).window_size == ZSTD_WINDOW
    assert read(content, "zst") == ONE


def test_unpacked_reads_what_is_not_compressed_as_it_is():
    file = io.BufferedReader(io.BytesIO(ONE))
    assert unpacked(file, None) is file
