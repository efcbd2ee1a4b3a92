"""The transfers this agent has been asked for.

Owns the wishes: which package version is wanted and by whom, kept in one small file each, so that a transfer that was
under way goes on by itself in the next life. A transfer runs while anybody wishes for it; when the last one lets go it
stops, and what was verified is kept. Fetching is the swarm's; this file must not know how it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peat_p2p.agent.history import EndedTransfer, TransferHistory
from peat_p2p.agent.steady import Steady
from peat_p2p.agent.view import Changes
from peat_p2p.content.manifest import Manifest, unverified_payload
from peat_p2p.content.store import StoredPackage
from peat_p2p.core.atomic import write_atomic
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ExhaustedError, PeatError, UnavailableError
from peat_p2p.swarm.engine import SwarmEngine
from peat_p2p.swarm.peers import PeerSource
from peat_p2p.swarm.status import Priority, TransferCancelledError, TransferState, TransferStatus
from peat_p2p.swarm.transfer import Transfer

log = logging.getLogger(__name__)

PRIORITY = "priority"  # the annotation of a manifest that says how much the package matters
PRIORITIES = {
    "background": Priority.BACKGROUND,
    "support": Priority.SUPPORT,
    "mission-critical": Priority.MISSION_CRITICAL,
}


def priority_of(manifest: Manifest) -> Priority:
    """How much a package matters, as its publisher signed it."""
    return PRIORITIES.get(manifest.annotations.get(PRIORITY, ""), Priority.SUPPORT)


@dataclass(slots=True)
class Ticket:
    """A place in a transfer. `changes` tells when to look again, `over` that nothing follows."""

    transfer: Transfer
    envelope: dict[str, Any]
    wishes: set[str]
    status: TransferStatus
    changes: Changes = field(default_factory=Changes)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    package: StoredPackage | None = None
    error: PeatError | None = None
    stopped: PeatError | None = None

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.transfer.manifest_digest

    @property
    def manifest(self) -> Manifest:
        """What is being fetched."""
        return self.transfer.manifest

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.package is not None or self.error is not None

    async def updates(self) -> AsyncIterator[TransferStatus]:
        """The status now and at each change, to the end."""
        while True:
            changed = self.changes.next()
            yield self.status
            if self.ended:
                return
            await changed.wait()

    async def wait(self) -> StoredPackage:
        """The package, once it is here whole. Raises PeatError when it will not be."""
        async for _ in self.updates():
            pass
        if self.package is None:
            raise self.error or UnavailableError(f"the transfer of {self.manifest.reference} was stopped")
        return self.package


class Transfers:
    """Wishes and the transfers that fulfil them.

    `on_change()` is called when a transfer begins, changes its state or ends; `on_complete(package)` before a waiting
    wish learns of it; `make_room(manifest)` when the disk is too full for one: it says whether to try again.
    """

    def __init__(
        self,
        engine: SwarmEngine,
        peers: PeerSource,
        folder: Path,
        *,
        clock: Clock,
        on_change: Callable[[], None],
        on_complete: Callable[[StoredPackage], None],
        make_room: Callable[[Manifest], Awaitable[bool]],
    ) -> None:
        self._engine = engine
        self._peers = peers
        self._folder = folder
        self._on_change = on_change
        self._on_complete = on_complete
        self._make_room = make_room
        self._steady = Steady(log)
        self._clock = clock
        self.history = TransferHistory(folder / "ended")
        self._tickets: dict[str, Ticket] = {}
        self._group: asyncio.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The time in which transfers run. What was under way in the last life begins again at once."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.to_thread(self.history.load)
                for envelope, wishes in await asyncio.to_thread(self._remembered):
                    self._resume(envelope, wishes)
                yield
            finally:
                self._group = None
                # The wishes stay on disk: this is the end of a life, not of the transfer.
                for ticket in self._tickets.values():
                    ticket.transfer.cancel()

    def active(self) -> list[Ticket]:
        """Every transfer that has not ended."""
        return [ticket for ticket in self._tickets.values() if not ticket.ended]

    def wish(self, envelope: dict[str, Any], wish: str) -> Ticket:
        """Ask for a package version in the name of `wish`; the same version is fetched once however many ask.

        Raises UntrustedError when the manifest does not verify.
        """
        ticket = self._begin(envelope, {wish})
        if wish not in ticket.wishes:
            ticket.wishes.add(wish)
        self._remember(ticket)
        return ticket

    def release(self, digest: str, wish: str) -> None:
        """`wish` does not want it any more. When nobody does, the transfer stops."""
        ticket = self._tickets.get(digest)
        if ticket is None or wish not in ticket.wishes:
            return
        ticket.wishes.discard(wish)
        if ticket.wishes:
            self._remember(ticket)
        else:
            self._forget(digest)
            ticket.transfer.cancel()

    def look_again(self, digest: str) -> None:
        """What a transfer lacks may be in the store by now: begin it anew, with what is there."""
        ticket = self._tickets.get(digest)
        if ticket is not None and not ticket.ended:
            ticket.transfer.cancel()

    async def stop(self, digest: str, error: PeatError) -> bool:
        """Nobody shall have it: end the transfer whoever wishes for it, with `error` as the reason.

        Returns once it has let go of its chunks; False when there was no transfer.
        """
        ticket = self._tickets.get(digest)
        if ticket is None or ticket.ended:
            return False
        ticket.stopped = error
        ticket.wishes.clear()
        self._forget(digest)
        ticket.transfer.cancel()
        with contextlib.suppress(PeatError):
            await ticket.wait()
        return True

    def _begin(self, envelope: dict[str, Any], wishes: set[str]) -> Ticket:
        if self._group is None:
            raise UnavailableError("the agent is stopping")
        transfer = self._fetch(envelope)
        known = self._tickets.get(transfer.manifest_digest)
        if known is not None and known.transfer is transfer and not known.ended:
            return known
        ticket = Ticket(transfer, envelope, wishes, transfer.status())
        self._tickets[ticket.digest] = ticket
        self._group.create_task(self._drive(ticket), name=f"transfer {ticket.manifest.reference}")
        self._on_change()
        return ticket

    def _fetch(self, envelope: dict[str, Any]) -> Transfer:
        try:
            # Only to know how much it matters; the engine verifies it.
            priority = priority_of(Manifest.from_payload(unverified_payload(envelope)))
        except PeatError:
            priority = Priority.SUPPORT
        return self._engine.fetch(envelope, self._peers, priority=priority)

    async def _drive(self, ticket: Ticket) -> None:
        what, tried_room, again = ticket.manifest.reference, False, False
        while True:
            begin, again = again, False
            try:
                if begin:
                    ticket.transfer = self._fetch(ticket.envelope)
                await self._watch(ticket)
                ticket.package = await ticket.transfer.wait()
            except TransferCancelledError as error:
                # The last one to let go may have stopped it just before somebody else asked: then begin anew.
                again = self._group is not None and bool(ticket.wishes)
                ticket.error = None if again else ticket.stopped or error
            except ExhaustedError as error:
                again = not tried_room and await self._make_room(ticket.manifest)
                tried_room = True
                ticket.error = None if again else error
            except PeatError as error:
                ticket.error = error
            if not again:
                break
            await asyncio.sleep(0)
        ticket.status = ticket.transfer.status()
        if ticket.package is not None:
            self._on_complete(ticket.package)
        if self._group is not None:
            self._forget(ticket.digest, ticket)
            now = int(self._clock.wall())
            ended = EndedTransfer(manifest=ticket.manifest, digest=ticket.digest, status=ticket.status, ended_at=now)
            with self._steady(f"the account of {what}"):
                self.history.add(ended)
            log.info("%s: %s", what, f"failed: {ticket.error}" if ticket.error is not None else "complete")
        ticket.changes.notify()
        ticket.over.set()
        self._on_change()

    async def _watch(self, ticket: Ticket) -> None:
        state: TransferState | None = None
        async for status in ticket.transfer.updates():
            if status.state.final:
                return  # told once the outcome is known
            ticket.status = status
            ticket.changes.notify()
            if status.state is not state:
                log.info(
                    "%s: %s%s", ticket.manifest.reference, status.state, f" ({status.reason})" * bool(status.reason)
                )
                state = status.state
                self._on_change()

    def _resume(self, envelope: dict[str, Any], wishes: set[str]) -> None:
        try:
            ticket = self._begin(envelope, wishes)
        except PeatError as error:
            log.error("a transfer of the last life cannot go on: %s", error)
            return
        log.info("%s: going on where the last life ended", ticket.manifest.reference)

    def _remember(self, ticket: Ticket) -> None:
        data = json.dumps({"envelope": ticket.envelope, "wishes": sorted(ticket.wishes)}).encode()
        # Without it the transfer runs all the same; it would only not go on by itself in the next life.
        with self._steady(f"remembering the transfer of {ticket.manifest.reference}"):
            write_atomic(self._file(ticket.digest), data)

    def _forget(self, digest: str, ticket: Ticket | None = None) -> None:
        if ticket is None or self._tickets.get(digest) is ticket:
            self._tickets.pop(digest, None)
            with self._steady("forgetting a transfer"):
                self._file(digest).unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('blake3:')}.json"

    def _remembered(self) -> list[tuple[dict[str, Any], set[str]]]:
        self._folder.mkdir(parents=True, exist_ok=True)
        found: list[tuple[dict[str, Any], set[str]]] = []
        for file in sorted(self._folder.glob("*.json")):
            try:
                content = json.loads(file.read_bytes())
                found.append((dict(content["envelope"]), {str(wish) for wish in content["wishes"]}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("%s is not a remembered transfer and is put away: %s", file, error)
                file.rename(file.with_suffix(".bad"))
        return found
