"""The hub's work: to follow its sidecar's documents, to answer about the fleet, to pass on orders.

Owns the live view and the feeding of the history. Keeps the rule that the sidecar is the truth: the view is built from
its snapshot, and while it is out of reach the last one stays, said to be old. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from peat_p2p.client.model import Deleted, Event, Gap, SnapshotComplete, Upserted
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ConflictError, ExhaustedError, NotFoundError, UnavailableError
from peat_p2p.fleet.commands import Command, fresh_command_id
from peat_p2p.fleet.ids import COMMANDS, FLEET_COLLECTIONS, REVOCATIONS
from peat_p2p.fleet.view import FleetView
from peat_p2p.hub import answers
from peat_p2p.hub.history import History
from peat_p2p.hub.observer import Entry, Observer
from peat_p2p.hub.orders import NodeName, read_order, read_revocation
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.revocation import Kind, Revocation, RevocationSet, seal_revocation

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
MAX_UNWRITTEN = 20_000


class Sidecar(Protocol):
    """What the hub needs of its sidecar: `SidecarClient` has it."""

    def subscribe(self, collections: Sequence[str] = ()) -> AsyncGenerator[Event, None]:
        """What is there and what changes, for ever."""
        ...

    async def get_document_text(self, collection: str, doc_id: str) -> str | None:
        """A document's JSON text."""
        ...

    async def put_command(self, command: Command) -> None:
        """Write a command; the sidecar signs it."""
        ...

    async def put_document(self, collection: str, doc_id: str, document: Mapping[str, object]) -> None:
        """Merge a JSON object into a document."""
        ...

    async def delete_document(self, collection: str, doc_id: str) -> None:
        """Delete a document."""
        ...


class HubService:
    """What the HTTP API asks. `follow` and `write_history` run beside it for as long as the hub does."""

    def __init__(self, client: Sidecar, history: History, clock: Clock, credentials: NodeCredentials) -> None:
        self._client = client
        self._credentials = credentials
        self._history = history
        self._clock = clock
        self._view = FleetView()
        self._coming: FleetView | None = FleetView()  # while a snapshot is told: what will be the view
        self._revocations: dict[str, Mapping[str, object]] = {}
        self._observer = Observer(history.known())
        self._unwritten: list[Entry] = []
        self._complete = asyncio.Event()
        self._said_lost = False

    @property
    def complete(self) -> bool:
        """Whether the view is the sidecar's state, not an older one."""
        return self._complete.is_set()

    async def wait_complete(self) -> None:
        """Wait until the sidecar's documents were read once."""
        await self._complete.wait()

    async def follow(self) -> None:
        """Keep the view as the sidecar's documents are, for ever."""
        async with contextlib.aclosing(self._client.subscribe((*FLEET_COLLECTIONS, REVOCATIONS))) as events:
            async for event in events:
                self.take(event)

    def take(self, event: Event) -> None:
        """Take in one event of the subscription."""
        now = self._clock.wall()
        match event:
            case Upserted(collection, doc_id, _, document):
                self._saw(collection, doc_id, document, now)
            case Deleted(collection, doc_id):
                self._saw(collection, doc_id, None, now)
            case SnapshotComplete():
                if self._coming is not None:
                    self._view, self._coming = self._coming, None
                    self._note(self._observer.snapshot_complete(now))
                self._complete.set()
            case Gap(reason):
                log.info("the sidecar's documents will be read anew: %s", reason)
                self._coming = self._view.emptied()
                self._observer.snapshot_begins()
                self._complete.clear()

    async def write_history(self) -> None:
        """Write what was noted to the history, for ever, a little late; and what is left when cancelled."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                await self._flush()
        finally:
            entries, self._unwritten = self._unwritten, []
            with contextlib.suppress(ExhaustedError, UnavailableError):
                self._history.record(entries)

    async def order(self, body: bytes) -> dict[str, Any]:
        """Write the command that `body` asks for through the sidecar, which signs it. Raises PeatError."""
        now = self._clock.wall()
        fresh = fresh_command_id(now, secrets.token_hex(4))
        command = read_order(body, now=int(now), fresh_id=fresh)
        if self._view.command(command.id) or await self._client.get_document_text(COMMANDS, command.id) is not None:
            raise ConflictError(f"there is a command {command.id} already; leave out 'id' to have one made")
        await self._client.put_command(command)
        log.info("ordered %s of %s (%s)", command.command_type, command.target_id, command.id)
        return answers.command(self._view.command(command.id), command, now)

    async def withdraw(self, command_id: str) -> None:
        """Delete a command: agents that have not ended it stop. Raises NotFoundError."""
        if self._view.command(command_id) is None:
            raise NotFoundError(f"there is no command {command_id}")
        await self._client.delete_document(COMMANDS, command_id)
        log.info("withdrew command %s", command_id)

    async def revoke(self, body: bytes) -> dict[str, Any]:
        """Take trust away from a node or a package, signed as this hub. Raises PeatError."""
        subject, reason = read_revocation(body)
        now = self._clock.wall()
        if isinstance(subject, NodeName):
            agent = self._view.agent(subject.node_id, now)
            if agent is None or not agent.heartbeat.endpoint_id:
                raise NotFoundError(f"no endpoint id is known of {subject.node_id}: give 'endpoint_id'")
            subject = f"{Kind.ENDPOINT}:{agent.heartbeat.endpoint_id}"
        revocation = Revocation.asked_for(subject, {"reason": reason}, now)
        if revocation.subject == self._credentials.identity.endpoint_id:
            raise ConflictError("a hub does not revoke itself: let another hub or an operator do it")
        await self._client.put_document(REVOCATIONS, subject, seal_revocation(self._credentials, revocation))
        log.warning("revoked %s: %s", subject, reason or "no reason given")
        return {**revocation.to_fields(), "by": self._credentials.identity.node_id}

    def revocations(self) -> dict[str, Any]:
        """What is revoked, by whom."""
        proved = RevocationSet.read(self._revocations, self._credentials.anchor)
        listed = [{**it.revocation.to_fields(), "by": it.signer.node_id} for it in proved]
        return self._stamped({"revocations": sorted(listed, key=lambda it: str(it["created_at"]))})

    def fleet(self) -> dict[str, Any]:
        """The agents and how they are."""
        return self._stamped(answers.fleet(self._view, self._clock.wall()))

    def packages(self) -> dict[str, Any]:
        """The packages known in the fleet and who holds them."""
        return self._stamped(answers.packages(self._view, self._clock.wall()))

    async def commands(self, limit: int) -> dict[str, Any]:
        """Commands, newest first: those in force, and those that the history alone still knows."""
        now = self._clock.wall()
        live = [answers.command(state, state.command, now) for state in reversed(self._view.commands())]
        gone = await asyncio.to_thread(self._history.documents, COMMANDS, gone=True, limit=limit)
        past = [
            {**answers.command(None, Command.from_document(it.doc_id, it.fields), now), "gone_at": it.gone_at}
            for it in gone
            if self._view.command(it.doc_id) is None
        ]
        listed = sorted(live + past, key=lambda it: (it["created_at"], it["id"]), reverse=True)
        return self._stamped({"commands": listed[:limit]})

    async def command(self, command_id: str) -> dict[str, Any]:
        """One command with its receipts and its history. Raises NotFoundError."""
        state = self._view.command(command_id)
        events = await asyncio.to_thread(self._history.events, limit=1000, collection=COMMANDS, doc_id=command_id)
        if state is None and not events:
            raise NotFoundError(f"there is no command {command_id}")
        command = state.command if state else Command.from_document(command_id, events[-1].detail)
        answer = answers.command(state, command, self._clock.wall())
        return self._stamped({**answer, "gone": state is None, "events": [answers.event(e) for e in events]})

    async def history(self, limit: int, before: int | None, collection: str | None) -> dict[str, Any]:
        """Events, newest first."""
        events = await asyncio.to_thread(self._history.events, limit=limit, before=before, collection=collection)
        return {"events": [answers.event(e) for e in events], "next_before": events[-1].id if events else None}

    def _stamped(self, answer: dict[str, Any]) -> dict[str, Any]:
        return {"at": int(self._clock.wall()), "current": self.complete, **answer}

    def _saw(self, collection: str, doc_id: str, document: Mapping[str, object] | None, now: float) -> None:
        if collection == REVOCATIONS:
            # Told anew after a gap; one that went missing meanwhile stays until the hub restarts: the safe side.
            self._revocations.pop(doc_id, None)
            if document is not None:
                self._revocations[doc_id] = document
        view = self._view if self._coming is None else self._coming
        view.apply(collection, doc_id, document, now)
        self._note(self._observer.saw(collection, doc_id, document, now))

    def _note(self, entries: list[Entry]) -> None:
        # A history that cannot be written (a full disk) must not eat the memory: the oldest notes go.
        self._unwritten += entries
        if len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[: len(self._unwritten) - MAX_UNWRITTEN]
            if not self._said_lost:
                self._said_lost = True
                log.warning("the history cannot be written fast enough: its oldest entries are dropped")

    async def _flush(self) -> None:
        entries, self._unwritten = self._unwritten, []
        if not entries:
            return
        writing = asyncio.get_running_loop().run_in_executor(None, self._history.record, entries)
        try:
            await asyncio.wait([writing])
        except asyncio.CancelledError:
            await asyncio.wait([writing])  # a thread cannot be cancelled, and the file must stay open for it
            raise
        try:
            writing.result()
            self._said_lost = False
        except (ExhaustedError, UnavailableError) as error:
            log.warning("%s; trying again", error)
            newer, self._unwritten = self._unwritten, []
            self._note(entries + newer)
