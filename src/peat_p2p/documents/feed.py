"""Subscriptions: what changes, to readers of any speed.

Owns the queue of each reader: a snapshot, the marker that it is complete, then changes in order. Keeps the rules that a
reader is told when changes were dropped for its slowness and gets a fresh snapshot, and that what waits for it is
bounded: documents, not changes, so a document that changes while it waits is given once. Must not know who reads or
what is on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType

from peat_p2p.core.errors import InvalidInputError, UnavailableError
from peat_p2p.documents.jsontext import split_object
from peat_p2p.documents.query import All, Query, check, matches
from peat_p2p.documents.rules import is_public_name, is_reserved
from peat_p2p.documents.shelf import Shelf
from peat_p2p.documents.types import Change, Document, FeedEvent, Lagged, SnapshotComplete
from peat_p2p.documents.view import DocKey

DEFAULT_PENDING = 10_000
# After so many events without a pause others get a turn: a snapshot of a whole fleet takes seconds.
_EVENTS_PER_TURN = 32


class Subscription:
    """An async iterator of events. Close it, or use it as a context manager, so that it stops costing."""

    def __init__(
        self,
        shelf: Shelf,
        collections: frozenset[str],
        query: Query,
        max_pending: int,
        on_close: Callable[[Subscription], None],
    ) -> None:
        self._shelf = shelf
        self._collections = collections
        self._query = query
        self._max_pending = max_pending
        self._on_close = on_close
        self._wake = asyncio.Event()
        self._closed: Exception | None = None
        self._ended = False
        # Documents the reader believes to match; what leaves this set is reported as gone.
        self._given: set[DocKey] = set()
        # Snapshot documents yet to be given, newest last; then the keys of changed documents in order.
        self._snapshot: list[DocKey] = []
        self._marker_due = False
        self._pending: dict[DocKey, None] = {}
        self._lagged = False
        self._in_a_row = 0
        self._begin()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop. An iteration in progress ends."""
        self._ended = True
        self._on_close(self)
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """End the iteration with an error: no more changes will come."""
        self._closed = error
        self._wake.set()

    def offer(self, documents: Iterable[DocKey]) -> None:
        """Take note of changed documents."""
        for doc in documents:
            collection = doc[0]
            if is_reserved(collection) or (self._collections and collection not in self._collections):
                continue
            # In place of a change that still waits: the reader gets the newest state once, in the order of last
            # changes.
            self._pending.pop(doc, None)
            self._pending[doc] = None
        if len(self._pending) > self._max_pending and not self._lagged:
            self._lagged = True
        if self._lagged:
            self._pending.clear()
            self._snapshot.clear()
        self._wake.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> FeedEvent:
        while True:
            event = self._next()
            if event is not None:
                self._in_a_row += 1
                if self._in_a_row % _EVENTS_PER_TURN == 0:
                    await asyncio.sleep(0)
                return event
            if self._ended:
                raise StopAsyncIteration
            if self._closed is not None:
                raise self._closed
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> FeedEvent | None:
        if self._ended:
            return None
        if self._lagged:
            self._lagged = False
            self._begin()
            return Lagged()
        while self._snapshot:
            doc = self._snapshot.pop()
            self._pending.pop(doc, None)
            document = self._matching(doc)
            if document is not None:
                self._given.add(doc)
                return Change(*doc, document)
        if self._marker_due:
            self._marker_due = False
            return SnapshotComplete()
        while self._pending:
            doc = next(iter(self._pending))
            del self._pending[doc]
            document = self._matching(doc)
            if document is not None:
                self._given.add(doc)
                return Change(*doc, document)
            if doc in self._given:
                self._given.discard(doc)
                return Change(*doc, None)
        return None

    def _begin(self) -> None:
        self._pending.clear()
        self._given.clear()
        names = sorted(self._collections) or [name for name in self._shelf.collections() if not is_reserved(name)]
        self._snapshot = [(name, doc_id) for name in names for doc_id in self._shelf.doc_ids(name)]
        self._snapshot.reverse()
        self._marker_due = True

    def _matching(self, doc: DocKey) -> Document | None:
        document = self._shelf.document(*doc)
        if document is None or isinstance(self._query, All):
            return document
        return document if matches(self._query, split_object(document.json)) else None


class Feeds:
    """All subscriptions of a replica."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._open: dict[Subscription, None] = {}
        self._closed: Exception | None = None

    def subscribe(self, collections: Iterable[str], query: Query | None, max_pending: int) -> Subscription:
        """A new subscription. Raises InvalidInputError for names or queries that cannot be."""
        names = frozenset(collections)
        for name in names:
            if not is_public_name(name):
                raise InvalidInputError(f"collection {name[:140]!r} is not allowed")
        asked = All() if query is None else query
        check(asked)
        if self._closed is not None:
            raise UnavailableError("the documents are being closed")
        subscription = Subscription(self._shelf, names, asked, max_pending, self._remove)
        self._open[subscription] = None
        return subscription

    def offer(self, documents: Iterable[DocKey]) -> None:
        """Tell every reader what changed."""
        changed = list(documents)
        for subscription in list(self._open):
            subscription.offer(changed)

    def close(self, error: Exception) -> None:
        """End every subscription with `error`."""
        self._closed = error
        for subscription in list(self._open):
            subscription.fail(error)

    def _remove(self, subscription: Subscription) -> None:
        self._open.pop(subscription, None)
