"""Who fetches what over the thin link: the pure agreement, and engines of two sites on loopback."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.core.address import HostPort
from peat_p2p.swarm.peers import PeerCandidate, StaticPeers
from peat_p2p.swarm.plan import (
    ASK_PATIENCE_S,
    ASKING_PATIENCE_S,
    SHARE_PATIENCE,
    SHARE_PATIENCE_S,
    Giving,
    Pace,
    Plan,
    whom_to_ask,
)
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.thrift import GRACE_S, MIN_PATIENCE_S, Thrift, rendezvous

DIGESTS = [hashlib.sha256(bytes([n, n])).digest() for n in range(200)]
ALL = set(range(200))
SITE = ("a", "b", "c", "d")


def agreement(names=SITE):
    made = {name: Thrift(name, DIGESTS) for name in names}
    for name, thrift in made.items():
        thrift.observe(0.0, names, {other: 0 for other in names if other != name})
    return made


def test_every_chunk_is_exactly_one_agents() -> None:
    shares = [thrift.mine(1.0, ALL, set()) for thrift in agreement().values()]
    assert set().union(*shares) == ALL
    assert sum(len(share) for share in shares) == len(ALL)
    assert all(25 <= len(share) <= 75 for share in shares)


def test_a_large_crowd_agrees_too_and_when_one_goes_only_its_chunks_move() -> None:
    names = [f"agent-{number}" for number in range(500)]
    digests = [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(8_000)]

    def share(name: str, others: list[str]) -> set[int]:
        thrift = Thrift(name, digests)
        thrift.observe(0.0, others, {})
        return thrift.mine(1.0, range(len(digests)), set())

    some = names[::100]
    before = {name: share(name, names) for name in some}
    assert all(len(mine) < 3 * len(digests) / len(names) for mine in before.values())
    assert sum(map(len, before.values())) == len(set().union(*before.values()))
    fewer = names[1:]
    taken = set().union(*(share(name, fewer) for name in fewer[:10])) - set().union(
        *(share(name, names) for name in fewer[:10])
    )
    assert taken <= before[names[0]]
    assert all(share(name, fewer) >= before[name] for name in some[1:])


def test_when_one_goes_only_its_chunks_move() -> None:
    made = agreement()
    before = {name: thrift.mine(1.0, ALL, set()) for name, thrift in made.items()}
    for name, thrift in made.items():
        thrift.observe(2.0, SITE, {other: 0 for other in SITE if other not in (name, "d")})
    after = {name: made[name].mine(2.1, ALL, set()) for name in "abc"}
    assert set().union(*after.values()) == ALL
    assert sum(len(share) for share in after.values()) == len(ALL)
    assert all(before[name] <= after[name] for name in "abc")


def test_one_that_never_connects_gets_its_grace_once() -> None:
    thrift = Thrift("a", DIGESTS)
    thrift.observe(0.0, ("a", "b"), {})
    assert thrift.mine(1.0, ALL, set()) < ALL
    thrift.observe(GRACE_S + 1, ("a", "b"), {})
    assert thrift.mine(GRACE_S + 1, ALL, set()) == ALL


def test_one_that_stands_still_loses_its_chunks_and_one_that_owes_nothing_waits_in_peace() -> None:
    thrift = Thrift("a", DIGESTS)
    theirs = ALL - _mine_of(thrift, 0.0, 0)
    late = MIN_PATIENCE_S + 1
    assert _mine_of(thrift, late, 0, missing=theirs) == theirs
    waiting = Thrift("a", DIGESTS)
    mine = _mine_of(waiting, 0.0, 0)
    assert _mine_of(waiting, 100.0, 50, missing=mine) == mine
    # Somebody else's chunks come up again: it is still counted on for its share.
    assert _mine_of(waiting, 101.0, 50, missing=ALL) == mine


def _mine_of(thrift: Thrift, now: float, count: int, missing=ALL):
    thrift.observe(now, ("a", "b"), {"b": count})
    return thrift.mine(now, missing, set())


def test_what_a_neighbour_has_is_nobodys_task() -> None:
    made = agreement()
    have = {n for n in ALL if n % 2}
    shares = [thrift.mine(1.0, ALL, have) for thrift in made.values()]
    assert set().union(*shares) == ALL - have


def test_patience_follows_the_link() -> None:
    thrift = Thrift("a", DIGESTS)
    thrift.observe(0.0, ("a", "b"), {"b": 0})
    assert thrift.patience == MIN_PATIENCE_S
    for n in range(5):
        thrift.fetched_own(n * 10.0)
    assert thrift.patience > 60


def test_where_the_first_chunk_takes_long_the_others_are_given_as_long_for_theirs() -> None:
    thrift = Thrift("a", DIGESTS)
    thrift.observe(0.0, ("a", "b"), {"b": 0})
    mine = thrift.mine(0.0, ALL, set())
    thrift.observe(10.0, ("a", "b"), {"b": 0})
    thrift.fetched_own(10.0)
    own = min(mine)
    assert thrift.mine(12.0, ALL - {own}, set()) == mine - {own}
    for second in range(11, 60):
        thrift.fetched_own(float(second))
    assert thrift.mine(60.0, ALL - {own}, set()) == ALL - {own}  # it alone has stood still for so long


@given(st.sets(st.sampled_from("abcdefgh"), min_size=2), st.binary(min_size=32, max_size=32))
def test_rendezvous_keeps_the_order_of_the_others(members: set[str], key: bytes) -> None:
    order = rendezvous(key, members)
    gone = order[0]
    assert rendezvous(key, members - {gone}) == order[1:]
    assert rendezvous(key, list(members)[::-1]) == order


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from(SITE)), min_size=4, max_size=4),
    st.sets(st.sampled_from(SITE), max_size=3),
    st.integers(0, 2**32),
)
def test_whatever_each_sees_and_whoever_dies_every_chunk_comes_in(views, dying, seed) -> None:
    """Each agent knows another set of members; some die. The living still fetch everything in bounded time."""
    digests = DIGESTS[:24]
    wanted = set(range(24))
    living = [name for name in SITE if name not in dying]
    agents = {name: Thrift(name, digests) for name in SITE}
    have: dict[str, set[int]] = {name: set() for name in SITE}
    fetches = 0
    now = 0.0
    for step in range(400):
        now += 0.5
        if all(have[name] == wanted for name in living):
            break
        acting = list(SITE) if step < 4 else living
        for name in acting:
            view = views[SITE.index(name)] | {name}
            connected = {o: len(have[o]) for o in acting if o != name and o in view and name in _seen(views, o)}
            agents[name].observe(now, view, connected)
            at_site = set().union(*(have[o] for o in connected)) if connected else set()
            missing = wanted - have[name]
            mine = agents[name].mine(now, missing, at_site)
            if mine:
                have[name].add(min(mine))
                fetches += 1
                agents[name].fetched_own(now)
            elif at_site & missing:
                have[name].add(min(at_site & missing))
    assert all(have[name] == wanted for name in living)
    if all(view >= set(SITE) for view in views) and not dying:
        assert fetches == len(wanted)


def _seen(views, name):
    return views[SITE.index(name)] | {name}


def candidate(name: str, site: str, **changes) -> PeerCandidate:
    return PeerCandidate(name, name, HostPort("127.0.0.1", 1), site=site, **changes)


def test_the_plan_alternates_between_own_share_and_neighbours() -> None:
    plan = Plan("a", "s", DIGESTS)
    far = candidate("x", "t")
    near = candidate("b", "s", complete=False)
    nothing = [False] * 200
    first = plan.decide(0.0, ALL, (), [far, near], {"b": nothing, "x": [True] * 200})
    assert not first.inside
    assert 0 < len(first.wanted) < 200
    rest = ALL - first.wanted
    second = plan.decide(1.0, rest, (), [far, near], {"b": nothing})
    assert second.inside
    assert second.wanted == rest
    # The neighbour dies: its share is fetched from outside, and what was begun is finished.
    begun = {min(first.wanted)}
    plan.decide(2.0, rest, (), [far, near], {})
    third = plan.decide(2.0 + GRACE_S, rest | begun, begun, [far, near], {})
    assert not third.inside
    assert third.wanted == rest | begun


def test_while_feeds_bring_the_own_share_the_torrent_gets_what_neighbours_have() -> None:
    plan = Plan("a", "s", DIGESTS)
    far, near = candidate("x", "t"), candidate("b", "s", complete=False)
    theirs = [number < 50 for number in range(200)]
    first = plan.decide(0.0, ALL, (), [far, near], {"b": theirs}, fed=True)
    assert first.inside
    assert first.apart
    assert first.first
    assert not first.first & set(range(50))
    assert first.wanted == first.first | set(range(50))
    second = plan.decide(1.0, ALL - first.wanted, (), [far, near], {"b": theirs}, fed=True)
    assert second.inside
    assert not second.apart
    # Should no feed be able to go on, the torrent fetches the share, connected to anybody.
    assert not plan.decide(2.0, ALL, (), [far, near], {"b": theirs}).inside


def test_without_a_site_neighbours_or_an_outside_there_is_no_thrift() -> None:
    near, far = candidate("b", "s", complete=False), candidate("x", "t")
    for site, peers in (("", [near, far]), ("s", [far]), ("s", [near])):
        assert not Plan("a", site, DIGESTS).decide(0.0, ALL, (), peers, {}).inside
    assert Plan("a", "s", DIGESTS).decide(0.0, ALL, (), [far], {}).wanted == ALL


def test_a_complete_neighbour_is_waited_for_once() -> None:
    plan = Plan("a", "s", DIGESTS)
    peers = [candidate("b", "s"), candidate("x", "t")]
    assert plan.decide(0.0, ALL, (), peers, {}).inside
    assert not plan.decide(GRACE_S + 1, ALL, (), peers, {}).inside
    assert plan.decide(GRACE_S + 2, ALL, (), peers, {"b": [True] * 200}).inside


def test_one_of_a_site_asks_outside_for_metadata_and_the_next_when_that_takes_long() -> None:
    address = HostPort("127.0.0.1", 2)
    everyone = [candidate(name, "s", complete=False, metadata=address) for name in SITE]
    far = candidate("x", "t", metadata=address)
    asking = []
    for me in SITE:
        peers = [peer for peer in everyone if peer.endpoint_id != me] + [far]
        asking.append(far in whom_to_ask(peers, me, "s", "digest", 0.0))
        assert far in whom_to_ask(peers, me, "s", "digest", len(SITE) * ASK_PATIENCE_S)
        others = frozenset(SITE) - {me}
        waits = far not in whom_to_ask(peers, me, "s", "digest", ASKING_PATIENCE_S - 1.0, others)
        assert waits == (not asking[-1])  # whoever is before it answers
        assert far in whom_to_ask(peers, me, "s", "digest", len(SITE) * ASKING_PATIENCE_S, others)
    assert sum(asking) == 1
    assert far in whom_to_ask([far], "a", "s", "digest", 0.0)
    assert far in whom_to_ask([far, *everyone], "a", "", "digest", 0.0)


def test_held_back_it_finishes_what_is_begun() -> None:
    decision = Plan("a", "", DIGESTS).decide(0.0, ALL, {3, 4}, [candidate("x", "t")], {}, held="budget")
    assert (decision.wanted, decision.reason) == ({3, 4}, "budget")


def test_among_many_each_asks_the_giver_for_its_own_share_first() -> None:
    peers = [candidate("x", "", complete=True), candidate("b", "", complete=False)]
    plan = Plan("a", "", DIGESTS)
    nothing = {"b": [False] * 200}
    mine = plan.decide(0.0, ALL, (), peers, nothing)
    assert mine.wanted == mine.first  # nobody but the giver has the rest, and it is asked for that by others
    assert mine.apart
    share, theirs = share_of("a", "b"), share_of("b", "a")
    assert share | theirs == ALL
    assert not share & theirs
    assert sorted(mine.first) == sorted(share)[: len(mine.first)]  # in their order, so that helpers can avoid them
    # What the other has of the own share it gives: the giver is not asked for it.
    there = min(share)
    shown = {"b": [n == there for n in range(200)]}
    decision = plan.decide(0.5, ALL, (), peers, shown)
    assert there in decision.wanted - decision.first


def share_of(me: str, other: str) -> set[int]:
    """What one of two asks a giver for."""
    thrift = Thrift(me, DIGESTS)
    thrift.observe(0.0, (other,), {other: 0})
    return thrift.mine(0.0, ALL, set())


def test_the_last_that_only_the_giver_has_is_left_to_those_whose_share_it_is() -> None:
    peers = [candidate("x", "", complete=True), candidate("b", "", complete=False)]
    plan = Plan("a", "", DIGESTS)
    nothing = {"b": [False] * 200}
    share = share_of("a", "b")
    theirs = ALL - share
    # The own share is here, of the other's much is not asked for yet: this one helps, from the other end.
    helped = plan.decide(50.0, theirs, (), peers, nothing).wanted
    assert helped
    assert sorted(helped) == sorted(theirs)[-len(helped) :]
    last = frozenset(sorted(theirs)[:4])
    mine = frozenset({min(share)})
    there = theirs - last  # the other has all but those of its share
    shown = {"b": [n in there for n in range(200)]}
    assert plan.decide(99.0, theirs | mine, (), peers, shown).wanted == there | mine
    assert plan.decide(99.0 + SHARE_PATIENCE_S, theirs, (), peers, shown).wanted == there
    # It is left alone for a while that grows with the time all this takes, then helped.
    assert plan.decide(100.0 + 100 * SHARE_PATIENCE, theirs, (), peers, shown).wanted == theirs


def test_a_giver_with_nothing_of_its_own_left_helps_to_bring_the_rest() -> None:
    peers = [candidate("x", "", complete=True), candidate("b", "", complete=False)]
    rest = frozenset({3, 4, 5})
    decision = Plan("a", "", DIGESTS).decide(0.0, rest, (), peers, {"b": [True] * 200})
    assert decision.first == decision.wanted == rest


def test_nobody_helps_while_the_giver_gives_as_fast_as_it_did() -> None:
    giving = Giving()
    for second in range(40):
        giving.look(second, 1000 - 10 * second)
        assert giving.flags == (second < 4)
    for second in range(40, 60):  # those whose share it is are slow
        giving.look(second, 600 - 2 * (second - 40))
    assert giving.flags


def test_a_fast_link_has_more_of_its_share_wanted_than_a_slow_one() -> None:
    pace = Pace()
    least = pace.ahead(0.0)
    for second in range(10):
        pace.fetched(second, 500)
    assert pace.ahead(9.0) > 2 * 4 * 500
    assert pace.ahead(60.0) == least


def test_nobody_is_taken_for_dead_while_nothing_comes_to_anybody() -> None:
    thrift = Thrift("a", DIGESTS)
    thrift.observe(0.0, ("a", "b"), {"b": 0})
    share = thrift.mine(0.0, ALL, set())
    thrift.observe(60.0, ("a", "b"), {"b": 0})
    assert thrift.mine(60.0, ALL, set()) == share
    thrift.fetched_own(61.0)  # the link carries again: the other has its time, and no more
    assert thrift.mine(61.0, ALL, set()) == share
    for second in range(62, 90):
        thrift.fetched_own(float(second))
    assert thrift.mine(90.0, ALL, set()) == ALL


def test_who_has_its_own_share_does_not_take_an_outage_for_the_others_standing_still() -> None:
    thrift = Thrift("a", DIGESTS)
    thrift.observe(0.0, ("a", "b"), {"b": 0}, heard=0.0)
    theirs = ALL - thrift.mine(0.0, ALL, set())

    def mine_after(began: int, ended: int, up: bool) -> set[int]:
        for second in range(began, ended):
            thrift.observe(second, ("a", "b"), {"b": 20}, heard=second - 0.5 if up else began - 0.5)
        return thrift.mine(ended - 1.0, theirs, set())

    assert not mine_after(1, 4, up=True)
    assert not mine_after(4, 60, up=False)
    assert not mine_after(60, 64, up=True)  # the link is back: b has its time again
    assert mine_after(64, 70, up=True) == theirs  # and no more


@pytest.mark.parametrize(
    ("fed", "death", "most"), [(False, False, 1.15), (False, True, 1.5), (True, False, 1.05), (True, True, 1.15)]
)
async def test_a_site_crosses_the_link_about_once(node, content, monkeypatch, fed, death, most) -> None:
    if fed:
        for name in ("far", "perhaps_far"):
            monkeypatch.setattr(Routes, name, lambda _, peer: peer.site == "north")
    ann = node("ann")
    site = [node(name) for name in ("bob", "cat", "dan")]
    package = ann.publish(content(size=4_000_000))
    await (await ann.start(listen=HostPort("127.0.1.1", 0), upload_limit=1_500_000)).seed(package)
    source = StaticPeers()
    transfers = {}
    for number, one in enumerate(site):
        await one.start(listen=HostPort(f"127.0.2.{number + 1}", 0), site="south")
    everyone = [ann.candidate(site="north"), *(one.candidate(site="south", complete=False) for one in site)]
    source.set(everyone)
    async with asyncio.timeout(90):
        for one in site:
            transfers[one.name] = one.engine.fetch(package.envelope, source)
        if death:
            async for status in transfers["dan"].updates():
                if status.verified > 250_000:
                    break
            await site[2].stop()
            source.set(everyone[:-1])
        for one in site[: 2 if death else 3]:
            await transfers[one.name].wait()
    total = package.index.unique_bytes
    crossed = sum(
        source.bytes
        for transfer in transfers.values()
        for source in transfer.status().sources
        if source.agent_id not in ("bob", "cat", "dan")
    )
    assert crossed <= total * most
