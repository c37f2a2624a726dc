import threading

import pytest

from mlm.data.prefetch import Prefetcher
from mlm.errors import DataError


def test_prefetcher_returns_values_in_order_ahead_of_their_use():
    made = []

    def make(number):
        made.append((number, threading.current_thread().name))
        return number * number

    with Prefetcher(make, start=3, depth=2) as ahead:
        assert [ahead.next() for _ in range(4)] == [9, 16, 25, 36]
    assert [number for number, _ in made][:4] == [3, 4, 5, 6]
    assert len(made) <= 6
    assert all(name != threading.current_thread().name for _, name in made)


def test_prefetcher_makes_the_next_value_while_one_is_used():
    second = threading.Event()

    def make(number):
        if number == 1:
            second.set()
        return number

    with Prefetcher(make, start=0, depth=1) as ahead:
        assert ahead.next() == 0
        assert second.wait(timeout=10)


def test_prefetcher_stays_exactly_depth_ahead():
    made = [threading.Event() for _ in range(20)]

    def make(number):
        made[number].set()
        return number

    with Prefetcher(make, start=0, depth=3) as ahead:
        for used in range(5):
            assert ahead.next() == used
            assert made[used + 3].wait(timeout=10)
            assert not made[used + 4].wait(timeout=0.05)


def test_prefetcher_raises_an_error_at_its_place_and_in_every_further_call():
    def make(number):
        if number == 2:
            raise DataError("bad shard")
        return number

    with Prefetcher(make, start=0, depth=3) as ahead:
        assert [ahead.next(), ahead.next()] == [0, 1]
        for _ in range(2):
            with pytest.raises(DataError, match="bad shard"):
                ahead.next()


def test_prefetcher_close_ends_the_thread():
    before = threading.active_count()
    ahead = Prefetcher(lambda number: number, start=0, depth=4)
    ahead.next()
    ahead.close()
    assert threading.active_count() == before
