"""Which chunk is asked of which stream: the pool, what streams owe, and the asks as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.swarm.asks import ASK, FIRST_DEPTH, MOST_DEPTH, SLOW_DEPTH, Ask, Asks, decode_ask, runs


@given(st.lists(st.integers(0, 300), unique=True))
def test_runs_name_the_same_chunks_in_the_same_order(pieces: list[int]) -> None:
    said = [n for ask in runs(pieces) for n in range(ask.first, ask.first + ask.count)]
    assert said == pieces


def test_a_long_run_is_one_ask() -> None:
    assert runs(range(5, 2000)) == [Ask(5, 1995)]


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_an_ask_comes_back(first: int, count: int, offset: int) -> None:
    ask = Ask(first, count, offset)
    assert decode_ask(ask.encode(), 200) == ask


@given(st.binary(max_size=2 * ASK.size))
def test_what_is_no_ask_is_refused(data: bytes) -> None:
    try:
        ask = decode_ask(data, 10)
    except InvalidInputError:
        return
    assert ask.first + ask.count <= 10


def test_chunks_that_matter_come_first_and_others_in_order() -> None:
    asks = Asks([1000] * 10)
    asks.want(range(10), first={7, 4})
    asks.open("a")
    assert asks.next("a", 0.1) == [4, 7, 0, 1, 2, 3, 5, 6, 8, 9]


def test_a_stream_is_asked_for_what_it_is_able_to_give_alone() -> None:
    asks = Asks([1000] * 10)
    asks.want(range(10), first={8})
    asks.open("a")
    asks.open("b")
    assert asks.next("a", 0.1, able={2, 8, 5}) == [8, 2, 5]
    assert asks.next("a", 0.1, able={2, 8, 5}) == []
    assert asks.next("b", 0.1) == [0, 1, 3, 4, 6, 7, 9]


def test_a_stream_is_asked_for_more_the_faster_and_farther_it_is() -> None:
    asks = Asks([50_000] * 4000)
    asks.want(range(4000))
    asks.open("a")
    first = len(asks.next("a", 0.6))
    assert FIRST_DEPTH <= first * 50_000 < FIRST_DEPTH + 50_000
    for piece in range(first):
        asks.got("a", 50_000, (piece + 1) * 0.1)
        asks.settled("a", piece)
    assert asks.rate_of("a") == pytest.approx(500_000, rel=0.3)
    deep = sum(50_000 for _ in asks.next("a", 0.6))
    assert deep > 2 * FIRST_DEPTH
    for number in range(200):
        asks.got("a", 10**9, 10.0 + number)
    asks.next("a", 10.0)
    assert asks.owes("a") <= MOST_DEPTH + 50_000


def test_a_slow_stream_owes_little_once_that_is_known() -> None:
    asks = Asks([10_000] * 100)
    asks.want(range(100))
    asks.open("a")
    first = asks.next("a", 1.0)
    assert sum(10_000 for _ in first) >= FIRST_DEPTH
    for number, piece in enumerate(first):
        asks.got("a", 10_000, number * 5.0)  # 2 kB/s
        asks.settled("a", piece)
    assert SLOW_DEPTH <= len(asks.next("a", 1.0)) * 10_000 < SLOW_DEPTH + 10_000


def test_what_a_stream_takes_to_begin_is_no_part_of_its_rate() -> None:
    asks = Asks([10] * 3)
    asks.open("a")
    assert not asks.got("a", 100_000, 50.0)  # when it was on its way nobody knows
    assert not asks.got("a", 100_000, 50.1)
    assert asks.got("a", 200_000, 50.3)
    assert asks.rate_of("a") == pytest.approx(1_000_000)
    assert not asks.got("a", 200_000, 50.7)
    assert not asks.got("gone", 1, 60.0)


def test_nothing_is_asked_of_a_stream_that_is_gone() -> None:
    asks = Asks([10] * 3)
    asks.want(range(3))
    asks.open("a")
    assert sorted(asks.next("a", 0.1)) == [0, 1, 2]
    assert sorted(asks.close("a")) == [0, 1, 2]
    assert asks.next("a", 0.1) == []
    asks.got("a", 10, 1.0)
    assert not asks.settled("a", 0)
    assert asks.close("a") == []
    assert asks.waiting == 3


class Streams(RuleBasedStateMachine):
    """Streams come and go; a chunk is always in exactly one place."""

    def __init__(self) -> None:
        super().__init__()
        self.asks = Asks([100_000] * 12)
        self.asks.want(range(12))
        self.owed: dict[str, set[int]] = {}
        self.done: set[int] = set()
        self.now = 0.0

    @rule(name=st.sampled_from("abc"))
    def open(self, name: str) -> None:
        if name not in self.owed:
            self.asks.open(name)
            self.owed[name] = set()

    @rule(name=st.sampled_from("abc"))
    def ask(self, name: str) -> None:
        got = self.asks.next(name, 0.5)
        assert name in self.owed or not got
        for piece in got:
            self.owed[name].add(piece)

    @rule(name=st.sampled_from("abc"), piece=st.integers(0, 11))
    def give(self, name: str, piece: int) -> None:
        self.now += 0.1
        good = self.asks.settled(name, piece)
        assert good == (piece in self.owed.get(name, ()))
        if good:
            self.owed[name].discard(piece)
            self.done.add(piece)

    @rule(name=st.sampled_from("abc"))
    def close(self, name: str) -> None:
        assert set(self.asks.close(name)) == self.owed.pop(name, set())

    @rule(first=st.sets(st.integers(0, 11)))
    def want(self, first: set[int]) -> None:
        self.asks.want(set(range(12)) - self.done, first)

    @invariant()
    def everything_is_somewhere_once(self) -> None:
        owed = [piece for pieces in self.owed.values() for piece in pieces]
        assert len(owed) == len(set(owed))
        assert set(owed) == set(self.asks.asked)
        assert self.asks.waiting + len(owed) + len(self.done) == 12
        for name, pieces in self.owed.items():
            assert self.asks.owes(name) == 100_000 * len(pieces)


TestStreams = Streams.TestCase
