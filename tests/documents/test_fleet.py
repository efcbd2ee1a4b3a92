"""A fleet in memory that writes, deletes, parts, loses, repeats, crashes, wipes, misreads its clocks: it converges."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from peat_p2p.documents.store import MemoryStore

DAY = 86_400.0
NAMES = ("alpha", "bravo", "charlie", "delta")


names = st.sampled_from(NAMES)
collections = st.sampled_from(["things", "platforms", "commands"])
doc_ids = st.sampled_from(["one", "two"])
field_names = st.sampled_from(["a", "b", "last_seen"])


class Machine(RuleBasedStateMachine):
    """What is done to a fleet, and what must hold of it in the end."""

    is_long = False
    new_fleet: staticmethod

    @initialize(seed=st.integers(0, 1 << 30))
    def begin(self, seed):
        self.fleet = self.new_fleet(NAMES, seed)
        self.values = 0
        # Values that a later delete has seen; and those that nothing was written over, by document and field.
        self.deleted: dict[tuple[str, str, str], set[int]] = {}
        self.alone: dict[tuple[str, str, str], int | None] = {}
        # Documents that were deleted: a write that did not know may come before the deletion by its stamp.
        self.hit: set[tuple[str, str]] = set()
        # What each member has shown of each field, in order; None where it showed nothing after something.
        self.shown: dict[str, dict[tuple[str, str, str], list[int | None]]] = {name: {} for name in NAMES}
        self.held: list[object] = []

    @invariant()
    def nothing_returns(self):
        """What was overwritten or deleted in the eyes of a member never returns there, whatever comes in how late."""
        for name, shown in self.shown.items():
            documents = self.fleet.members[name].documents()
            now = {
                (collection, doc_id, field): value
                for (collection, doc_id), text in documents.items()
                if collection == "things"  # the others live for a time, by clocks that are misread
                for field, value in json.loads(text).items()
            }
            for place in now.keys() | shown.keys():
                history = shown.setdefault(place, [])
                value = now.get(place)
                if not history or history[-1] != value:
                    assert value is None or value not in history, f"{value} of {place} is back at {name}"
                    history.append(value)

    @rule(name=names, collection=collections, doc_id=doc_ids, fields=st.sets(field_names, min_size=1))
    def put(self, name, collection, doc_id, fields):
        self.values += 1
        value = int(self.fleet.now) + self.values
        self.fleet.put(name, collection, doc_id, dict.fromkeys(fields, value))
        now = json.loads(self.fleet.members[name].documents()[collection, doc_id])
        assert all(now[field] == value for field in fields), "a writer sees what it wrote"
        # Documents of the other collections live for a time only, by the clock of who wrote them.
        over = (collection, doc_id) in self.hit or (
            collection != "things" and (self.is_long or self.fleet.members[name].skew < -20 * DAY)
        )
        for field in fields:
            place = (collection, doc_id, field)
            self.alone[place] = None if place in self.alone or over else value

    @rule(name=names, collection=collections, doc_id=doc_ids)
    def delete(self, name, collection, doc_id):
        member = self.fleet.members[name]
        seen = member.documents().get((collection, doc_id))
        self.fleet.delete(name, collection, doc_id)
        assert (collection, doc_id) not in member.documents()
        self.hit.add((collection, doc_id))
        for field, value in json.loads(seen or "{}").items():
            self.deleted.setdefault((collection, doc_id, field), set()).add(value)
        for place in self.alone:
            if place[:2] == (collection, doc_id):
                self.alone[place] = None

    @rule(one=names, two=names, repeat=st.booleans(), limit=st.sampled_from([1, 3, 1000]))
    def meet(self, one, two, repeat, limit):
        if one != two:
            self.fleet.meet(one, two, repeat=repeat, limit=limit)

    @rule(name=names)
    def crash(self, name):
        """What is committed is all there is."""
        member = self.fleet.members[name]
        before = member.documents()
        member.start(self.fleet.now)
        assert member.documents() == before

    @rule(name=names)
    def wipe(self, name):
        """The node comes back with an empty database and the same key."""
        self.maybe_lost()
        self.shown[name] = {}
        member = self.fleet.members[name]
        member.store = MemoryStore()
        member.start(self.fleet.now)

    def maybe_lost(self):
        """What had not reached everybody may be lost with the database that knew of it."""
        views = [member.documents() for member in self.fleet.members.values()]
        for documents in views:
            for (collection, doc_id), text in documents.items():
                for field, value in json.loads(text).items():
                    self.deleted.get((collection, doc_id, field), set()).discard(value)
        for (collection, doc_id, field), value in self.alone.items():
            if any(json.loads(view.get((collection, doc_id), "{}")).get(field) != value for view in views):
                self.alone[collection, doc_id, field] = None

    def check(self):
        found = {key: json.loads(text) for key, text in self.fleet.check_equal(lasting=self.is_long).items()}
        for (collection, doc_id), fields in found.items():
            for field, value in fields.items():
                assert value not in self.deleted.get((collection, doc_id, field), ()), "a deleted value is back"
        for (collection, doc_id, field), value in self.alone.items():
            if value is not None:
                assert found.get((collection, doc_id), {}).get(field) == value, "a write is lost"


class FleetMachine(Machine):
    """Any history of a fleet within the horizon."""

    @rule(one=names, two=names, lose=st.sampled_from([0.0, 0.3, 0.9]))
    def meet_badly(self, one, two, lose):
        if one != two:
            self.fleet.meet_badly(one, two, lose)

    @rule(one=names, two=names)
    def hold_back(self, one, two):
        if one != two:
            self.held.append(self.fleet.hold_back(one, two))

    @rule(number=st.integers(0, 10), again=st.booleans())
    def deliver_late(self, number, again):
        """Messages come in any order, some twice."""
        if self.held:
            held = self.held[number % len(self.held)] if again else self.held.pop(number % len(self.held))
            self.fleet.deliver_late(held)

    @rule(seconds=st.sampled_from([0.0, 0.001, 1.0, 30.0, 400.0, 3600.0]))
    def pass_time(self, seconds):
        self.fleet.now += seconds

    @rule(name=names, skew=st.sampled_from([-1e9, -4000.0, 0.0, 4000.0, 3e8]))
    def misread_clock(self, name, skew):
        # What another writer signed vouches for the time; two clocks that are years ahead would vouch for each other.
        if skew > DAY:
            name = "delta"
        self.fleet.members[name].skew = skew

    @rule(name=names)
    def put_back(self, name):
        """The node comes back with the database of the last time this happened."""
        member = self.fleet.members[name]
        old, member.backup = getattr(member, "backup", None), dict(member.store.rows)
        if old is not None:
            self.maybe_lost()
            self.shown[name] = {}
            member.store.rows = old
            member.start(self.fleet.now)
            self.maybe_lost()

    @rule()
    def tend(self):
        self.fleet.tend()

    def teardown(self):
        if not hasattr(self, "fleet"):
            return
        for member in self.fleet.members.values():
            member.skew = 0.0
        self.fleet.settle()
        # What was written by a clock that was behind by more than a document lives goes everywhere.
        self.fleet.tend()
        self.fleet.settle()
        self.check()


class AbsenceMachine(Machine):
    """Days and weeks of partitions, much longer than deletions are remembered."""

    is_long = True

    @rule(count=st.sampled_from([1, 2, 5, 9, 20]), where=st.lists(st.integers(0, 4), min_size=4, max_size=4))
    def days(self, count, where):
        groups = [[name for name, group in zip(NAMES, where, strict=True) if group == number] for number in range(4)]
        self.fleet.days(count, groups)

    def teardown(self):
        if not hasattr(self, "fleet"):
            return
        self.fleet.settle()
        self.fleet.days(2, [NAMES])
        self.fleet.settle()
        self.check()


def run_machine(machine, new_fleet, examples, steps):
    machine.new_fleet = staticmethod(new_fleet)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


HISTORIES = int(os.environ.get("PEAT_HISTORIES", "200"))


@pytest.mark.timeout(600)
def test_any_history_converges(new_fleet):
    run_machine(FleetMachine, new_fleet, HISTORIES, steps=30)


@pytest.mark.timeout(600)
def test_any_history_of_long_absences_converges(new_fleet):
    run_machine(AbsenceMachine, new_fleet, HISTORIES // 2, steps=20)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_histories_converge(new_fleet):
    run_machine(FleetMachine, new_fleet, 10_000, steps=40)
    run_machine(AbsenceMachine, new_fleet, 2_000, steps=30)
