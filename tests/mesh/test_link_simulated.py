"""Link cores joined by scripted wires: convergence, echo, cursors, priorities, repair."""

from __future__ import annotations

import itertools
import random

import pytest

from peat_p2p.mesh.simulation import Simulation, Wire


def same(simulation: Simulation) -> bool:
    stores = [node.store.versions() for node in simulation.nodes.values()]
    return all(store == stores[0] for store in stores)


def chain(seed: int, names: str, wire: Wire | None = None, **settings: object) -> Simulation:
    fleet = Simulation(seed, **settings)  # type: ignore[arg-type]
    for name in names:
        fleet.add(name)
    for first, second in itertools.pairwise(names):
        fleet.link(first, second, wire or Wire())
    return fleet


def test_a_chain_converges_and_nothing_is_echoed() -> None:
    fleet = chain(1, "ABCD")
    fleet.run(1)
    before = dict(fleet.bytes)
    for number in range(300):
        fleet.nodes["A"].store.put(number % 4, f"x{number}")
    fleet.changed("A")
    fleet.run(20)
    assert len(fleet.nodes["D"].store.versions()) == 300
    assert same(fleet)
    for first, second in ("AB", "BC", "CD"):
        forward = fleet.bytes[first, second] - before[first, second]
        back = fleet.bytes[second, first] - before[second, first]
        assert back < forward, "the way back carries acknowledgements only"
    once = fleet.bytes["A", "B"] - before["A", "B"]
    assert fleet.bytes["C", "D"] - before["C", "D"] <= 1.3 * once


def test_nothing_new_costs_only_pings() -> None:
    fleet = chain(2, "AB")
    for number in range(500):
        fleet.nodes["A"].store.put(3, f"x{number}")
    fleet.changed("A")
    fleet.run(30)
    before = sum(fleet.bytes.values())
    fleet.run(90)
    assert sum(fleet.bytes.values()) - before <= 60 / 5 * 200


def test_reconnecting_after_nothing_happened_is_cheap() -> None:
    fleet = chain(3, "AB")
    for number in range(500):
        fleet.nodes["A"].store.put(number % 4, f"x{number}")
    fleet.changed("A")
    fleet.run(30)
    fleet.put("B", 0, "what A hears of and need not send")
    fleet.run(60)
    for _ in range(3):
        fleet.cut("A", "B")
        before = sum(fleet.bytes.values())
        fleet.link("A", "B")
        fleet.run(fleet.now + 3)
        handshake = 2 * 1300
        assert sum(fleet.bytes.values()) - before - handshake < 800


def test_an_overwritten_value_is_never_sent() -> None:
    fleet = chain(4, "AB")
    fleet.run(1)
    fleet.cut("A", "B")
    for _ in range(1000):
        fleet.nodes["A"].store.put(3, "heartbeat")
    before = sum(fleet.bytes.values())
    fleet.link("A", "B")
    fleet.run(5)
    assert fleet.nodes["B"].store.versions() == fleet.nodes["A"].store.versions()
    assert sum(fleet.bytes.values()) - before - 2600 < 1200


def test_two_full_replicas_that_never_met_compare_instead_of_copying() -> None:
    fleet = Simulation(5)
    for name in "AB":
        fleet.add(name)
        for number in range(5000):
            fleet.nodes[name].store.put(1, f"x{number}", 7)
    fleet.nodes["A"].store.put(1, "x17")
    fleet.nodes["B"].store.put(1, "only-b")
    fleet.link("A", "B")
    fleet.run(10)
    assert same(fleet)
    assert sum(fleet.bytes.values()) - 2600 < 12_000


def test_a_wiped_node_gets_everything_again() -> None:
    fleet = chain(6, "ABC")
    for number in range(200):
        fleet.nodes["A"].store.put(number % 4, f"x{number}")
    fleet.changed("A")
    fleet.run(10)
    fleet.cut("B", "C")
    fleet.wipe("C")
    fleet.link("B", "C")
    fleet.run(20)
    assert same(fleet)


def test_a_command_overtakes_a_backlog_of_heartbeats() -> None:
    rate = 7000.0
    fleet = chain(7, "AB", Wire(delay=0.5, rate=rate, jitter=0.1), budget=rate / 2)
    fleet.run(5)
    for number in range(5000):
        fleet.nodes["A"].store.put(3, f"agent-{number}")
    fleet.changed("A")
    fleet.run(20)
    assert len(fleet.nodes["B"].store.versions()) < 5000, "the backlog must still be there for this test"
    fleet.put("A", 0, "order")
    began = fleet.now
    fleet.run(60, stop=lambda: fleet.nodes["B"].store.version(fleet.nodes["B"].store.key(0, "order")) is not None)
    assert fleet.now - began < 3.0


def test_no_class_starves_another() -> None:
    fleet = chain(8, "AB", Wire(delay=0.05, rate=20_000.0), budget=10_000.0)
    fleet.run(2)
    for number in range(20_000):
        fleet.nodes["A"].store.put(1, f"deployment-{number}")
    for klass in (2, 3):
        for number in range(50):
            fleet.nodes["A"].store.put(klass, f"p{number}")
    fleet.changed("A")
    fleet.run(12)
    held = fleet.nodes["B"].store.versions()
    for collection in ("packages", "platforms"):
        assert sum(key.collection == collection for key in held) >= 20
    assert sum(key.collection == "deployments" for key in held) < 20_000


def test_under_overload_every_heartbeat_is_refreshed_in_turn() -> None:
    """At a third of the rate needed, each agent's heartbeat arrives about every third time, and none is left behind."""
    agents = 300
    fleet = chain(9, "AB", Wire(delay=0.2), budget=900.0)
    store = fleet.nodes["A"].store
    for number in range(agents):
        store.put(3, f"agent-{number}")
    fleet.changed("A")
    fleet.run(120)
    beat = 1
    for step in range(1, 241):
        beat += 1
        for number in range(agents):
            fleet.at(120.0 + 10.0 * step + 10.0 * number / agents, lambda n=number: fleet.put("A", 3, f"agent-{n}"))
    fleet.run(120.0 + 10.0 * 240)
    ours, theirs = store.versions(), fleet.nodes["B"].store.versions()
    lags = sorted(ours[key] - theirs[key] for key in ours)
    assert lags[len(lags) // 2] >= 1, "the link must be overloaded for this test"
    assert lags[-1] <= 4 * max(2, lags[len(lags) // 2])


def test_a_delta_that_does_not_fit_is_replaced_by_the_whole() -> None:
    fleet = chain(10, "AB")
    fleet.put("A", 3, "x")
    fleet.run(3)
    held = fleet.nodes["B"].store
    held._versions[held.key(3, "x")] = 0  # B lost what A believes it has
    fleet.put("A", 3, "x")
    fleet.run(8)
    assert same(fleet)


@pytest.mark.parametrize("seed", range(12))
def test_random_fleets_converge_through_cuts_wipes_and_writes(seed: int) -> None:
    chance = random.Random(seed)
    fleet = Simulation(seed)
    names = [f"n{number}" for number in range(5)]
    for name in names:
        fleet.add(name, f"site-{chance.randrange(2)}")
    pairs = [(a, b) for a in names for b in names if a < b]
    for first, second in itertools.pairwise(names):
        fleet.link(first, second)
    version = 1
    for _ in range(120):
        fleet.run(fleet.now + chance.choice([0.001, 0.05, 0.7, 4.0]))
        act = chance.random()
        if act < 0.6:
            version += 1
            fleet.put(chance.choice(names), chance.randrange(4), f"k{chance.randrange(20)}", version)
        elif act < 0.8:
            fleet.cut(*chance.choice(pairs))
        elif act < 0.95:
            first, second = chance.choice(pairs)
            if second not in fleet.nodes[first].ends:
                fleet.link(first, second, Wire(delay=chance.choice([0.001, 0.3]), jitter=0.05))
        else:
            lost = chance.choice(names)
            for other in names:
                fleet.cut(lost, other)
            fleet.wipe(lost)
    for first, second in itertools.pairwise(names):
        if second not in fleet.nodes[first].ends:
            fleet.link(first, second)
    fleet.run(fleet.now + 60)
    assert same(fleet)
    assert not [end for end in fleet.ended if end[2].name == "PROTOCOL"]


def test_a_part_the_peer_does_not_know_by_its_short_name_is_sent_whole() -> None:
    fleet = chain(11, "AB")
    fleet.put("A", 3, "a part with a name that is longer than its fingerprint")
    fleet.run(3)
    fleet.cut("A", "B")
    held = fleet.nodes["B"].store
    cursors = held._cursors
    fleet.wipe("B")
    fleet.nodes["B"].store._cursors = cursors  # B claims to hold what it lost
    fleet.put("A", 3, "a part with a name that is longer than its fingerprint")
    fleet.link("A", "B")
    fleet.run(8)
    assert same(fleet)


def test_an_older_version_that_comes_in_does_not_hide_a_newer_one() -> None:
    fleet = chain(12, "AB")
    fleet.run(5)
    fleet.put("A", 3, "other")
    fleet.put("A", 3, "x", 5)  # waits, as a batch of the class went just now
    fleet.put("B", 3, "x", 3)
    fleet.run(10)
    assert same(fleet)


def test_a_link_that_never_lasts_for_a_whole_sweep_gets_further_each_time() -> None:
    fleet = chain(13, "AB", Wire(delay=0.1, rate=6000.0))
    for number in range(500):
        fleet.nodes["A"].store.put(3, f"x{number}")
    fleet.run(fleet.now + 1)
    fleet.cut("A", "B")
    # B holds a cursor, so nothing is compared: only cursors tell how far it is.
    epoch = fleet.nodes["A"].store.epoch
    for klass in range(4):
        fleet.nodes["B"].store.move_cursor("A", epoch, klass, 0)
    for _ in range(12):
        fleet.link("A", "B", Wire(delay=0.1, rate=6000.0))
        fleet.run(fleet.now + 4)
        fleet.cut("A", "B")
    assert len(fleet.nodes["B"].store.versions()) == 500
    fleet.link("A", "B")
    fleet.run(fleet.now + 20)
    assert same(fleet)


def test_a_link_to_a_node_met_before_sends_in_the_first_answer() -> None:
    fleet = chain(14, "AB", Wire(delay=0.3))
    fleet.put("A", 0, "order")
    fleet.put("B", 0, "order of the other")
    fleet.run(30)
    fleet.cut("A", "B")
    fleet.put("B", 0, "new")
    fleet.put("A", 0, "new of the other")
    fleet.link("A", "B", Wire(delay=0.3))
    began = fleet.now
    a, b = fleet.nodes["A"].store, fleet.nodes["B"].store
    fleet.run(began + 5, stop=lambda: a.version(a.key(0, "new")) is not None)
    assert fleet.now - began < 0.65, "hello there, hello and the order back"
    fleet.run(began + 5, stop=lambda: b.version(b.key(0, "new of the other")) is not None)
    assert fleet.now - began < 0.95


@pytest.mark.parametrize("wiped", [False, True])
def test_who_calls_a_node_met_before_sends_commands_without_waiting_for_its_answer(wiped: bool) -> None:
    wire = Wire(delay=0.3)
    fleet = chain(11, "AB", wire)
    for number in range(40):
        fleet.nodes["A"].store.put(number % 4, f"x{number}")
    fleet.changed("A")
    fleet.run(20)
    fleet.cut("A", "B")
    if wiped:
        fleet.wipe("B")
    for number in range(400):
        fleet.put("A", number % 2, f"new{number:03d}")
    began, before = fleet.now, fleet.bytes["A", "B"]
    fleet.link("A", "B", wire)
    fleet.run(began + 0.4)
    there = {key.doc_id for key in fleet.nodes["B"].store.versions()}
    assert "new000" in there and "new001" not in there, "the first class alone"
    assert len([name for name in there if name.startswith("new")]) < 200, "no more than one round of TCP"
    fleet.run(began + 30)
    assert same(fleet)
    once = sum(120 + len(name) for name in fleet.nodes["B"].store.versions()) if wiped else 400 * 130
    assert fleet.bytes["A", "B"] - before < 1.15 * once + 4000
