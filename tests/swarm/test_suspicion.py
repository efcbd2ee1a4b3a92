"""Who is suspected of holding back: the pure judgement, and an engine that meets such peers."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.address import HostPort
from peat_p2p.swarm.peers import StaticPeers
from peat_p2p.swarm.suspicion import (
    NEXT_TO_NOTHING,
    PLENTY,
    STANDS_STILL,
    STILL_S,
    WITHHELD,
    WITHHOLDS,
    Look,
    Watch,
)

OWING = frozenset({1, 2, 3, 4})


def test_one_that_lets_chunks_go_unpaid_withholds_them() -> None:
    watch = Watch()
    assert not watch.look(0.0, {"liar": Look(0, OWING)}, set())
    assert not watch.look(0.5, {"liar": Look(900, OWING - {1, 2}, gave=frozenset({9}))}, set())
    assert not watch.look(1.0, {"liar": Look(900, OWING - {1, 2, 3})}, set())
    assert watch.look(1.5, {"liar": Look(900, OWING - {1, 2, 3})}, set()) == {"liar": WITHHOLDS}


def test_what_was_given_cancelled_or_choked_away_is_not_withheld() -> None:
    for look, have in (
        (Look(90_000, gave=OWING), ()),
        (Look(0), OWING),  # they came from others: the requests were cancelled
        (Look(0, choked=True), ()),
    ):
        watch = Watch()
        watch.look(0.0, {"peer": Look(0, OWING)}, set())
        assert not watch.look(0.5, {"peer": look}, set(have))
        assert not watch.look(1.0, {"peer": look}, set(have))


def test_what_comes_to_be_here_a_moment_after_it_was_looked_for_is_not_withheld() -> None:
    watch = Watch()
    watch.look(0.0, {"peer": Look(0, OWING)}, set())
    assert not watch.look(0.5, {"peer": Look(90_000)}, set())
    assert not watch.look(1.0, {"peer": Look(90_000)}, OWING)


def test_what_was_withdrawn_is_not_withheld() -> None:
    watch = Watch()
    watch.look(0.0, {"peer": Look(0, OWING)}, set())
    assert not watch.look(0.5, {"peer": Look(0)}, OWING), "another way was found for them"
    assert not watch.look(1.0, {"peer": Look(0, OWING)}, set()), "and given up again"
    assert not watch.look(1.5, {"peer": Look(0, OWING)}, set())


def test_a_debt_goes_with_its_connection() -> None:
    watch = Watch()
    watch.look(0.0, {"peer": Look(0, OWING)}, set())
    watch.look(0.5, {}, set())
    assert not watch.look(1.0, {"peer": Look(0)}, set())


def test_one_that_owes_and_gives_nothing_stands_still_if_others_give() -> None:
    watch = Watch()
    looks = {"slow": Look(100, OWING), "good": Look(0, OWING)}
    assert not watch.look(0.0, looks, set())
    looks["good"] = Look(2 * PLENTY, OWING)
    assert not watch.look(STILL_S - 1, looks, set())
    assert watch.look(STILL_S + 1, looks, set()) == {"slow": STANDS_STILL}


def test_when_nobody_gives_it_is_the_link() -> None:
    watch = Watch()
    for now in (0.0, 100.0, 1000.0):
        assert not watch.look(now, {"a": Look(0, OWING), "b": Look(0, OWING)}, set())


def test_a_slow_link_is_no_crime() -> None:
    watch = Watch()
    for second in range(200):
        looks = {"radio": Look(7000 * second, OWING), "lan": Look(10_000_000 * second, OWING)}
        assert not watch.look(float(second), looks, set())


@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 5.0),
            st.integers(NEXT_TO_NOTHING, 10 * PLENTY),
            st.sets(st.integers(0, 12), max_size=6),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_an_honest_peer_is_never_suspected(steps) -> None:
    """It pays every debt before the debt goes away, and gives more than next to nothing between any two looks."""
    watch, now, received, owes, paid = Watch(), 0.0, 0, frozenset(), set()
    for wait, gain, asked in steps:
        now += wait
        received += gain
        paid |= owes - asked
        looks = {"honest": Look(received, frozenset(asked), gave=frozenset(paid & asked)), "other": Look(received * 50)}
        assert "honest" not in watch.look(now, looks, set(paid))
        owes = frozenset(asked)


def test_the_number_that_makes_it_sure_is_reached_over_time() -> None:
    watch = Watch()
    for number in range(WITHHELD):
        watch.look(3.0 * number, {"liar": Look(number, frozenset({number}))}, set())
        watch.look(3.0 * number + 1, {"liar": Look(number)}, set())
        found = watch.look(3.0 * number + 2, {"liar": Look(number)}, set())
        assert bool(found) == (number == WITHHELD - 1)


async def test_one_that_promises_what_it_lost_is_named_dropped_and_not_needed(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    source = content(size=3_000_000)
    package = ann.publish(source)
    assert bob.publish(source).manifest.digest == package.manifest.digest
    hosts = [HostPort(f"127.0.4.{number}", 0) for number in (1, 2, 3)]
    for one, host in zip((ann, bob), hosts, strict=False):
        await (await one.start(listen=host, upload_limit=300_000)).seed(package)
    for chunk in package.index.unique_chunks[::2]:
        bob.store.chunk_path(chunk.hex).unlink()
    bob.store.missing = lambda index: set()  # it is not told, and promises them still
    # The package as ann published it: bob's own envelope is another one.
    await bob.engine.unseed(package.manifest_digest)
    bob.store.put_package(package.envelope, package.info, package.index)
    await bob.engine.seed(package)
    engine = await cat.start(listen=hosts[2])
    transfer = engine.fetch(package.envelope, StaticPeers([ann.candidate(), bob.candidate()]))
    async with asyncio.timeout(60):
        await transfer.wait()
    assert dict(transfer.status().suspects) == {"bob": WITHHOLDS}
    health = engine.health(bob.candidate().endpoint_id)
    assert health is not None and health.bad_chunks
    assert cat.store.missing(package.index) == set()
