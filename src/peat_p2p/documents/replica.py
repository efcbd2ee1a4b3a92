"""The documents of one node: the face that the API and the mesh use.

Owns the life of a replica: opening and loading, committing what is staged in groups, telling readers, feeds and links
after it is durable, closing. Keeps the rule that nothing is seen by anybody before it is on disk. All decisions are
made by the synchronous parts (`writing`, `applying`, `view`, `horizon`); here is only their order and the waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import PeatError, UnavailableError
from peat_p2p.documents.applying import Opened, check_signatures
from peat_p2p.documents.authority import Authority, FormationAuthority, Policy, formation_policy
from peat_p2p.documents.feed import DEFAULT_PENDING, Feeds, Subscription
from peat_p2p.documents.jsontext import check_fields, split_object
from peat_p2p.documents.judging import FormationJudge
from peat_p2p.documents.keys import certificate_key
from peat_p2p.documents.ledger import Ledger
from peat_p2p.documents.loading import load
from peat_p2p.documents.query import Query
from peat_p2p.documents.rules import CLASSES, Rules, is_reserved
from peat_p2p.documents.sealed import SealedStore
from peat_p2p.documents.shelf import Staged
from peat_p2p.documents.sqlite import SqliteStore
from peat_p2p.documents.store import MemoryStore, Store
from peat_p2p.documents.types import (
    Counts,
    CursorMove,
    Document,
    Limits,
    Outcome,
    PartKey,
    PartUpdate,
    Update,
    Verdict,
    Version,
)
from peat_p2p.documents.view import Judge
from peat_p2p.documents.writing import check_collection
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.identity import Identity

_LOG = logging.getLogger(__name__)
# After so many updates others get a turn: reading and merging one takes a tenth of a millisecond.
_UPDATES_PER_TURN = 128
_DOCUMENTS_PER_TURN = 100
# Checking a signature (a tenth of a millisecond too) lets other threads run. With few, handing over costs more than it
# brings.
_CHECKERS = min(os.cpu_count() or 1, 4)
_WORTH_THREADS = 64
_TEND_INTERVAL = 3600.0


@asynccontextmanager
async def _plain_errors() -> AsyncIterator[None]:
    """Let one error through as itself, as callers expect it, not as a group of one."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


class Replica:
    """A node's documents. Make one with `Replica.open`; use it from one event loop."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        clock: Clock,
        limits: Limits,
        rules: Rules,
        judge: Judge | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock
        self.limits = limits
        self.rules = rules
        self._ledger = Ledger(authority, limits, rules, random, judge=judge)
        self._shelf = self._ledger.shelf
        self._desk = self._ledger.desk
        self._horizon = self._ledger.horizon
        self._compactor = self._ledger.compactor
        self._feeds = Feeds(self._shelf)
        self._callbacks: dict[int, Callable[[frozenset[int]], None]] = {}
        self._next_callback = 0
        self._work = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._closing = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="documents")
        self._checkers = ThreadPoolExecutor(_CHECKERS, thread_name_prefix="signatures")

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path | None,
        credentials: NodeCredentials,
        clock: Clock,
        limits: Limits | None = None,
        *,
        policy: Policy = formation_policy,
        rules: Rules | None = None,
        key: bytes | None = None,
    ) -> AsyncIterator[Replica]:
        """A replica in the file `path`, encrypted if there is a `key` (32 bytes), or in memory alone.

        Raises CorruptError for a damaged file, ConflictError if another process has it open, ConfigError for a wrong
        key.
        """
        loop = asyncio.get_running_loop()
        store: Store = MemoryStore() if path is None else await loop.run_in_executor(None, SqliteStore, path)
        if key is not None:
            store = SealedStore(store, key, str(path))
        authority = FormationAuthority(credentials, policy)
        replica = cls(store, authority, clock, limits or Limits(), rules or Rules(), FormationJudge(credentials.anchor))
        async with replica.running():
            yield replica

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load, commit while the body runs, then write what is left and close the store."""
        loop = asyncio.get_running_loop()
        try:
            held = await loop.run_in_executor(self._executor, load, self._store, self._authority)
            self._ledger.open(held, self._clock.wall())
            async with _plain_errors(), asyncio.TaskGroup() as group:
                committing = group.create_task(self._commit_groups(), name="documents: commit")
                tending = group.create_task(self._tend_for_ever(), name="documents: tend")
                try:
                    if self._shelf.staged:
                        await self._durable()
                    yield
                finally:
                    tending.cancel()
                    self._closing = True
                    self._work.set()
                    self._feeds.close(UnavailableError("the documents are being closed"))
                    await committing
        finally:
            await loop.run_in_executor(self._executor, self._store.close)
            self._executor.shutdown()
            self._checkers.shutdown()

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def node(self) -> Identity:
        """Who this node is."""
        return self._authority.node

    @property
    def epoch(self) -> bytes:
        """Names this database: a new file has another."""
        return self._ledger.epoch

    def get(self, collection: str, doc_id: str) -> Document | None:
        """A document, or None. Raises InvalidInputError for a name that cannot be."""
        check_collection(collection)
        return self._shelf.document(collection, doc_id)

    def read(self, collection: str, prefix: str = "") -> list[Document]:
        """The documents of a collection whose ids begin with `prefix`, by id."""
        check_collection(collection)
        documents = (
            self._shelf.document(collection, doc_id)
            for doc_id in self._shelf.doc_ids(collection)
            if doc_id.startswith(prefix)
        )
        return [document for document in documents if document is not None]

    def ids(self, collection: str) -> list[str]:
        """The ids of a collection's documents, sorted."""
        return [document.doc_id for document in self.read(collection)]

    def collections(self) -> list[str]:
        """The collections that hold or held documents."""
        return [name for name in self._shelf.collections() if not is_reserved(name)]

    def subscribe(
        self, collections: Iterable[str] = (), query: Query | None = None, max_pending: int = DEFAULT_PENDING
    ) -> Subscription:
        """What is there and then what changes, of some collections or (none named) of all."""
        return self._feeds.subscribe(collections, query, max_pending)

    def counts(self) -> Counts:
        """How much there is."""
        documents = sum(self._shelf.doc_count(name) for name in self.collections())
        by_class = {klass: self._shelf.parts_in_class(klass) for klass in range(CLASSES)}
        return Counts(documents, self._shelf.part_count, len(self._shelf.certificates()), by_class)

    # Writing ---------------------------------------------------------------------------------------------------------

    async def put(self, collection: str, doc_id: str, json_object: str) -> Document:
        """Merge the fields of a JSON object into a document; durable on return.

        Raises InvalidInputError, TooLargeError, ExhaustedError (disk full).
        """
        return await self._put(collection, doc_id, split_object(json_object))

    async def put_fields(self, collection: str, doc_id: str, fields: Mapping[str, str]) -> Document:
        """Like `put`, for fields given as JSON text each."""
        return await self._put(collection, doc_id, check_fields(fields))

    async def delete(self, collection: str, doc_id: str) -> bool:
        """Delete a document; durable on return. False if there was none."""
        existed = self._desk.delete(collection, doc_id, self._clock.wall())
        if existed or self._shelf.is_ahead(collection, doc_id):
            await self._durable()
        return existed

    async def _put(self, collection: str, doc_id: str, fields: Mapping[str, str]) -> Document:
        while True:
            changed = self._desk.put(collection, doc_id, fields, self._clock.wall())
            if changed or self._shelf.is_ahead(collection, doc_id):
                await self._durable()
            document = self._shelf.document(collection, doc_id)
            # None: somebody deleted it between the commit and our turn; what was asked for did happen.
            if document is not None or changed:
                return document or Document(collection, doc_id, "{}", 0)

    # The mesh --------------------------------------------------------------------------------------------------------

    def head(self, klass: int) -> int:
        """The number of the newest change of a class."""
        return self._shelf.head(klass)

    def changed_since(self, klass: int, seq: int, limit: int, *, peer: str = "") -> list[tuple[int, PartKey]]:
        """Up to `limit` keys of what changed after `seq`, oldest change first; not what `peer` is known to have."""
        return self._ledger.changed_since(klass, seq, limit, peer)

    def seq(self, key: PartKey) -> int:
        """The number of the change that brought the present state; 0: unknown."""
        return self._shelf.seq_of(key)

    def version(self, key: PartKey) -> Version | None:
        """How new our copy of a part is."""
        part = self._shelf.part(key)
        return part.newness if part is not None else None

    def all_versions(self, klass: int) -> Iterable[tuple[PartKey, Version]]:
        """Every part of a class and how new our copy is."""
        return [
            (part.key, part.newness)
            for part in self._shelf.parts()
            if self.rules.of(part.key.collection).klass == klass
        ]

    def make_update(self, key: PartKey, base_seq: int = 0, base: Version | None = None) -> Update | None:
        """The newest state for a peer that has everything up to `base_seq`, or `base` of this part; None: it is
        gone."""
        return self._ledger.make_update(key, base_seq, base)

    async def apply(self, updates: Sequence[Update], source: str, cursors: Sequence[CursorMove] = ()) -> list[Outcome]:
        """Take in what a peer sent; the outcomes in the same order, durable on return together with the cursors."""
        outcomes: list[Outcome] = []
        for start in range(0, len(updates), _UPDATES_PER_TURN):
            if start:
                await asyncio.sleep(0)
            some = updates[start : start + _UPDATES_PER_TURN]
            for update, opened in zip(some, await self._open(some), strict=True):
                outcomes.append(self._ledger.apply(update, source, self._clock.wall(), opened))
        for cursor in cursors:
            self._ledger.move(cursor)
        # Cursors alone wait for the next commit: losing one costs a repetition, not data.
        if any(outcome.verdict is Verdict.APPLIED for outcome in outcomes):
            await self._durable()
        return outcomes

    def cursors(self, peer: str, epoch: bytes) -> dict[int, int]:
        """By class, how far we have what the database `epoch` of a peer holds. Ask when a link begins, once."""
        return self._ledger.meet(peer, epoch)

    def met(self, peer: str) -> tuple[bytes, dict[int, int]]:
        """The database of a peer that cursors are held of, and those; of no name (empty) if there are none."""
        cursors = self._shelf.cursor_peers().get(peer, {})
        epoch = next((epoch for epoch, _ in cursors), b"")
        return epoch, {klass: seq for (of, klass), seq in cursors.items() if of == epoch}

    async def put_reserved(self, collection: str, fields: Mapping[str, str]) -> None:
        """Merge fields (JSON text each) into this node's own document of a reserved collection such as `_sidecars`."""
        now = self._clock.wall()
        if self._desk.put_reserved(collection, check_fields(fields), now):
            await self._durable()

    def read_reserved(self, collection: str) -> list[Document]:
        """The documents of a reserved collection; their ids are the endpoint ids of the nodes that wrote them."""
        documents = (self._shelf.document(collection, doc_id) for doc_id in self._shelf.doc_ids(collection))
        return [document for document in documents if document is not None]

    async def forget(self, purged: Iterable[tuple[PartKey, int]], peer: str) -> list[tuple[PartKey, int]]:
        """Forget what `peer` says it had and forgot (key and floor of its PURGED verdicts), if its word counts.

        Returns what was forgotten: tell the other peers, who may have been away as long.
        """
        now = self._clock.wall()
        if not self._horizon.believes(peer, now):
            return []
        time = self._compactor.time(now)
        forgotten = [(key, floor) for key, floor in purged if self._compactor.forget(key, floor, now, time)]
        if forgotten:
            await self._durable()
        return forgotten

    async def tend(self) -> None:
        """Give the day's beacons and forget what is due. Done by itself every hour."""
        now = self._clock.wall()
        self._desk.beacons(now)
        time = self._compactor.time(now)
        for number, doc in enumerate(self._compactor.begin(now)):
            self._compactor.look_at(doc, now, time)
            if number % _DOCUMENTS_PER_TURN == 0:
                await asyncio.sleep(0)
        self._compactor.writers_gone(time)
        if self._shelf.staged:
            await self._durable()

    async def caught_up(self, peer: str) -> None:
        """Note that we have all that `peer` had when it told its heads."""
        if self._horizon.caught_up(peer):
            await self._durable()

    def take_reoffer(self, peer: str) -> bool:
        """Whether `peer` must be offered everything again after a long absence; true once."""
        return self._horizon.take_reoffer(peer)

    def on_commit(self, callback: Callable[[frozenset[int]], None]) -> Callable[[], None]:
        """Have `callback` called on the loop with the classes that got something new. Returns what removes it."""
        number = self._next_callback
        self._next_callback += 1
        self._callbacks[number] = callback
        return lambda: (self._callbacks.pop(number, None), None)[1]

    def certificate(self, origin: str) -> Identity | None:
        """Who an origin is, if its certificate has come."""
        known = self._shelf.certificate(origin)
        return known.identity if known is not None else None

    @staticmethod
    def certificate_key(origin: str) -> PartKey:
        """The key under which the certificate of `origin` travels."""
        return certificate_key(origin)

    # Inside ----------------------------------------------------------------------------------------------------------

    async def _open(self, updates: Sequence[Update]) -> Sequence[Opened | None]:
        """Read updates and check their signatures on all processors, when there are enough to be worth it."""
        if len(updates) < _WORTH_THREADS:
            return [None] * len(updates)
        opened = [self._ledger.gate.open(update) for update in updates]
        jobs = [
            (one, update.signature)
            for one, update in zip(opened, updates, strict=True)
            if one is not None and isinstance(update, PartUpdate)
        ]
        loop = asyncio.get_running_loop()
        checks = [
            loop.run_in_executor(self._checkers, check_signatures, self._authority, jobs[first::_CHECKERS])
            for first in range(_CHECKERS)
        ]
        for check in checks:
            await check
        return opened

    async def _durable(self) -> None:
        """Wait until what is staged now is committed and seen. Raises what the store raised."""
        if self._closing:
            raise UnavailableError("the documents are being closed")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._work.set()
        await waiter

    async def _commit_groups(self) -> None:
        """Commit what is staged, again and again; while one group is written the next one gathers."""
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            self._work.clear()
            while self._shelf.staged or self._waiters:
                staged, waiters = self._shelf.take_staged(), self._waiters
                self._waiters = []
                try:
                    if staged and isinstance(self._store, MemoryStore):
                        self._store.commit(staged.rows())
                    elif staged:
                        await loop.run_in_executor(self._executor, self._store.commit, staged.rows())
                except PeatError as error:
                    _LOG.error("documents cannot be written: %s", error)
                    self._shelf.abandon([staged])
                    self._resolve([*waiters, *self._waiters], error)
                    self._waiters = []
                    continue
                self._show(staged)
                self._resolve(waiters, None)
            if self._closing:
                return

    async def _tend_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TEND_INTERVAL)
            try:
                await self.tend()
            except PeatError as error:
                _LOG.warning("documents could not be compacted: %s", error)

    def _show(self, staged: Staged) -> None:
        classes, documents = self._shelf.publish(staged)
        if documents:
            self._feeds.offer(documents)
        if classes:
            for callback in list(self._callbacks.values()):
                try:
                    callback(classes)
                except Exception:
                    _LOG.exception("a listener to document changes failed")

    @staticmethod
    def _resolve(waiters: Iterable[asyncio.Future[None]], error: PeatError | None) -> None:
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
