"""What is forgotten, when, and that forgetting neither brings anything back nor loses anything new."""

from __future__ import annotations

import json

import pytest

NAMES = ("alpha", "bravo", "charlie", "delta")


def test_a_node_that_was_away_too_long_brings_nothing_back_and_loses_nothing(new_fleet):
    fleet = new_fleet(NAMES)
    fleet.put("delta", "things", "shared", {"old": 1})
    fleet.put("alpha", "things", "foreign", {"old": 1})
    fleet.days(2, [NAMES])
    others = NAMES[:3]
    fleet.delete("bravo", "things", "shared")
    fleet.delete("bravo", "things", "foreign")
    fleet.days(1, [others])
    fleet.put("delta", "things", "shared", {"new": 2})
    fleet.put("delta", "things", "own", {"new": 3})
    fleet.days(10, [others, ["delta"]])
    for name in others:
        assert fleet.parts(name, "shared") == [], "the deletion itself is forgotten"
    fleet.meet("delta", "bravo")
    fleet.settle()
    found = fleet.check_equal()
    assert found == {("things", "shared"): '{"new":2}', ("things", "own"): '{"new":3}'}
    assert fleet.parts("delta", "foreign") == []


def test_two_halves_apart_for_long_agree_on_what_is_deleted(new_fleet):
    fleet = new_fleet(NAMES)
    for name in NAMES:
        fleet.put(name, "things", f"of {name}", {"old": 1})
        fleet.put(name, "things", f"kept by {name}", {"old": 1})
    fleet.days(2, [NAMES])
    fleet.delete("alpha", "things", "of alpha")
    fleet.delete("alpha", "things", "of charlie")
    fleet.delete("charlie", "things", "of bravo")
    fleet.delete("charlie", "things", "of delta")
    halves = [NAMES[:2], NAMES[2:]]
    fleet.days(3, halves)
    fleet.put("delta", "things", "kept by alpha", {"new": 2})
    fleet.put("charlie", "things", "of charlie", {"new": 2})
    fleet.days(12, halves)
    assert fleet.parts("alpha", "of alpha") == fleet.parts("delta", "of delta") == []
    fleet.days(1, [NAMES])
    fleet.settle()
    found = fleet.check_equal()
    assert found["things", "of charlie"] == '{"new":2}'
    assert found["things", "kept by alpha"] == '{"new":2,"old":1}'
    assert {doc_id for _, doc_id in found} == {"of charlie", *(f"kept by {name}" for name in NAMES)}


def test_nothing_is_left_of_deleted_documents(new_fleet):
    fleet = new_fleet(NAMES)
    for number in range(50):
        fleet.put(NAMES[number % 4], "things", str(number), {"a": number})
    fleet.days(1, [NAMES])
    for number in range(50):
        fleet.delete(NAMES[(number + 1) % 4], "things", str(number))
    fleet.days(10, [NAMES])
    for member in fleet.members.values():
        assert [part.key for part in member.ledger.shelf.parts() if part.key.collection == "things"] == []
        assert not any(row.startswith(b"p") and b"things" in row for row in member.store.rows)


def documents(fleet, name="alpha"):
    return {doc_id for _, doc_id in fleet.members[name].documents()}


def test_heartbeats_end_after_their_time(new_fleet):
    fleet = new_fleet(NAMES)
    fleet.put("alpha", "platforms", "dead", {"last_seen": int(fleet.now), "name": "x"})
    fleet.put("alpha", "deployments", "dead:tool", {"version": "1"})
    fleet.put("alpha", "packages", "dead:tool:1", {"version": "1"})
    fleet.put("bravo", "deployments", "alive:tool", {"version": "1"})
    for _ in range(45):
        fleet.put("bravo", "platforms", "alive", {"last_seen": int(fleet.now), "name": "y"})
        fleet.days(1, [NAMES])
    assert fleet.check_equal().keys() == {("platforms", "alive"), ("deployments", "alive:tool")}
    assert all(fleet.parts(name, "dead") == [] for name in NAMES)


def test_commands_stay_until_their_end_and_the_horizon(new_fleet):
    fleet = new_fleet(NAMES)
    start = int(fleet.now)
    fleet.put("alpha", "commands", "short", {"expires_at": start + 86_400})
    fleet.put("alpha", "commands", "long", {"expires_at": start + 20 * 86_400})
    fleet.put("alpha", "commands", "milliseconds", {"expires_at": (start + 20 * 86_400) * 1000})
    fleet.put("alpha", "commands", "never", {"expires_at": 0})
    fleet.days(7, [NAMES])
    assert documents(fleet) == {"short", "long", "milliseconds", "never"}
    fleet.days(3, [NAMES])
    assert documents(fleet) == {"long", "milliseconds", "never"}
    fleet.days(20, [NAMES])
    assert documents(fleet) == {"never"}
    fleet.days(62, [NAMES])
    assert documents(fleet) == set()
    fleet.check_equal()


def test_overwritten_writers_leave_nothing(new_fleet):
    fleet = new_fleet(NAMES)
    for name in NAMES:
        fleet.put(name, "things", "one", {"a": name, name: 1})
        fleet.days(1, [NAMES])
    for field in ("a", *NAMES):
        fleet.put("delta", "things", "one", {field: "last"})
    fleet.days(10, [NAMES])
    for name in NAMES:
        assert [part.key.origin for part in fleet.parts(name, "one")] == [fleet.members["delta"].id]
    assert len(json.loads(fleet.check_equal()["things", "one"])) == 5


def test_a_part_does_not_grow_with_its_history(new_fleet):
    fleet = new_fleet(("alpha", "bravo"))
    for number in range(3000):
        fleet.now += 30
        fields = {"last_seen": int(fleet.now), "a" if number % 2 else "b": number, "c": number % 7}
        fleet.put("alpha", "platforms", "alpha", fields)
        if number % 10 == 0:
            fleet.meet("alpha", "bravo")
        if number == 100:
            (first,) = fleet.parts("alpha", "alpha")
    fleet.meet("alpha", "bravo")
    for name in ("alpha", "bravo"):
        (last,) = fleet.parts(name, "alpha")
        assert len(last.state) < 1000
        assert last.generation > first.generation
    fleet.check_equal()


def test_a_clock_that_jumps_ahead_forgets_nothing(new_fleet):
    fleet = new_fleet(NAMES)
    fleet.put("alpha", "things", "deleted", {"a": 1})
    fleet.put("alpha", "platforms", "alpha", {"last_seen": int(fleet.now)})
    fleet.days(1, [NAMES])
    fleet.delete("alpha", "things", "deleted")
    fleet.meet("alpha", "bravo")
    fleet.members["bravo"].skew = 3e8
    fleet.tend("bravo")
    assert "alpha" in documents(fleet, "bravo")
    assert fleet.parts("bravo", "deleted") != []
    fleet.settle()
    assert fleet.check_equal().keys() == {("platforms", "alpha")}


def test_certificates_of_writers_long_gone_go(new_fleet):
    names = ("alpha", "bravo", "leaving")
    fleet = new_fleet(names)
    gone = fleet.members["leaving"]
    fleet.put("leaving", "platforms", "leaving", {"last_seen": int(fleet.now)})
    fleet.days(1, [names])
    shelf = fleet.members["alpha"].ledger.shelf
    fleet.days(50, [names[:2]])
    assert len(fleet.parts("alpha", gone.id)) == 3, "where it was, and its beacons of two classes"
    assert shelf.certificate(gone.id) is not None, "the certificate is still good"
    fleet.days(20, [names[:2]])
    assert shelf.certificate(gone.id) is None
    assert not [part for part in shelf.parts() if part.key.origin == gone.id]
    assert not any(bytes.fromhex(gone.id) in name for name in fleet.members["alpha"].store.rows)


def test_a_peer_is_not_believed_that_something_is_forgotten(new_fleet):
    """Only after a long absence counts what a peer says was deleted and forgotten."""
    fleet = new_fleet(NAMES)
    fleet.put("alpha", "things", "one", {"a": 1})
    fleet.days(20, [NAMES])
    (part,) = fleet.parts("bravo", "one")
    fleet._forget("bravo", "charlie", [(part.key, part.version)])
    assert fleet.parts("bravo", "one") == [part]


def test_a_node_alone_forgets_too_but_not_by_a_clock_that_jumped(new_fleet):
    fleet = new_fleet(("alpha",))
    fleet.put("alpha", "things", "deleted", {"a": 1})
    fleet.delete("alpha", "things", "deleted")
    fleet.put("alpha", "platforms", "alpha", {"a": 1})
    fleet.members["alpha"].skew = 3e8
    fleet.put("alpha", "things", "one", {"a": 1})
    fleet.tend("alpha")
    assert documents(fleet) == {"alpha", "one"}
    assert fleet.parts("alpha", "deleted") != []
    fleet.members["alpha"].skew = 0.0
    for _ in range(31 * 4):
        fleet.now += 6 * 3600
        fleet.tend("alpha")
    assert documents(fleet) == {"one"}
    assert fleet.parts("alpha", "deleted") == []


@pytest.mark.parametrize(("collection", "days"), [("receipts", 90), ("cells", 30), ("tracks", 30)])
def test_documents_that_live_for_a_time_end_after_it(new_fleet, collection, days):
    fleet = new_fleet(NAMES)
    fleet.put("alpha", collection, "one", {"a": 1})
    fleet.days(days - 1, [NAMES])
    assert documents(fleet) == {"one"}
    # The fleet's common time, by which a document ends, follows the clocks by a day or two.
    fleet.days(4, [NAMES])
    assert fleet.check_equal() == {}


@pytest.mark.parametrize("later", ["write", "delete"])
def test_a_write_concurrent_with_a_delete_survives_only_by_a_higher_stamp(new_fleet, later):
    fleet = new_fleet(NAMES)
    fleet.put("alpha", "things", "one", {"old": 1})
    fleet.settle()
    fleet.now += 10
    if later == "write":
        fleet.delete("alpha", "things", "one")
        fleet.now += 10
        fleet.put("bravo", "things", "one", {"new": 2})
    else:
        fleet.put("bravo", "things", "one", {"new": 2})
        fleet.now += 10
        fleet.delete("alpha", "things", "one")
    fleet.settle()
    assert fleet.check_equal() == ({("things", "one"): '{"new":2}'} if later == "write" else {})
