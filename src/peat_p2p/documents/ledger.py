"""The deciding parts of a replica put together, without waiting.

Owns the composition: tables, writing, applying, remembering, forgetting; and the names a database gives itself. Keeps
the rule that time and randomness are given. `flush` commits in the caller's thread, for simulations and tests; the
replica commits in groups instead. Must not know about asyncio.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from peat_p2p.documents.applying import Gate, Opened
from peat_p2p.documents.authority import Authority
from peat_p2p.documents.chain import CHAIN_LENGTH
from peat_p2p.documents.compacting import Compactor
from peat_p2p.documents.horizon import Horizon
from peat_p2p.documents.loading import load
from peat_p2p.documents.rules import Rules
from peat_p2p.documents.sending import make_update
from peat_p2p.documents.shelf import Certificate, Shelf, Staged
from peat_p2p.documents.stamps import StampClock
from peat_p2p.documents.store import Store
from peat_p2p.documents.types import CursorMove, Limits, Outcome, PartKey, Update, Version
from peat_p2p.documents.view import EqualJudge, Judge
from peat_p2p.documents.writing import Desk

_LOG = logging.getLogger(__name__)


class Ledger:
    """One node's documents, synchronously."""

    def __init__(
        self,
        authority: Authority,
        limits: Limits,
        rules: Rules,
        random: Callable[[int], bytes],
        *,
        judge: Judge | None = None,
        chain_length: int = CHAIN_LENGTH,
    ) -> None:
        self.authority = authority
        judge = judge or EqualJudge()
        self.shelf = Shelf(rules, judge)
        judge.identity_of = self.shelf.identity_of
        self._random = random
        self._met: dict[str, str] = {}
        self._meetings = 0
        self._stamps = StampClock()
        self.desk = Desk(self.shelf, authority, judge, limits, self._stamps, random, chain_length)
        self.horizon = Horizon(self.shelf, self._own_writer, self._stamps)
        self.compactor = Compactor(self.shelf, self.horizon, self.desk)
        self.gate = Gate(self.shelf, authority, limits, self.horizon)
        self.gate.on_own = self._own_part_came

    @property
    def epoch(self) -> bytes:
        """Names this database: a new one has another."""
        return self.shelf.meta["epoch"]

    def open(self, held: Staged, now: float) -> None:
        """Take in what the store held (see `load`); stage a new database's names, our certificate and beacons."""
        self.shelf.restore(held)
        meta, staged = self.shelf.meta, self.shelf.staged
        me = self.authority.node
        node = bytes.fromhex(me.endpoint_id)
        if "epoch" not in meta:
            meta["epoch"] = staged.meta["epoch"] = self._random(16)
        if "incarnation" not in meta or meta.get("node") != node:
            self._new_incarnation()
            meta["node"] = staged.meta["node"] = node
        self.desk.incarnation = int.from_bytes(meta["incarnation"], "big")
        own = self._own_writer()
        self._stamps.last = max(
            (part.version for part in self.shelf.parts() if (part.key.origin, part.key.incarnation) == own), default=0
        )
        known = self.shelf.certificate(me.endpoint_id)
        if known is None or known.identity.certificate != me.certificate:
            self.shelf.stage_certificate(Certificate(me, self.shelf.next_seq()))
        self.desk.beacons(now)

    def meet(self, peer: str, epoch: bytes) -> dict[int, int]:
        """A link to `peer` begins: how far we have the classes of its database `epoch`.

        What it was known to have before counts no more: it may come back with an older database, or none.
        """
        self._meetings += 1
        self._met[peer] = f"{peer} {self._meetings}"
        return self.shelf.cursors(peer, epoch)

    def changed_since(self, klass: int, seq: int, limit: int, peer: str = "") -> list[tuple[int, PartKey]]:
        """Up to `limit` keys of what changed after `seq`, oldest change first; not what `peer` is known to have."""
        found: list[tuple[int, PartKey]] = []
        peer = self._met.get(peer, peer)
        for number, key, peers in self.shelf.changed_since(klass, seq):
            if peer not in peers:
                found.append((number, key))
                if len(found) >= limit:
                    break
        return found

    def make_update(self, key: PartKey, base_seq: int = 0, base: Version | None = None) -> Update | None:
        """The newest state for a peer that has all up to `base_seq`, or `base` of this part; None: it is gone."""
        return make_update(self.shelf, key, base_seq, base)

    def apply(self, update: Update, source: str, now: float, opened: Opened | None = None) -> Outcome:
        """Stage what a peer sent, if it is new and good. `opened` is what `gate.open` made of it."""
        return self.gate.apply(update, source, now, self._met.get(source, source), opened)

    def move(self, cursor: CursorMove) -> None:
        """Stage how far we have what a peer holds; its earlier databases are gone."""
        for epoch, klass in self.shelf.other_cursors(cursor.peer, cursor.epoch):
            self.shelf.staged.cursors[cursor.peer, epoch, klass] = None
        self.shelf.staged.cursors[cursor.peer, cursor.epoch, cursor.klass] = cursor.seq

    def tend(self, now: float) -> None:
        """Stage the day's beacons and what is to be forgotten, all at once."""
        self.desk.beacons(now)
        time = self.compactor.time(now)
        for doc in self.compactor.begin(now):
            self.compactor.look_at(doc, now, time)
        self.compactor.writers_gone(time)

    def flush(self, store: Store) -> frozenset[int]:
        """Commit what is staged and show it. Returns the classes that got something new."""
        staged = self.shelf.take_staged()
        if not staged:
            return frozenset()
        store.commit(staged.rows())
        return self.shelf.publish(staged)[0]

    def _own_writer(self) -> tuple[str, int]:
        return self.authority.node.endpoint_id, self.desk.incarnation

    def _new_incarnation(self) -> None:
        value = self._random(4)
        self.shelf.meta["incarnation"] = self.shelf.staged.meta["incarnation"] = value
        self.desk.incarnation = int.from_bytes(value, "big")

    def _own_part_came(self, key: PartKey) -> None:
        """Something this database signed and does not have: it is an older copy of itself, so it begins a new life."""
        if key.incarnation == self.desk.incarnation:
            _LOG.warning("the document database was put back to an older state; it goes on as a new writer")
            self._new_incarnation()


def open_ledger(
    store: Store,
    authority: Authority,
    limits: Limits,
    rules: Rules,
    random: Callable[[int], bytes],
    now: float,
    *,
    judge: Judge | None = None,
    chain_length: int = CHAIN_LENGTH,
) -> Ledger:
    """A ledger of what `store` holds, its names committed."""
    ledger = Ledger(authority, limits, rules, random, judge=judge, chain_length=chain_length)
    ledger.open(load(store, authority), now)
    ledger.flush(store)
    return ledger
