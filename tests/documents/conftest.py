"""Credentials of one formation, replicas of it, and a whole fleet in memory with cheap signatures."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from peat_p2p.core.clock import ManualClock, SystemClock
from peat_p2p.core.errors import UntrustedError
from peat_p2p.documents.authority import Claim
from peat_p2p.documents.codec import decode_update, encode_update
from peat_p2p.documents.keys import certificate_key
from peat_p2p.documents.ledger import Ledger, open_ledger
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.rules import Rules
from peat_p2p.documents.store import MemoryStore
from peat_p2p.documents.types import CursorMove, Limits, Outcome, Update, Verdict
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Identity, Role

Open = Callable[..., AbstractAsyncContextManager[Replica]]


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeCredentials]:
    """Nodes of a formation, by name; `stranger` is of another."""
    root = tmp_path_factory.mktemp("formation")
    both = [Role.AGENT, Role.OPERATOR]
    roles = dict.fromkeys(("alpha", "bravo", "charlie"), both)
    roles |= {"hub": [Role.HUB], "edge": [Role.AGENT], "captive": [Role.AGENT]}
    formation = Formation.init(root / "ca", "test")
    for name in roles:
        formation.issue(name, roles[name], root / name)
    Formation.init(root / "other", "other").issue("stranger", both, root / "stranger")
    return {name: NodeCredentials.load(root / name) for name in (*roles, "stranger")}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=SystemClock().wall())


@pytest.fixture
async def make(nodes: dict[str, NodeCredentials], clock: ManualClock) -> AsyncIterator[Callable[..., object]]:
    """Opens replicas (`await make("alpha", path=None)`) that close with the test."""
    async with AsyncExitStack() as stack:

        async def open_replica(name: str, path: Path | None = None, **options: object) -> Replica:
            return await stack.enter_async_context(Replica.open(path, nodes[name], clock, **options))

        yield open_replica


@pytest.fixture
def sync() -> Callable[..., object]:
    """Brings everything one replica has changed since `cursors` to another, as a link would."""

    async def bring(source: Replica, target: Replica, cursors: dict[int, int] | None = None) -> list[Outcome]:
        cursors = {} if cursors is None else cursors
        outcomes: list[Outcome] = []
        me, other = source.node.endpoint_id, target.node.endpoint_id
        for klass in range(4):
            since = cursors.get(klass, 0)
            updates: list[Update] = []
            for _seq, key in source.changed_since(klass, since, 1_000_000, peer=other):
                proof = source.make_update(source.certificate_key(key.origin))
                if proof is not None:
                    updates.append(proof)
                update = source.make_update(key, since)
                if update is not None:
                    updates.append(update)
            outcomes += await target.apply(updates, me)
            cursors[klass] = source.head(klass)
        await target.caught_up(me)
        return outcomes

    return bring


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
        end = START + (60 * DAY if certificate == b"leaving" else 1e9)
        return Identity(certificate.decode(), endpoint, "test", roles, START - 1e9, end, certificate)

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

    def deliver(self, updates, now, klass=None, cursor=0, *, late=False):
        """Give updates to the target over the wire's form; answer what it asks for. Returns the outcomes."""
        target, source = self.target, self.source
        outcomes = []
        for update in updates:
            outcome = target.ledger.apply(
                decode_update(update.key, encode_update(update)), source.id, now + target.skew
            )
            if outcome.verdict is Verdict.NEED_CERTIFICATE:
                proof = source.ledger.make_update(certificate_key(outcome.key.origin))
                assert proof is not None or late
                if proof is None:
                    continue  # the sender has lost its database since
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
        for member, other in ((self.members[one], self.members[two]), (self.members[two], self.members[one])):
            member.ledger.meet(other.id, other.ledger.epoch)
        self._forget(one, two, there.pull(self.now, **how))
        self._forget(two, one, back.pull(self.now, **how))
        for source, target, link in ((one, two, there), (two, one, back)):
            if self.members[source].ledger.horizon.take_reoffer(self.members[target].id):
                self._forget(source, target, link.pull(self.now, whole=True))

    def meet_badly(self, one, two, lose):
        """One direction, repeated, shuffled and with losses."""
        link = Link(self.members[one], self.members[two])
        self.members[one].ledger.meet(self.members[two].id, b"")
        link.pull(self.now, shuffle=self.random, lose=lose, repeat=True)

    def hold_back(self, one, two):
        """What `one` would send to `two` now, kept for `deliver_late`: as with a relay that is cut off meanwhile."""
        link = Link(self.members[one], self.members[two])
        updates = []
        for klass in range(4):
            since = link.cursor(klass)
            found = link.source.ledger.changed_since(klass, since, 1_000, link.target.id)
            updates += [link.source.ledger.make_update(key, since) for _, key in found]
        return one, two, [update for update in updates if update is not None]

    def deliver_late(self, held):
        """Let what was held back arrive, whatever has happened since."""
        one, two, updates = held
        Link(self.members[one], self.members[two]).deliver(updates, self.now, late=True)

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

    def check_equal(self, *, lasting=False):
        """All have the same documents; `lasting`: but for those that end by time, hours earlier here than there."""
        views = {name: member.documents() for name, member in self.members.items()}
        if lasting:
            views = {n: {key: text for key, text in view.items() if key[0] == "things"} for n, view in views.items()}
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


@pytest.fixture
def new_fleet() -> Callable[..., Fleet]:
    """Makes fleets: `new_fleet(names, seed=0)`."""
    return Fleet
