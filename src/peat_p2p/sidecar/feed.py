"""Change feeds over the wire.

Owns the translation of a replica's subscription into the messages of a Subscribe stream, and ending every open stream
when the sidecar stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from peat_p2p.core.errors import UnavailableError
from peat_p2p.documents.query import Query
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import Change, Document, FeedEvent, Lagged, SnapshotComplete
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb


class Feeds:
    """All open streams of one sidecar."""

    def __init__(self, replica: Replica, *, max_pending: int) -> None:
        self._replica = replica
        self._max_pending = max_pending
        self._waits: set[asyncio.Timeout] = set()
        self._closed = False
        self._reason = ""
        self._turn = 0

    async def stream(self, collections: Iterable[str], query: Query | None) -> AsyncIterator[pb.DocumentChange]:
        """Snapshot, marker, live changes. Raises UnavailableError once the sidecar stops."""
        with self._replica.subscribe(collections, query, max_pending=self._max_pending) as subscription:
            turn = self._turn
            while True:
                event = await self._next(subscription, turn)
                yield message_of(event)

    def close(self) -> None:
        """End every stream, and let no new one begin: the sidecar stops."""
        self._closed = True
        self.interrupt("the sidecar is stopping")

    def interrupt(self, reason: str) -> None:
        """End every stream that is open now; their readers may come back."""
        self._reason = reason
        self._turn += 1  # for those that wait for their reader rather than for a change
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)

    async def _next(self, subscription: AsyncIterator[FeedEvent], turn: int) -> FeedEvent:
        if self._closed or turn != self._turn:
            raise UnavailableError(self._reason)
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                return await anext(subscription)
        except TimeoutError:
            raise UnavailableError(self._reason) from None
        finally:
            self._waits.discard(wait)


def message_of(event: FeedEvent) -> pb.DocumentChange:
    """One event as it is sent."""
    match event:
        case Change(collection, doc_id, Document() as document):
            return pb.DocumentChange(
                collection=collection,
                doc_id=doc_id,
                change_type=pb.ChangeType.UPSERT,
                json_data=document.json,
            )
        case Change(collection, doc_id):
            return pb.DocumentChange(collection=collection, doc_id=doc_id, change_type=pb.ChangeType.DELETE)
        case SnapshotComplete():
            return pb.DocumentChange(marker=pb.StreamMarker.SNAPSHOT_COMPLETE)
        case Lagged():
            return pb.DocumentChange(marker=pb.StreamMarker.LAGGED)
