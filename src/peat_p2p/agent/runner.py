"""Carrying out commands.

Owns the way from a command's document to work and back to what is said about it: it asks `fleet` whether the command
may be acted on, tells the CommandDesk what happened, and performs what the desk decides. What is decided is the desk's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from peat_p2p.agent import commands as desk
from peat_p2p.agent import documents
from peat_p2p.agent.commands import CommandDesk, Effect, Event, Order, Record
from peat_p2p.agent.deploy import Deployment
from peat_p2p.agent.journal import CommandJournal
from peat_p2p.agent.reports import Key, ReportBook
from peat_p2p.agent.steady import Steady
from peat_p2p.agent.transfers import Ticket
from peat_p2p.agent.unpacking import Unpacking
from peat_p2p.agent.view import FleetView
from peat_p2p.content.manifest import Manifest
from peat_p2p.content.store import StoredPackage
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import PeatError
from peat_p2p.fleet.commands import Command, CommandStatus, open_command, require_may_act
from peat_p2p.fleet.ids import COMMANDS, RECEIPTS, receipt_id, split_receipt_id
from peat_p2p.swarm.status import TransferState
from peat_p2p.trust.anchor import TrustAnchor

log = logging.getLogger(__name__)

TICK_S = 1.0
SAY_AGAIN_S = 5.0  # a reason that changes often is told no more often than this: it crosses the mesh


class Hands(Protocol):
    """What the agent can do for a command."""

    async def obtain(self, order: Order, wish: str, say: Callable[[str], None]) -> Ticket:
        """Find out which package version is meant and begin to fetch it; waits while nobody in reach knows it."""
        ...

    def release(self, wish: str) -> None:
        """The command of this wish wants nothing any more."""
        ...

    def unpacking_for(self, manifest: Manifest) -> Unpacking:
        """Something that unpacks the package to where it will be deployed."""
        ...

    async def deploy(self, package: StoredPackage, link: str, unpacking: Unpacking) -> Deployment:
        """Unpack the package and put it in force."""
        ...


class CommandRunner:
    """Takes commands from the fleet's documents and carries them out."""

    def __init__(
        self,
        *,
        agent_id: str,
        site: str,
        anchor: TrustAnchor,
        clock: Clock,
        view: FleetView,
        book: ReportBook,
        journal: CommandJournal,
        hands: Hands,
        on_report: Callable[[], None],
    ) -> None:
        self._agent_id = agent_id
        self._site = site
        self._anchor = anchor
        self._clock = clock
        self._view = view
        self._book = book
        self._journal = journal
        self._hands = hands
        self._on_report = on_report
        self._desk = CommandDesk()
        self._steady = Steady(log)
        self._inbox: asyncio.Queue[Event | str] = asyncio.Queue()
        self._group: asyncio.TaskGroup | None = None
        self._work: dict[str, asyncio.Task[None]] = {}

    def changed(self, command_id: str) -> None:
        """A command's document has come, changed or gone."""
        self._inbox.put_nowait(command_id)

    def connected(self) -> None:
        """The sidecar's documents have been read: receipts of commands that are gone can go too."""
        for doc_id in self._view.all(RECEIPTS):
            command_id, agent_id = split_receipt_id(doc_id)
            if agent_id == self._agent_id and self._view.get(COMMANDS, command_id) is None:
                self._inbox.put_nowait(desk.Withdrawn(command_id))

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The time in which commands are carried out; what the last life left unfinished begins again at once."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await self._perform(self._desk.restore(await asyncio.to_thread(self._journal.load)))
            loops = [group.create_task(self._take(), name="commands"), group.create_task(self._tick(), name="ticks")]
            try:
                yield
            finally:
                self._group = None
                # Wishes stay: this is the end of a life, not of the work.
                for task in [*loops, *self._work.values()]:
                    task.cancel()

    async def _take(self) -> None:
        while True:
            item = await self._inbox.get()
            event = self._judge(item) if isinstance(item, str) else item
            if isinstance(event, desk.Finished):
                self._work.pop(event.command_id, None)
            if event is not None:
                await self._perform(self._desk.handle(event, self._clock.wall()))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._inbox.put_nowait(desk.Ticked())

    def _judge(self, command_id: str) -> Event | None:
        """What a command's document means for this agent."""
        document = self._view.get(COMMANDS, command_id)
        if document is None:
            known = self._desk.record(command_id) is not None
            return desk.Withdrawn(command_id) if known else None
        outer = Command.from_document(command_id, document)
        if not outer.target_id or not outer.addresses(self._agent_id, self._site):
            return None  # for others, or only a status so far: the rest is on its way
        told = outer.single and outer.status.final
        receipt = self._view.get(RECEIPTS, receipt_id(command_id, self._agent_id))
        if receipt is not None and receipt.get("status") in tuple(s for s in CommandStatus if s.final):
            told = True
        try:
            command, signer = open_command(command_id, document, self._anchor, self._clock.wall())
            require_may_act(command, signer, self._agent_id)
            self._view.revoked.check_identity(signer)
        except PeatError as error:
            return desk.Refused(command_id, f"refused: {error}", outer.single, told)
        if not command.addresses(self._agent_id, self._site):
            reason = f"refused: it was signed for {command.target_id or 'nobody'}, not for {outer.target_id}"
            return desk.Refused(command_id, reason, outer.single, told)
        return desk.Ordered(_order(command), told)

    async def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case desk.Start(order):
                    self._start(order)
                case desk.Stop(command_id):
                    await self._stop(command_id)
                case desk.Remember(record):
                    # Not to be able to write it down is no reason not to do it.
                    with self._steady(f"the journal of command {record.order.id}"):
                        await asyncio.to_thread(self._journal.remember, record)
                case desk.Forget(command_id):
                    with self._steady(f"the journal of command {command_id}"):
                        await asyncio.to_thread(self._journal.forget, command_id)
                    self._book.unwant(Key(RECEIPTS, receipt_id(command_id, self._agent_id)))
                    self._book.unwant(Key(COMMANDS, command_id))
                    self._on_report()
                case desk.Report():
                    self._report(effect)

    def _report(self, report: desk.Report) -> None:
        log.info("command %s: %s: %s", report.command_id, report.status.name.lower(), report.message)
        self._book.want(*documents.receipt(self._agent_id, report))
        if report.single:
            key = Key(COMMANDS, report.command_id)
            self._book.want(key, {"status": int(report.status)}, only_if_exists=True)
        self._on_report()

    def _start(self, order: Order) -> None:
        if self._group is not None:
            self._work[order.id] = self._group.create_task(self._carry_out(order), name=f"command {order.id}")

    async def _stop(self, command_id: str) -> None:
        task = self._work.pop(command_id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._hands.release(_wish(command_id))

    async def _carry_out(self, order: Order) -> None:
        tell = self._inbox.put_nowait

        def waiting(message: str) -> None:
            tell(desk.Progressed(order.id, f"waiting: {message}", waiting=True))

        try:
            found = await self._hands.obtain(order, _wish(order.id), waiting)
            what = found.manifest.reference
            if order.type == "deploy":
                async with self._hands.unpacking_for(found.manifest) as unpacking:
                    package = await self._follow(order, found, unpacking)
                    tell(desk.Progressed(order.id, f"unpacking {what}", waiting=False))
                    deployment = await self._hands.deploy(package, order.path, unpacking)
                message = f"{what} is deployed at {deployment.path}"
            else:
                package = await self._follow(order, found)
                message = f"{what} is here: {package.manifest.total_bytes} bytes, verified"
        except (PeatError, OSError) as error:
            tell(desk.Finished(order.id, "", error=str(error) or type(error).__name__))
        except Exception as error:
            log.exception("command %s failed", order.id)
            tell(desk.Finished(order.id, "", error=f"the agent failed unexpectedly: {error!r} (its log says more)"))
        else:
            tell(desk.Finished(order.id, message))

    async def _follow(self, order: Order, ticket: Ticket, unpacking: Unpacking | None = None) -> StoredPackage:
        said, said_at = "", -SAY_AGAIN_S
        async for status in ticket.updates():
            if status.state.final:
                continue  # how it ended is told by the ticket
            if unpacking is not None:
                await unpacking.advance(ticket.transfer)
            fetching = status.state in (TransferState.FETCHING, TransferState.CHECKING)
            message = f"fetching {ticket.manifest.reference}" if fetching else f"waiting: {status.reason}"
            now = self._clock.monotonic()
            sort = message.partition(":")[0]
            if message != said and (sort != said.partition(":")[0] or now - said_at >= SAY_AGAIN_S):
                said, said_at = message, now
                self._inbox.put_nowait(desk.Progressed(order.id, message, waiting=not fetching))
        return await ticket.wait()

    def records(self) -> list[Record]:
        """How every command stands that this agent has dealt with."""
        return self._desk.records()


def _wish(command_id: str) -> str:
    return f"command:{command_id}"


def _order(command: Command) -> Order:
    return Order(
        id=command.id,
        type=command.command_type,
        created_at=command.created_at,
        expires_at=command.expires_at,
        payload=command.payload_json,
        single=command.single,
        **desk.order_fields(command.payload),
    )
