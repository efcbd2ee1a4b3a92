"""Between the agent and its sidecar: reads what is there, writes what differs.

Owns the two loops that keep the agent's copy of the fleet and the sidecar's picture of the agent up to date. Nothing
is queued: what to write is asked of the ReportBook each time, so while the sidecar is away only the latest state is
kept, and it goes out when the sidecar is back. Must not decide what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Protocol

from peat_p2p.agent.reports import Delete, Key, ReportBook, Write
from peat_p2p.agent.view import COLLECTIONS, FleetView
from peat_p2p.client.model import Deleted, Event, Gap, SnapshotComplete, Upserted
from peat_p2p.core.errors import DeniedError, InvalidInputError, PeatError, UnavailableError
from peat_p2p.core.waiting import within

log = logging.getLogger(__name__)

PARALLEL_WRITES = 16  # the sidecar commits what arrives together in one sync
FIRST_RETRY_S = 0.2
LAST_RETRY_S = 5.0


class Sidecar(Protocol):
    """What the agent needs of its sidecar; the SDK's client is one."""

    async def put_document(self, collection: str, doc_id: str, document: Mapping[str, object]) -> None:
        """Merge an object into a document; durable on return."""
        ...

    async def delete_document(self, collection: str, doc_id: str) -> None:
        """Delete a document."""
        ...

    def subscribe(self, collections: Sequence[str] = ()) -> AsyncGenerator[Event, None]:
        """Follow collections for ever; after a Gap all that counts is told anew."""
        ...


class SidecarLink:
    """The two loops. `on_change(collection, doc_id, fields)` is called for each document that comes or goes;
    `on_connected(bool)` when the sidecar comes (its snapshot has been read) or goes.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        book: ReportBook,
        view: FleetView,
        *,
        on_change: Callable[[str, str, Mapping[str, Any] | None], None],
        on_connected: Callable[[bool], None],
    ) -> None:
        self._sidecar = sidecar
        self._book = book
        self._view = view
        self._on_change = on_change
        self._on_connected = on_connected
        self._due = asyncio.Event()
        self._back = asyncio.Event()
        self._down_reason = ""
        self._complaint = ""

    @property
    def reason(self) -> str:
        """Why the sidecar is out of reach; empty when it is not."""
        return self._down_reason

    def due(self) -> None:
        """What is wanted has changed: look again."""
        self._due.set()

    async def follow(self) -> None:
        """Read the sidecar's documents for ever."""
        while True:
            try:
                await self._follow()
            except PeatError as error:
                # It answers, and says no. That may be mended there while the agent goes on here.
                log.error("the sidecar refuses to tell its documents: %s", error)
                self._gone(str(error))
            await asyncio.sleep(LAST_RETRY_S)

    async def _follow(self) -> None:
        self._view.begin_snapshot()
        async with contextlib.aclosing(self._sidecar.subscribe(COLLECTIONS)) as events:
            async for event in events:
                match event:
                    case Upserted(collection, doc_id, _, document):
                        self._document(collection, doc_id, document)
                    case Deleted(collection, doc_id):
                        self._document(collection, doc_id, None)
                    case SnapshotComplete():
                        for collection, doc_id in self._view.end_snapshot():
                            self._on_change(collection, doc_id, None)
                        self._book.snapshot_complete()
                        self._down_reason = ""
                        self._back.set()
                        self._on_connected(True)
                    case Gap(reason):
                        if self._view.synced:
                            log.warning("the sidecar is out of reach, going on with what is known: %s", reason)
                        self._gone(reason)
                self._due.set()

    def _gone(self, reason: str) -> None:
        self._down_reason = reason
        self._back.clear()
        self._view.begin_snapshot()
        self._book.lost()
        self._on_connected(False)

    async def push(self) -> None:
        """Write what differs, for ever."""
        retry = FIRST_RETRY_S
        while True:
            self._due.clear()
            writes = self._book.take(PARALLEL_WRITES)
            if not writes:
                await self._due.wait()
                continue
            taken: list[bool] = []
            async with asyncio.TaskGroup() as group:
                for write in writes:
                    group.create_task(self._write(write, taken), name=f"write {write.key.collection}")
            if all(taken):
                retry = FIRST_RETRY_S
            else:
                await self._pause(retry)
                retry = min(LAST_RETRY_S, retry * 2)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try; the sidecar's coming back ends the wait."""
        if self._view.synced:
            await asyncio.sleep(seconds)  # it answers, but does not take this: being there is no news
            return
        await within(seconds, self._back)

    async def _write(self, write: Write, taken: list[bool]) -> None:
        key = write.key
        try:
            if isinstance(write, Delete):
                await self._sidecar.delete_document(key.collection, key.doc_id)
            else:
                await self._sidecar.put_document(key.collection, key.doc_id, write.fields)
        except (InvalidInputError, DeniedError) as error:
            log.error("the sidecar refuses %s/%s: %s", key.collection, key.doc_id, error)
            self._book.refused(write)
            taken.append(True)
        except (PeatError, OSError) as error:
            if not isinstance(error, UnavailableError) and self._complaint != str(error):
                self._complaint = str(error)
                log.warning("the sidecar failed to take %s/%s: %s", key.collection, key.doc_id, error)
            self._book.failed(write)
            taken.append(False)
        else:
            self._book.wrote(write)
            self._complaint = ""
            taken.append(True)

    def _document(self, collection: str, doc_id: str, fields: Mapping[str, Any] | None) -> None:
        self._view.apply(collection, doc_id, fields)
        self._book.saw(Key(collection, doc_id), fields)
        self._on_change(collection, doc_id, fields)
