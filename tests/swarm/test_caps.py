"""Caps that torrents and streams hold together."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.swarm.caps import LEAST_SHARE, Caps, Share
from peat_p2p.swarm.session import Limits
from peat_p2p.swarm.throttle import Throttle


class Session:
    def __init__(self) -> None:
        self.received = self.sent = 0
        self.whole = self.outside = Limits()

    def ask_traffic(self) -> None:
        pass

    def set_limits(self, limits: Limits) -> None:
        self.whole = limits

    def set_outside_limits(self, limits: Limits) -> None:
        self.outside = limits


def settle(share: Share, cap: float, torrents: float, streams: float) -> tuple[float, float]:
    """What both get, of what they would use, after a few looks."""
    got = 0.0, 0.0
    for _ in range(6):
        got = min(torrents, cap * (1 - share.streams)), min(streams, cap * share.streams)
        share.look(cap, *got)
    return got


def test_who_is_alone_gets_nearly_all_and_two_share_evenly() -> None:
    share, cap = Share(), 1_000_000.0
    assert settle(share, cap, 0.0, 9e9)[1] >= cap * (1 - LEAST_SHARE)
    assert settle(share, cap, 9e9, 0.0)[0] >= cap * (1 - LEAST_SHARE)
    assert settle(share, cap, 9e9, 9e9) == (cap / 2, cap / 2)
    torrents, streams = settle(share, cap, 100_000.0, 9e9)
    assert torrents == 100_000.0
    assert streams >= 0.85 * cap


rates = st.floats(0, 1e10)


@given(st.lists(st.tuples(rates, rates), max_size=30), st.integers(1, 10**10))
def test_shares_stay_within_the_cap_and_nobody_is_left_without(looks: list[tuple[float, float]], cap: int) -> None:
    share = Share()
    for torrents, streams in looks:
        share.look(cap, torrents, streams)
        assert 0 < share.streams <= 1 - LEAST_SHARE
        assert share.streams >= LEAST_SHARE


caps = st.integers(0, 10**9).map(lambda cap: cap and cap + 100)


@given(caps, caps, caps, caps)
def test_both_sides_together_stay_below_each_cap(down: int, up: int, outside_down: int, outside_up: int) -> None:
    taken, given_away, session = Throttle(lambda: 0.0), Throttle(lambda: 0.0), Session()
    both = Caps(taken, given_away, lambda: 0.0)
    both.set_whole(down, up)
    both.bind(session)
    both.set_outside(outside_down, outside_up)
    for throttle, whole, outside, limit, beyond in (
        (taken, down, outside_down, session.whole.download, session.outside.download),
        (given_away, up, outside_up, session.whole.upload, session.outside.upload),
    ):
        for cap, part in ((whole, limit), (outside, beyond)):
            assert (part == 0) == (cap == 0)
            if cap:
                assert throttle.rate > 0
                assert throttle.rate + part <= cap
        assert (throttle.rate == 0) == (not whole and not outside)


async def test_a_cap_moves_to_who_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peat_p2p.swarm.caps._TICK_S", 0.01)
    clock = iter(x * 0.01 for x in range(10**6))
    taken, given_away, session = Throttle(lambda: 0.0), Throttle(lambda: 0.0), Session()
    both = Caps(taken, given_away, lambda: next(clock))
    both.bind(session)
    both.set_whole(1_000_000, 0)
    assert taken.rate == session.whole.download == 500_000
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(both.run(), name="caps")
        while taken.rate < 900_000:
            taken.total += 20_000
            await asyncio.sleep(0.001)
            assert taken.rate + session.whole.download <= 1_000_000
        while session.whole.download < 900_000:
            session.received += 20_000
            await asyncio.sleep(0.001)
        running.cancel()
    assert given_away.rate == session.whole.upload == 0
