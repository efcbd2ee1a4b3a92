"""Whom to try next: pure decisions on health and time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import UnavailableError
from peat_p2p.swarm.peers import LAST_RETRY_S, LAST_SHUN_S, PeerBook, PeerCandidate, StaticPeers
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.session import queue_seconds


def peer(name: str, **changes: object) -> PeerCandidate:
    return PeerCandidate(name, name, HostPort("127.0.0.1", 1), **changes)  # type: ignore[arg-type]


def names(peers: list[PeerCandidate]) -> str:
    return "".join(one.agent_id for one in peers)


def test_itself_is_no_candidate() -> None:
    book = PeerBook("a")
    assert names(book.due([peer("a"), peer("b")], 0.0)) == "b"
    assert book.next_due([peer("a")], 0.0) is None


def test_order_is_site_then_completeness_then_rate_then_age() -> None:
    book = PeerBook("x", "north")
    book.measured("d", 100.0)
    peers = [
        peer("a", last_seen=1.0),
        peer("b", last_seen=2.0),
        peer("c", complete=False),
        peer("d"),
        peer("e", site="north", complete=False),
    ]
    assert names(book.order(peers)) == "edbac"


def test_no_site_is_nobodys_site() -> None:
    assert names(PeerBook("x", "").order([peer("a", site=""), peer("b", site="s", last_seen=1.0)])) == "ba"


def test_failures_wait_longer_and_longer_up_to_a_cap_and_are_forgotten_by_success() -> None:
    book = PeerBook()
    now, waits = 0.0, []
    for _ in range(10):
        book.failed("a", now)
        wait = book.next_due([peer("a")], now)
        assert wait is not None
        assert book.due([peer("a")], now + wait - 0.01) == []
        waits.append(wait)
        now += wait
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LAST_RETRY_S
    book.succeeded("a")
    assert names(book.due([peer("a")], now)) == "a"


def test_a_failed_peer_comes_after_others_and_a_liar_last() -> None:
    book = PeerBook()
    book.failed("a", 0.0)
    book.sent_bad("b", 0.0)
    assert names(book.due([peer("a"), peer("b"), peer("c")], 1000.0)) == "cab"
    assert names(book.due([peer("b")], LAST_RETRY_S - 1)) == ""
    book.mended("b", 0.0)
    assert names(book.due([peer("a"), peer("b"), peer("c")], 2.0)) == "cab"


def test_kin_come_after_holders() -> None:
    assert names(PeerBook("x", "s").order([peer("a", kin=True, site="s"), peer("b")])) == "ba"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["failed", "tried", "succeeded", "bad"]))))
def test_whatever_happens_every_peer_is_due_within_the_cap(events: list[tuple[str, str]]) -> None:
    book, now = PeerBook(), 0.0
    for who, what in events:
        now += 0.5
        if what == "failed":
            book.failed(who, now)
        elif what == "tried":
            book.tried(who, now, 10.0)
        elif what == "bad":
            book.sent_bad(who, now)
        else:
            book.succeeded(who)
    everyone = [peer(one) for one in "abc"]
    assert sorted(names(book.due(everyone, now + LAST_SHUN_S))) == ["a", "b", "c"]


async def test_a_static_source_tells_of_a_change() -> None:
    source = StaticPeers([peer("a")])
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(source.wait_change())
        await asyncio.sleep(0)
        assert not waiting.done()
        source.set([peer("b")])
    assert names(list(source.candidates("any"))) == "b"


def test_more_is_asked_for_ahead_the_farther_a_peer_is() -> None:
    assert [queue_seconds(round_trip) for round_trip in (0.0, 0.001, 0.06, 0.6, 5.0)] == [2, 2, 4, 20, 20]


async def test_without_bearers_and_to_neighbours_the_way_is_straight() -> None:
    one = peer("a", metadata=HostPort("127.0.0.1", 2))
    assert await Routes().swarm(one) == one.swarm
    assert await Routes().metadata(one) == one.metadata
    assert Routes().round_trip(one) == 0.0
    assert await Routes().swarm(peer("b")) == HostPort("127.0.0.1", 1)
    with pytest.raises(UnavailableError, match="announced no address"):
        await Routes().metadata(peer("b"))
    with pytest.raises(UnavailableError, match="has no address"):
        await Routes().swarm(PeerCandidate("x", "x", HostPort("no-such-host.invalid", 1)))
