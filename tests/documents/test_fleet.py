"""A fleet in memory that writes, deletes, parts, loses, repeats, crashes, wipes, misreads its clocks: it converges."""

from __future__ import annotations

import hashlib
import json
import os
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from peat_p2p.core.errors import UntrustedError
from peat_p2p.documents.authority import Claim
from peat_p2p.documents.codec import decode_update, encode_update
from peat_p2p.documents.keys import certificate_key
from peat_p2p.documents.ledger import Ledger, open_ledger
from peat_p2p.documents.rules import Rules
from peat_p2p.documents.store import MemoryStore
from peat_p2p.documents.types import CursorMove, Limits, Verdict
from peat_p2p.trust.identity import Identity, Role

START = 1_700_000_000.0
DAY = 86_400.0
LIMITS = Limits()


class CheapAuthority:
    """Signatures that cost nothing to make or forge; who signs what is checked all the same."""

    def __init__(self, name: str) -> None:
        self.node = self.identify(name.encode())

    def identify(self, certificate: bytes) -> Identity:
        if not certificate.isalnum():
            raise UntrustedError("not a certificate")
        endpoint = hashlib.sha256(certificate).hexdigest()
        roles = frozenset({Role.AGENT})
        return Identity(certificate.decode(), endpoint, "test", roles, START - 1e9, START + 1e9, certificate)

    def sign(self, data: bytes) -> bytes:
        return hashlib.sha512(self.node.endpoint_id.encode() + data).digest()

    def verifies(self, identity: Identity, signature: bytes, data: bytes) -> bool:
        return signature == hashlib.sha512(identity.endpoint_id.encode() + data).digest()

    def refusal(self, claim: Claim) -> str:
        return ""


class Member:
    """A node of the fleet: its store, its present process, its clock."""

    def __init__(self, name: str, randomness: random.Random) -> None:
        self.authority = CheapAuthority(name)
        self.id = self.authority.node.endpoint_id
        self.random = randomness
        self.store = MemoryStore()
        self.skew = 0.0
        self.ledger: Ledger

    def start(self, now: float) -> None:
        self.ledger = open_ledger(
            self.store, self.authority, LIMITS, Rules(), self.random.randbytes, now + self.skew, chain_length=300
        )
        self.ledger.desk.put_reserved("_sidecars", {"addresses": "[]"}, now + self.skew)
        self.ledger.flush(self.store)

    def documents(self) -> dict[tuple[str, str], str]:
        found = {}
        for collection in self.ledger.shelf.collections():
            for doc_id in self.ledger.shelf.doc_ids(collection):
                document = self.ledger.shelf.document(collection, doc_id)
                if document is not None and not collection.startswith("_"):
                    found[collection, doc_id] = document.json
        return found


class Link:
    """Carries one direction between two members, as the mesh does, but badly."""

    def __init__(self, source: Member, target: Member) -> None:
        self.source = source
        self.target = target

    def cursor(self, klass: int) -> int:
        return self.target.ledger.shelf.cursors(self.source.id, self.source.ledger.epoch).get(klass, 0)

    def deliver(self, updates, now, klass=None, cursor=0):
        """Give updates to the target over the wire's form; answer what it asks for. Returns the outcomes."""
        target, source = self.target, self.source
        outcomes = []
        for update in updates:
            outcome = target.ledger.apply(
                decode_update(update.key, encode_update(update)), source.id, now + target.skew
            )
            if outcome.verdict is Verdict.NEED_CERTIFICATE:
                proof = source.ledger.make_update(certificate_key(outcome.key.origin))
                assert proof is not None
                target.ledger.apply(proof, source.id, now + target.skew)
                outcome = target.ledger.apply(update, source.id, now + target.skew)
            if outcome.verdict is Verdict.NEED_FULL:
                whole = source.ledger.make_update(update.key)
                if whole is not None:
                    outcome = target.ledger.apply(whole, source.id, now + target.skew)
            assert outcome.verdict is not Verdict.REJECTED, outcome
            assert outcome.verdict is not Verdict.NEED_FULL or source.ledger.make_update(update.key) is None
            outcomes.append(outcome)
        if klass is not None:
            target.ledger.move(CursorMove(source.id, source.ledger.epoch, klass, cursor))
        target.ledger.flush(target.store)
        return outcomes

    def pull(self, now, *, shuffle=None, lose=0.0, repeat=False, limit=1_000, whole=False):
        """One exchange: all classes, from the target's cursors. With losses the cursor stays where it was."""
        purged = []
        complete = True
        for klass in range(4):
            since = 0 if whole else self.cursor(klass)
            head = self.source.ledger.shelf.head(klass)
            found = self.source.ledger.changed_since(klass, since, limit, self.target.id if not whole else "")
            if len(found) == limit:
                head = found[-1][0]
                complete = complete and head == self.source.ledger.shelf.head(klass)
            updates = [self.source.ledger.make_update(key, since) for _, key in found]
            updates = [update for update in updates if update is not None]
            if repeat:
                updates = updates + updates
            if shuffle is not None:
                kept = [update for update in updates if shuffle.random() >= lose]
                if len(kept) != len(updates):
                    complete = False
                shuffle.shuffle(kept)
                self.deliver(kept, now)
                continue
            outcomes = self.deliver(updates, now, klass, head)
            purged += [(outcome.key, outcome.floor) for outcome in outcomes if outcome.verdict is Verdict.PURGED]
        if complete and shuffle is None:
            self.target.ledger.horizon.caught_up(self.source.id)
            self.target.ledger.flush(self.target.store)
        return purged


class Fleet:
    """Members and how they meet."""

    def __init__(self, names, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.now = START
        self.members = {name: Member(name, self.random) for name in names}
        for member in self.members.values():
            member.start(self.now)

    def put(self, name, collection, doc_id, fields):
        member = self.members[name]
        text = {key: json.dumps(value) for key, value in fields.items()}
        member.ledger.desk.put(collection, doc_id, text, self.now + member.skew)
        member.ledger.flush(member.store)

    def delete(self, name, collection, doc_id):
        member = self.members[name]
        member.ledger.desk.delete(collection, doc_id, self.now + member.skew)
        member.ledger.flush(member.store)

    def tend(self, *names):
        for name in names or self.members:
            member = self.members[name]
            member.ledger.tend(self.now + member.skew)
            member.ledger.flush(member.store)

    def meet(self, one, two, **how):
        """Both directions, with what the mesh does about forgotten parts and long absence."""
        there, back = Link(self.members[one], self.members[two]), Link(self.members[two], self.members[one])
        self._forget(one, two, there.pull(self.now, **how))
        self._forget(two, one, back.pull(self.now, **how))
        for source, target, link in ((one, two, there), (two, one, back)):
            if self.members[source].ledger.horizon.take_reoffer(self.members[target].id):
                self._forget(source, target, link.pull(self.now, whole=True))

    def _forget(self, name, peer, purged):
        """Member `name` hears from `peer` that parts were forgotten, and tells the others what it then forgets."""
        member = self.members[name]
        now = self.now + member.skew
        if not purged or not member.ledger.horizon.believes(self.members[peer].id, now):
            return
        time = member.ledger.compactor.time(now)
        forgotten = [(key, floor) for key, floor in purged if member.ledger.compactor.forget(key, floor, now, time)]
        member.ledger.flush(member.store)
        if forgotten:
            for other in self.members:
                if other not in (name, peer):
                    self._forget(other, name, forgotten)

    def settle(self):
        """Let everybody meet until nothing moves."""
        names = list(self.members)
        before = None
        for _ in range(12):
            for index, one in enumerate(names):
                for two in names[index + 1 :]:
                    self.meet(one, two)
            state = {name: (m.documents(), m.ledger.shelf.seq) for name, m in self.members.items()}
            if state == before:
                return
            before = state
        raise AssertionError("the fleet does not come to rest")

    def check_equal(self):
        views = {name: member.documents() for name, member in self.members.items()}
        first = next(iter(views.values()))
        for name, view in views.items():
            assert view == first, f"{name}: {view} differs from {first}"
        return first

    def days(self, count, groups):
        """Days go by; who is in the same group is in touch, who is in none is switched off."""
        for _ in range(count):
            self.now += DAY
            for group in groups:
                self.tend(*group)
                for index, one in enumerate(group):
                    for two in group[index + 1 :]:
                        self.meet(one, two)

    def parts(self, name, doc_id):
        return [part for part in self.members[name].ledger.shelf.parts() if part.key.doc_id == doc_id]


NAMES = ("alpha", "bravo", "charlie", "delta")


names = st.sampled_from(NAMES)
collections = st.sampled_from(["things", "platforms", "commands"])
doc_ids = st.sampled_from(["one", "two"])
field_names = st.sampled_from(["a", "b", "last_seen"])


class Machine(RuleBasedStateMachine):
    """What is done to a fleet, and what must hold of it in the end."""

    is_long = False

    @initialize(seed=st.integers(0, 1 << 30))
    def begin(self, seed):
        self.fleet = Fleet(NAMES, seed)
        self.values = 0
        # Values that a later delete has seen; and those that nothing was written over, by document and field.
        self.deleted: dict[tuple[str, str, str], set[int]] = {}
        self.alone: dict[tuple[str, str, str], int | None] = {}

    @rule(name=names, collection=collections, doc_id=doc_ids, fields=st.sets(field_names, min_size=1))
    def put(self, name, collection, doc_id, fields):
        self.values += 1
        value = int(self.fleet.now) + self.values
        self.fleet.put(name, collection, doc_id, dict.fromkeys(fields, value))
        now = json.loads(self.fleet.members[name].documents()[collection, doc_id])
        assert all(now[field] == value for field in fields), "a writer sees what it wrote"
        # Documents of the other collections live for a time only, by the clock of who wrote them.
        over = collection != "things" and (self.is_long or self.fleet.members[name].skew < -20 * DAY)
        for field in fields:
            place = (collection, doc_id, field)
            self.alone[place] = None if place in self.alone or over else value

    @rule(name=names, collection=collections, doc_id=doc_ids)
    def delete(self, name, collection, doc_id):
        member = self.fleet.members[name]
        seen = member.documents().get((collection, doc_id))
        self.fleet.delete(name, collection, doc_id)
        assert (collection, doc_id) not in member.documents()
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
        found = {key: json.loads(text) for key, text in self.fleet.check_equal().items()}
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
            Link(self.fleet.members[one], self.fleet.members[two]).pull(
                self.fleet.now, shuffle=self.fleet.random, lose=lose, repeat=True
            )

    @rule(seconds=st.sampled_from([0.0, 0.001, 1.0, 30.0, 400.0, 3600.0]))
    def pass_time(self, seconds):
        self.fleet.now += seconds

    @rule(name=names, skew=st.sampled_from([-1e9, -4000.0, 0.0, 4000.0, 3e8]))
    def misread_clock(self, name, skew):
        self.fleet.members[name].skew = skew

    @rule(name=names)
    def put_back(self, name):
        """The node comes back with the database of the last time this happened."""
        member = self.fleet.members[name]
        old, member.backup = getattr(member, "backup", None), dict(member.store.rows)
        if old is not None:
            self.maybe_lost()
            member.store.rows = old
            member.start(self.fleet.now)

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


def run_machine(machine, examples, steps):
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


HISTORIES = int(os.environ.get("PEAT_HISTORIES", "100"))


@pytest.mark.timeout(600)
def test_any_history_converges():
    run_machine(FleetMachine, HISTORIES, steps=30)


@pytest.mark.timeout(600)
def test_any_history_of_long_absences_converges():
    run_machine(AbsenceMachine, HISTORIES // 2, steps=20)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_histories_converge():
    run_machine(FleetMachine, 10_000, steps=40)
    run_machine(AbsenceMachine, 2_000, steps=30)


def test_a_node_that_was_away_too_long_brings_nothing_back_and_loses_nothing():
    fleet = Fleet(NAMES)
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


def test_two_halves_apart_for_long_agree_on_what_is_deleted():
    fleet = Fleet(NAMES)
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


def test_nothing_is_left_of_deleted_documents():
    fleet = Fleet(NAMES)
    for number in range(50):
        fleet.put(NAMES[number % 4], "things", str(number), {"a": number})
    fleet.days(1, [NAMES])
    for number in range(50):
        fleet.delete(NAMES[(number + 1) % 4], "things", str(number))
    fleet.days(10, [NAMES])
    for member in fleet.members.values():
        assert [part.key for part in member.ledger.shelf.parts() if part.key.collection == "things"] == []
        assert not any(row.startswith(b"p") and b"things" in row for row in member.store.rows)
