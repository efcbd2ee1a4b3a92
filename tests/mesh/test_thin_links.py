"""What a link promises on thin, bad and hostile wires, each promise by itself, with link cores in memory."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest

from peat_p2p.mesh.effects import Apply, Send
from peat_p2p.mesh.frames import (
    Batch,
    Hello,
    Ping,
    Reason,
    RecordReader,
    Resume,
    Want,
    decode_frame,
    encode_frame,
)
from peat_p2p.mesh.link import LinkCore
from peat_p2p.mesh.memory import MemoryStore
from peat_p2p.mesh.pace import LARGEST_WINDOW, URGENT_WINDOW, Pacer
from peat_p2p.mesh.pulse import DEAD_AFTER
from peat_p2p.mesh.simulation import Simulation, Wire
from peat_p2p.mesh.summary import VersionTree
from peat_p2p.mesh.unable import FIRST_PAUSE, LONGEST_PAUSE, Unable


def pair(seed: int, wire: Wire, **settings: Any) -> Simulation:
    fleet = Simulation(seed, **settings)
    fleet.add("A")
    fleet.add("B")
    fleet.link("A", "B", wire)
    return fleet


def write(fleet: Simulation, klass: int, count: int, name: str = "x") -> None:
    for number in range(count):
        fleet.nodes["A"].store.put(klass, f"{name}{number}")
    fleet.changed("A")


def has(fleet: Simulation, node: str, klass: int, name: str) -> bool:
    store = fleet.nodes[node].store
    return store.version(store.key(klass, name)) is not None


# -- pacing ----------------------------------------------------------------------------------------------------------


def test_a_link_keeps_to_its_budget_everything_counted() -> None:
    budget = 2000.0
    fleet = pair(1, Wire(delay=0.1), budget=budget)
    fleet.run(10)
    write(fleet, 3, 5000)
    before, seconds = fleet.bytes["A", "B"], 60.0
    fleet.run(10 + seconds)
    sent = fleet.bytes["A", "B"] - before
    assert not has(fleet, "B", 3, "x4999"), "the link must be overloaded for this test"
    assert 0.8 * budget * seconds <= sent <= budget * (seconds + 2.0)


def test_answers_count_towards_the_budget_too() -> None:
    pacer = Pacer(1000.0, 0.0)
    assert pacer.may_send(0.0, urgent=False)
    pacer.charge(1000)
    assert not pacer.may_send(0.0, urgent=False)
    assert pacer.may_send(2.0, urgent=False)


@pytest.mark.parametrize("rate", [7000.0, 125_000.0])
def test_without_a_budget_a_command_still_overtakes_the_backlog(rate: float) -> None:
    """The window follows the measured delay, so what is queued in the network stays short."""
    fleet = pair(2, Wire(delay=0.3, rate=rate))
    fleet.run(5)
    write(fleet, 3, int(rate))
    fleet.run(15)
    assert len(fleet.nodes["B"].store.versions()) < int(rate), "the backlog must still be there for this test"
    for number in range(5):
        began = fleet.now
        fleet.put("A", 0, f"order {number}")
        fleet.run(began + 60, stop=lambda n=number: has(fleet, "B", 0, f"order {n}"))
        assert fleet.now - began < 3.5
        fleet.run(fleet.now + 2)


def test_heartbeats_grow_stale_before_anything_else_does() -> None:
    fleet = pair(3, Wire(delay=0.2), budget=3000.0)
    write(fleet, 3, 400, "agent")
    fleet.run(60)
    for step in range(120):
        for number in range(0, 400, 2):
            fleet.at(60.0 + step + number / 400, lambda n=number: fleet.put("A", 3, f"agent{n}"))
    late: list[float] = []
    for number in range(20):
        fleet.run(65.0 + 5 * number)
        klass = 1 + number % 2
        began = fleet.now
        fleet.put("A", klass, f"deployment {number}")
        fleet.run(began + 30, stop=lambda n=number, k=klass: has(fleet, "B", k, f"deployment {n}"))
        late.append(fleet.now - began)
    ours, theirs = fleet.nodes["A"].store.versions(), fleet.nodes["B"].store.versions()
    behind = [ours[key] - theirs.get(key, 0) for key in ours if key.collection == "platforms"]
    assert max(behind) >= 3, "the link must be overloaded for this test"
    assert max(late) < 4.0


def test_every_class_gets_its_share_beside_a_flood_of_commands() -> None:
    fleet = pair(4, Wire(delay=0.05, rate=20_000.0), budget=10_000.0)
    fleet.run(2)
    for klass in (1, 2, 3):
        write(fleet, klass, 30, f"k{klass}-")
    write(fleet, 0, 20_000, "order")
    fleet.run(20)
    assert not has(fleet, "B", 0, "order19999"), "the flood must last for this test"
    held = [key.collection for key in fleet.nodes["B"].store.versions()]
    for collection in ("deployments", "packages", "platforms"):
        assert held.count(collection) >= 20


# -- bounded memory --------------------------------------------------------------------------------------------------


def core_of(store: MemoryStore, *, budget: float | None = None) -> LinkCore:
    trees = [VersionTree(store, klass) for klass in range(4)]
    core = LinkCore(store, "b" * 64, Hello("", store.epoch), trees, dialled=True, now=0.0, budget=budget)
    core.start()
    core.received(body(Hello("", b"b" * 16)), 0.0)
    core.resume({})
    return core


def body(frame: Any) -> bytes:
    return next(RecordReader().feed(encode_frame(frame)))


def test_a_reader_that_never_acknowledges_is_sent_a_bounded_amount() -> None:
    store = MemoryStore(b"a" * 16, whole=400)
    for klass in range(4):
        for number in range(20_000):
            store.put(klass, f"x{number}")
    core = core_of(store)
    effects = core.received(body(Resume(tuple((klass, 0) for klass in range(4)))), 0.0)
    sent = 0
    for step in range(100):
        sent += sum(len(effect.data) for effect in effects if isinstance(effect, Send))
        effects = core.poll(0.1 * step)
    assert 10_000 < sent < URGENT_WINDOW + 2 * LARGEST_WINDOW / 8
    assert core.pacer.in_flight <= 2 * URGENT_WINDOW


def test_no_more_is_handed_over_than_there_is_room_for() -> None:
    store = MemoryStore(b"a" * 16, whole=400)
    for number in range(2000):
        store.put(0, f"x{number}")
    core = core_of(store)
    core.received(body(Resume(tuple((klass, 0) for klass in range(4)))), 0.0)
    assert core.poll(0.1, 0) == []
    assert core.deadline(0.1) <= 0.1
    assert core.deadline(0.1, room=False) > 1.0, "without room there is nothing to do at once"
    for step in range(5):
        sent = [effect for effect in core.poll(0.2 + step, 3000) if isinstance(effect, Send)]
        assert sent
        assert sum(len(effect.data) for effect in sent[:-1]) < 3000, "the last one was begun while there was room"
    # An answer goes whether there is room or not.
    assert [type(effect) for effect in core.received(body(Ping(7)), 5.0)] == [Send]


def test_what_a_peer_may_name_is_bounded() -> None:
    core = core_of(MemoryStore(b"a" * 16))
    core.received(body(Resume(())), 0.0)
    names = iter(range(10**9))
    for number in range(1, 40):
        keys = tuple(next(names).to_bytes(8, "big") for _ in range(8000))
        items = tuple((ref, b"D12345678") for ref in range(8000))
        effects = core.received(body(Batch(3, number, items, keys, None, True)), 1.0)
        for effect in effects:
            if isinstance(effect, Apply):
                core.applied(effect.number, [], 1.0)
        if core.ended is not None:
            break
    assert core.ended is not None
    assert core.ended.reason is Reason.PROTOCOL
    assert sum(map(len, core._reach._owed)) <= 2 * 65536


@pytest.mark.parametrize("frame", [Want(1, 0, (0,)), Ping(1)])
def test_who_asks_too_much_is_hung_up_on(frame: Any) -> None:
    core = core_of(MemoryStore(b"a" * 16))
    core.received(body(Resume(())), 0.0)
    for _ in range(1000):
        core.received(body(frame), 0.0)
    assert core.ended is None, "a node that compares everything anew may"
    for _ in range(200):
        core.received(body(frame), 0.0)
    assert core.ended is not None
    assert "honest" in core.ended.detail
    patient = core_of(MemoryStore(b"a" * 16))
    patient.received(body(Resume(())), 0.0)
    for second in range(3000):
        patient.received(body(frame), second / 10)
    assert patient.ended is None


def test_keys_and_bodies_of_a_batch_are_packed_together() -> None:
    keys = tuple(f"packages/agent-{number:05d}:app:1.0-amd64/{'0' * 32}".encode() for number in range(100))
    items = tuple((number, f"heartbeat of agent {number:05d}, as ever".encode()) for number in range(100))
    batch = Batch(2, 1, items, keys, 7)
    record = encode_frame(batch)
    assert decode_frame(body(batch)) == batch
    assert len(record) < (sum(map(len, keys)) + sum(len(one) for _, one in items)) / 4


# -- dead peers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True])
def test_a_dead_link_is_noticed_within_15_seconds(busy: bool) -> None:
    fleet = pair(5, Wire(delay=0.3))
    fleet.run(30)
    for end in ("A", "B"):
        other = {"A": "B", "B": "A"}[end]
        fleet.nodes[end].ends[other].other = fleet.nodes[end].ends[other]  # nothing arrives any more
        fleet.nodes[end].ends[other].reader = _Deaf()
    began = fleet.now
    if busy:
        write(fleet, 0, 100)
    fleet.run(began + 15.0)
    assert {(node, reason) for node, _, reason, _ in fleet.ended} == {
        ("A", Reason.UNSPECIFIED),
        ("B", Reason.UNSPECIFIED),
    }
    assert all("silent" in detail for *_, detail in fleet.ended)
    assert DEAD_AFTER < 15.0


class _Deaf(RecordReader):
    def feed(self, data: bytes) -> Any:
        return iter(())


# -- sites -----------------------------------------------------------------------------------------------------------


def test_a_change_crosses_each_link_between_sites_about_once() -> None:
    fleet = Simulation(6)
    sites = "abcd"
    for site in sites:
        for number in range(3):
            fleet.add(f"{site}{number}", site)
        for one, other in itertools.combinations(range(3), 2):
            fleet.link(f"{site}{one}", f"{site}{other}")
    ring = [(f"{one}0", f"{other}0") for one, other in itertools.pairwise(sites + "a")]
    for one, other in ring:
        fleet.link(one, other, Wire(delay=0.15))
    fleet.run(20)
    before = dict(fleet.bytes)
    for number in range(400):
        fleet.at(20 + number / 20, lambda n=number: fleet.put("a1", 1, f"deployment {n}"))
    fleet.run(60)
    states = [node.store.versions() for node in fleet.nodes.values()]
    assert len(states[0]) == 400
    assert all(state == states[0] for state in states)
    crossed = [
        sum(fleet.bytes[way] - before[way] for way in ((one, other), (other, one))) - 40 / 5 * 2 * 110
        for one, other in ring
    ]
    once = min(crossed)
    # The two ways around the ring meet on its far side, where a change may come from both.
    assert sum(crossed) / len(crossed) <= 1.3 * once


# -- no room ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_pauses_links_longer_each_time_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    unable = Unable()
    now, pauses = 0.0, []
    for _ in range(6):
        for _ in range(5):  # all links notice
            unable.failed("no space left", now)
        assert unable.at(now + 1)
        pauses.append(unable.until - now)
        now = unable.until + 1.0
        assert not unable.at(now)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    unable.failed("no space left", now + 1000.0)
    assert len(caplog.records) == 2
