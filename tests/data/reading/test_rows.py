"""Rows copied out of all of memory."""

import numpy as np
import pytest

from mlm.data.reading.memory import LONGEST, place_of, rows_at


@pytest.mark.parametrize("length", [1, 2, 513, LONGEST, LONGEST + 1, 3 * LONGEST + 5])
def test_rows_are_those_of_their_places(length):
    arrays = [np.arange(4 * LONGEST + n, dtype=np.int32) * (n + 1) for n in range(3)]
    firsts = [(n % 3, 7 * n) for n in range(8)]
    places = np.array([place_of(arrays[n]) + first for n, first in firsts])
    rows = rows_at(places, length)
    assert (rows.shape, rows.dtype) == ((8, length), np.int32)
    assert rows.flags.c_contiguous
    for row, (n, first) in zip(rows, firsts, strict=True):
        assert np.array_equal(row, arrays[n][first : first + length])
    rows[:] = -1  # they are copies
    assert all(array.min() == 0 for array in arrays)


def test_no_rows():
    assert rows_at(np.array([], np.int64), 5).shape == (0, 5)


def test_a_part_of_an_array_has_its_own_place():
    array = np.arange(100, dtype=np.int32)
    assert place_of(array[30:]) == place_of(array) + 30
    assert rows_at(np.array([place_of(array[30:])]), 3).tolist() == [[30, 31, 32]]
