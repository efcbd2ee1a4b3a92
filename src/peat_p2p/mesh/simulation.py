"""A fleet in memory: link cores joined by scripted wires, on simulated time.

Owns the event queue, the wires (delay, rate, cuts) and the byte counts. The link cores and their decisions are the real
ones; sockets and replicas are not. Keeps the rule that a run is a function of its seed and script. Must not be used by
the service.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from peat_p2p.mesh.effects import Apply, Effect, End, Forget, Greeted, MoveCursor, Rejected, Send
from peat_p2p.mesh.frames import Hello, Reason, RecordReader
from peat_p2p.mesh.lanes import Linger
from peat_p2p.mesh.link import LinkCore
from peat_p2p.mesh.memory import MemoryStore
from peat_p2p.mesh.pace import RECORD_OVERHEAD
from peat_p2p.mesh.past import Past
from peat_p2p.mesh.summary import VersionTree

HANDSHAKE_BYTES = 1400
"""What TLS costs each side of a new connection: measured by the tests of the transport."""
_TLS_RECORD = 16384
_SHARED = 1024


@dataclass(frozen=True, slots=True)
class Wire:
    """What a link runs over. `rate` in bytes per second and direction; None: unlimited."""

    delay: float = 0.001
    rate: float | None = None
    jitter: float = 0.0


@dataclass(slots=True)
class Node:
    """One simulated sidecar."""

    name: str
    site: str
    store: MemoryStore
    trees: list[VersionTree] = field(default_factory=list)
    ends: dict[str, End_] = field(default_factory=dict)
    known: dict[str, bytes] = field(default_factory=dict)
    past: dict[str, Past] = field(default_factory=dict)


@dataclass(slots=True)
class End_:  # noqa: N801  (the effect has the plain name)
    """One end of a live link."""

    node: Node
    peer: Node
    core: LinkCore
    wire: Wire
    reader: RecordReader
    alive: bool = True
    other: End_ | None = None
    busy_until: float = 0.0
    last_arrival: float = 0.0
    wake_at: float = float("inf")
    out: bytes = b""
    sent: int = 0
    records: int = 0


class Simulation:
    """Nodes, links between them, and the clock."""

    def __init__(
        self, seed: int, *, linger: Linger | None = None, budget: float | None = None, whole: int = 120
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311  (simulated chance)
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.rejected: list[str] = []
        self.ended: list[tuple[str, str, Reason, str]] = []
        self.on_applied: Callable[[Node, float], None] | None = None
        self.bytes: dict[tuple[str, str], int] = {}
        self._linger = linger
        self._budget = budget
        self._whole = whole
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def add(self, name: str, site: str = "") -> Node:
        """A new node with an empty store."""
        node = Node(name, site, MemoryStore(self.random.randbytes(16), whole=self._whole))
        node.trees = [VersionTree(node.store, klass) for klass in range(4)]
        self.nodes[name] = node
        return node

    def wipe(self, name: str) -> None:
        """The node lost its database; its links must be cut first."""
        node = self.nodes[name]
        node.store = MemoryStore(self.random.randbytes(16), whole=self._whole)
        node.trees = [VersionTree(node.store, klass) for klass in range(4)]
        node.past.clear()

    def link(self, first: str, second: str, wire: Wire = Wire()) -> None:
        """Open a link; the first node dials."""
        a, b = self.nodes[first], self.nodes[second]
        ends = [self._end(a, b, wire, dialled=True), self._end(b, a, wire, dialled=False)]
        ends[0].other, ends[1].other = ends[1], ends[0]
        for end in ends:
            end.sent += HANDSHAKE_BYTES
            self._add_bytes(end, HANDSHAKE_BYTES)
            self._perform(end, end.core.start())

    def cut(self, first: str, second: str) -> None:
        """Break a link without a word; what is on its way is lost."""
        for one, other in ((first, second), (second, first)):
            end = self.nodes[one].ends.get(other)
            if end is not None:
                self._over(end)

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._count += 1
        heapq.heappush(self._events, (time, self._count, action))

    def changed(self, name: str) -> None:
        """The node's store changed: its links look."""
        for end in list(self.nodes[name].ends.values()):
            self._poll(end)

    def put(self, name: str, klass: int, key: str, version: int = 0) -> None:
        """Write at a node."""
        self.nodes[name].store.put(klass, key, version)
        self.changed(name)

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> None:
        """Let simulated time pass; `stop` is asked after every event."""
        while self._events and self._events[0][0] <= until:
            time, _, action = heapq.heappop(self._events)
            self.now = max(self.now, time)
            action()
            if stop is not None and stop():
                return
        self.now = max(self.now, until)

    def _end(self, node: Node, peer: Node, wire: Wire, *, dialled: bool) -> End_:
        known = node.known.get(peer.name, b"") if dialled else b""
        holds = tuple(sorted(node.store.cursors(peer.name, known).items())) if known else ()
        hello = Hello(node.site, node.store.epoch, holds_epoch=known, holds=holds)
        core = LinkCore(
            node.store,
            peer.name,
            hello,
            node.trees,
            dialled=dialled,
            now=self.now,
            budget=self._budget,
            linger=self._linger,
            past=node.past.get(peer.name),
        )
        end = End_(node, peer, core, wire, RecordReader())
        node.ends[peer.name] = end
        return end

    def _over(self, end: End_) -> None:
        end.alive = False
        end.node.ends.pop(end.peer.name, None)
        if (past := end.core.past()) is not None:
            end.node.past[end.peer.name] = past

    def _perform(self, end: End_, effects: list[Effect], *, flush: bool = True) -> None:
        applied = False
        pending = list(effects)
        while pending:
            effect = pending.pop(0)
            match effect:
                case Send():
                    if len(end.out) + len(effect.data) > _SHARED:
                        self._flush(end)
                    end.out += effect.data
                case Greeted():
                    end.node.known[end.peer.name] = effect.hello.epoch
                    cursors = end.node.store.cursors(end.peer.name, effect.hello.epoch)
                    pending.extend(end.core.resume(cursors))
                case Apply():
                    outcomes = end.node.store.apply(effect.updates, end.peer.name)
                    applied = True
                    pending[0:0] = end.core.applied(effect.number, outcomes, self.now)
                case MoveCursor():
                    end.node.store.move_cursor(end.peer.name, effect.epoch, effect.klass, effect.seq)
                case Rejected():
                    self.rejected.append(effect.reason)
                case End():
                    self.ended.append((end.node.name, end.peer.name, effect.reason, effect.detail))
                    self._over(end)
                case Forget():
                    pass
        if flush:
            self._flush(end)
        if applied:
            if self.on_applied is not None:
                self.on_applied(end.node, self.now)
            for other in list(end.node.ends.values()):
                if other is not end:
                    self._wake(other, self.now)
        self._schedule(end)

    def _flush(self, end: End_) -> None:
        if end.out:
            data, end.out = end.out, b""
            self._transmit(end, data)

    def _transmit(self, end: End_, data: bytes) -> None:
        other = end.other
        if other is None:
            raise RuntimeError("the link has one end")
        for start in range(0, len(data), _TLS_RECORD):
            piece = data[start : start + _TLS_RECORD]
            size = len(piece) + RECORD_OVERHEAD
            end.sent += size
            end.records += 1
            self._add_bytes(end, size)
            end.busy_until = max(self.now, end.busy_until) + (size / end.wire.rate if end.wire.rate else 0.0)
            arrival = end.busy_until + end.wire.delay + self.random.uniform(0.0, end.wire.jitter)
            end.last_arrival = arrival = max(arrival, end.last_arrival)
            self.at(arrival, partial(self._arrive, other, piece))

    def _arrive(self, end: End_, data: bytes) -> None:
        if not end.alive:
            return
        for record in end.reader.feed(data):
            self._perform(end, end.core.received(record, self.now), flush=False)
        self._perform(end, end.core.poll(self.now))

    def _poll(self, end: End_) -> None:
        if end.alive:
            self._perform(end, end.core.poll(self.now))

    def _schedule(self, end: End_) -> None:
        if end.alive:
            self._wake(end, max(self.now, end.core.deadline(self.now)) + 1e-6)

    def _wake(self, end: End_, at: float) -> None:
        if at >= end.wake_at:
            return
        end.wake_at = at

        def act() -> None:
            if end.alive and end.wake_at <= self.now:
                end.wake_at = float("inf")
                self._poll(end)

        self.at(at, act)

    def _add_bytes(self, end: End_, size: int) -> None:
        direction = (end.node.name, end.peer.name)
        self.bytes[direction] = self.bytes.get(direction, 0) + size
