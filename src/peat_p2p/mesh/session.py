"""One live link: the link core joined to a TLS stream and a replica.

Owns the three tasks of a link (reading, handling what was read, waking the core in time) and performs its effects.
Keeps the rule that the core sees events one at a time, in order. Decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from peat_p2p.core.clock import Clock
from peat_p2p.core.waiting import within
from peat_p2p.documents.types import CursorMove, Outcome, PartKey, Update
from peat_p2p.mesh.effects import (
    Ahead,
    Apply,
    CaughtUp,
    Effect,
    End,
    Forget,
    Greeted,
    MoveCursor,
    Offered,
    Rejected,
    Send,
)
from peat_p2p.mesh.express import ExpressSocket, Outlet
from peat_p2p.mesh.frames import FrameError, Hello, Reason, RecordReader
from peat_p2p.mesh.link import LinkCore
from peat_p2p.mesh.tls import TlsStream
from peat_p2p.trust.identity import Identity

_LOG = logging.getLogger(__name__)
_POLICY = "policy:"
_READ_AHEAD = 1024 * 1024
# Handed to the socket ahead: what the link takes in an instant; of a link whose rate is not known yet, so many bytes.
_ROOM_S, _LEAST_ROOM, _FIRST_ROOM = 0.1, 1024, 8 * 1024
_MOST_BACKLOG = 64 * 1024
_SHARED = 1024
_MOST_COPIES = 64


class Sink(Protocol):
    """What a link needs of a replica besides reading."""

    async def apply(self, updates: Sequence[Update], source: str, cursors: Sequence[CursorMove] = ()) -> list[Outcome]:
        """Apply updates durably."""
        ...

    def cursors(self, peer: str, epoch: bytes) -> dict[int, int]:
        """What is held of a peer's database."""
        ...

    async def forget(self, purged: Iterable[tuple[PartKey, int]], peer: str) -> list[tuple[PartKey, int]]:
        """The peer deleted and forgot these parts; returns those forgotten here."""
        ...

    async def caught_up(self, peer: str) -> None:
        """Everything the peer held is here."""
        ...

    def take_reoffer(self, peer: str) -> bool:
        """Whether everything must be offered to the peer again (true once)."""
        ...


class Session:
    """Runs one link until it ends.

    `admit` is asked once the peer has said hello; an answer other than None refuses. `relay` is given what was
    forgotten here on the peer's word. `express` carries copies of urgent batches.
    """

    def __init__(
        self,
        core: LinkCore,
        stream: TlsStream,
        sink: Sink,
        identity: Identity,
        clock: Clock,
        admit: Callable[[Session], tuple[Reason, str] | None],
        relay: Callable[[Session, Sequence[tuple[PartKey, int]]], None],
        express: ExpressSocket,
        *,
        dialled: bool,
    ) -> None:
        self.core = core
        self.stream = stream
        self.identity = identity
        self.dialled = dialled
        self.optional = False
        self.began = clock.monotonic()
        self._sink = sink
        self._clock = clock
        self._admit = admit
        self._relay = relay
        self._express = express
        self._outlet: Outlet | None = None
        self._copies: asyncio.Queue[bytes] = asyncio.Queue(_MOST_COPIES)
        self._wake = asyncio.Event()
        self._reader = RecordReader()
        self._out = bytearray()
        self._queue: asyncio.Queue[tuple[bytes, float] | None] = asyncio.Queue()
        self._queued = 0
        self._room = asyncio.Event()
        self._clogged = asyncio.Event()

    @property
    def peer(self) -> str:
        """The peer's endpoint id."""
        return self.identity.endpoint_id

    @property
    def hello(self) -> Hello | None:
        """What the peer said of itself."""
        return self.core.peer

    def _copied(self, record: bytes) -> None:
        """A datagram brought a copy of an urgent batch."""
        self.stream.bytes_received += len(record)
        if not self._copies.full():
            self._copies.put_nowait(record)

    def wake(self) -> None:
        """The replica changed."""
        self._wake.set()

    async def purged(self, floors: Sequence[tuple[PartKey, int]]) -> None:
        """Tell the peer what was forgotten here."""
        await self._perform(self.core.purged(floors))

    async def end(self, reason: Reason, detail: str = "") -> None:
        """End the link on purpose."""
        await self._perform(self.core.stop(reason, detail))
        self._wake.set()

    async def run(self) -> End:
        """Speak until the link ends; returns why. Raises RefusedError or UnavailableError from the stream."""
        inlet = self._express.inlet(self._copied)
        self.core.copies.express = None if inlet is None else inlet.offer
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(), name=f"mesh read {self.identity.node_id}")
                handling = group.create_task(self._handle(), name=f"mesh handle {self.identity.node_id}")
                draining = group.create_task(self._drain(), name=f"mesh drain {self.identity.node_id}")
                copying = group.create_task(self._take_copies(), name=f"mesh copies {self.identity.node_id}")
                await self._perform(self.core.start())
                await self._tick()
                for task in (reading, handling, draining, copying):
                    task.cancel()
        except ExceptionGroup as errors:  # of one or two: the first tells why
            raise errors.exceptions[0] from None
        finally:
            self._express.shut(inlet)
        ended = self.core.ended
        if ended is None:
            raise RuntimeError("the link's clock stopped before the link ended")
        await self.stream.close()
        return ended

    async def _read(self) -> None:
        """Take bytes off the stream as they come, so that it is known when they came, up to a bound."""
        while self.core.ended is None:
            data = await self.stream.receive()
            if not data:
                await self._queue.put(None)
                return
            self._queued += len(data)
            self._room.clear()
            await self._queue.put((data, self._clock.monotonic()))
            while self._queued > _READ_AHEAD:
                self._room.clear()
                await self._room.wait()

    async def _handle(self) -> None:
        """Give the core one record after the other."""
        while self.core.ended is None:
            item = await self._queue.get()
            if item is None:
                self._over(End(Reason.UNSPECIFIED, "the other side closed the connection"))
                return
            data, arrived = item
            try:
                for record in self._reader.feed(data):
                    await self._act(self.core.received(record, self._clock.monotonic(), arrived))
                    if self.core.ended is not None:
                        break
                # What is due now goes in one record with the answers.
                await self._perform(self.core.poll(self._clock.monotonic(), self._space()))
            except FrameError as error:
                self._over(End(Reason.PROTOCOL, str(error), fault=True))
                return
            self._queued -= len(data)
            self._room.set()
            if self.stream.backlog() > _MOST_BACKLOG:  # a peer that asks much and takes nothing waits for its answers
                await self.stream.drain()
            self._wake.set()

    async def _tick(self) -> None:
        while self.core.ended is None:
            now = self._clock.monotonic()
            wait = max(self.core.deadline(now, room=self._space() > 0) - now, 0.001)
            await within(wait, self._wake)
            self._wake.clear()
            await self._perform(self.core.poll(self._clock.monotonic(), self._space()))

    def _space(self) -> int:
        """How many bytes may be handed to the socket now, so that what comes to be more urgent is not behind them."""
        rate = self.core.pacer.rate
        return (max(_LEAST_ROOM, int(rate * _ROOM_S)) if rate else _FIRST_ROOM) - self._backlog()

    def _backlog(self) -> int:
        """How many bytes the socket has still to take; the pacer and who waits for it to be empty are told."""
        backlog = self.stream.backlog()
        self.core.pacer.waiting(backlog, self._clock.monotonic())
        if backlog:
            self._clogged.set()
        return backlog

    async def _drain(self) -> None:
        """Look again when the socket has taken what it was given."""
        while self.core.ended is None:
            await self._clogged.wait()
            await self.stream.drain()
            self._clogged.clear()
            self._wake.set()

    async def _take_copies(self) -> None:
        while self.core.ended is None:
            parts = self.core.copied(await self._copies.get(), self._clock.monotonic())
            if parts:
                self.core.heard(parts, await self._sink.apply([update for _, update in parts], self.peer))

    def _over(self, end: End) -> None:
        if self.core.ended is None:
            self.core.ended = end
        self._wake.set()

    async def _perform(self, effects: list[Effect]) -> None:
        await self._act(effects)
        self._write()

    async def _act(self, effects: list[Effect]) -> None:
        """Perform effects; what is to be sent waits for `_write`, or for the next pause."""
        pending = list(effects)
        moves: list[CursorMove] = []
        while pending:
            effect = pending.pop(0)
            match effect:
                case Send():
                    # Small frames share a record; a batch has its own, so that the peer can begin on it.
                    if len(self._out) + len(effect.data) > _SHARED:
                        self._write()
                    self._out += effect.data
                case Offered():
                    self._outlet = self._express.outlet(self.stream.peer_host, effect.express)
                case Ahead():
                    if self._outlet is not None:
                        size = self._outlet.send(effect.record)
                        self.stream.bytes_sent += size
                        self.core.pacer.charge(size)
                case Greeted():
                    refusal = self._admit(self)
                    if refusal is not None:
                        pending.extend(self.core.stop(*refusal))
                    else:
                        pending.extend(self.core.resume(self._sink.cursors(self.peer, effect.hello.epoch)))
                case Apply():
                    self._write()
                    outcomes = await self._sink.apply(effect.updates, self.peer)
                    pending[0:0] = self.core.applied(effect.number, outcomes, self._clock.monotonic())
                    if self._sink.take_reoffer(self.peer):
                        pending.extend(self.core.reoffer())
                case MoveCursor():
                    moves.append(CursorMove(self.peer, effect.epoch, effect.klass, effect.seq))
                case Forget():
                    self._write()
                    forgotten = await self._sink.forget(effect.floors, self.peer)
                    if forgotten:
                        self._relay(self, forgotten)
                case CaughtUp():
                    await self._flush_moves(moves)
                    await self._sink.caught_up(self.peer)
                case Rejected():
                    _LOG.warning(
                        "%s sent %s/%s: %s", self.identity, effect.key.collection, effect.key.doc_id, effect.reason
                    )
                    if not effect.reason.startswith(_POLICY):
                        pending.extend(self.core.stop(Reason.PROTOCOL, f"refused: {effect.reason}"))
                case End():
                    self._wake.set()
        await self._flush_moves(moves)

    async def _flush_moves(self, moves: list[CursorMove]) -> None:
        if moves:
            latest = {move.klass: move for move in moves}
            moves.clear()
            await self._sink.apply((), self.peer, tuple(latest.values()))

    def _write(self) -> None:
        if self._out:
            data, self._out = bytes(self._out), bytearray()
            self.stream.send(data)
            self._backlog()
