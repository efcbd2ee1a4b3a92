"""What one link still has to send, class by class.

Owns the sweeps: for each class, the parts that changed here since what the peer holds, each at the place it took when
it first became due and sent in its newest state, so that under overload every part is refreshed in turn and none waits
more than two rounds. Owns also whose turn it is: the first class goes first, and each other class is owed a thirtieth
of what is sent while it waits. Keeps the rule that a part goes to a peer only if the peer is not known to have it as
new. Must not know frames' bytes or sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from peat_p2p.mesh.frames import CLASSES, DIGEST, Batch, Version
from peat_p2p.mesh.ports import Encoded, Key, Store
from peat_p2p.mesh.summary import Repair, fingerprint_of

_SWEEP = 8192
_MAX_REFS = 65536
_SHARE = 0.03
_TURN = 1024
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Linger:
    """How long each class waits after its last batch, so that changes share one."""

    seconds: tuple[float, float, float, float] = (0.05, 0.05, 0.25, 1.0)


@dataclass(slots=True)
class Lane:
    """One class of one link."""

    klass: int
    held: int = 0
    told: int = -1
    base: int = 0
    target: int | None = None
    ordered: bool = False
    passed: int | None = None
    sweep: deque[tuple[int, Key]] = field(default_factory=deque)
    forced: dict[Key, None] = field(default_factory=dict)
    repair: Repair | None = None
    sent_at: float = _NEVER
    owed: float = 0.0
    going: bool = False

    @property
    def through(self) -> int | None:
        """How far the peer is once it has all that was sent; None if that cannot be told yet.

        In a sweep over what changed since a cursor it is told on the way, so that a link that never lasts for a whole
        sweep gets further each time.
        """
        if self.forced or self.repair is not None:
            return None
        return self.passed if self.sweep else self.held

    @property
    def settled(self) -> bool:
        """Whether `held` may be told to the peer: nothing at or below it is still to be sent."""
        return not self.sweep and not self.forced and self.repair is None and self.target is None


class Outbox:
    """The lanes of one link, the refs given to keys, and what the peer is known to have."""

    def __init__(self, store: Store, peer: str, linger: Linger) -> None:
        self._store = store
        self._peer = peer
        self._linger = linger
        self.lanes = [Lane(klass) for klass in CLASSES]
        self._refs: dict[Key, int] = {}
        self._names: list[Key] = []
        self._peer_has: dict[Key, Version] = {}
        self._number = 0
        self._blind = False

    def peer_has(self, key: Key, version: Version) -> None:
        """The peer is known to have the part at least this new."""
        known = self._peer_has.pop(key, None)
        if known is None and len(self._peer_has) >= _MAX_REFS:
            del self._peer_has[next(iter(self._peer_has))]
        self._peer_has[key] = version if known is None else max(known, version)

    def peer_lacks(self, ref: int) -> Key:
        """The peer asks for the part `ref` whole. Raises IndexError for a ref never given."""
        key = self._names[ref]
        self._peer_has.pop(key, None)
        # Named anew in full: the peer may not have known the short name.
        if self._refs.get(key) == ref:
            del self._refs[key]
        return key

    def key_of(self, ref: int) -> Key:
        """The key a ref stands for. Raises IndexError."""
        return self._names[ref]

    def due(self, lane: Lane) -> bool:
        """Whether the lane has something to look at, now or after lingering."""
        return bool(lane.forced or lane.sweep or self._store.head(lane.klass) > lane.held)

    def ready_at(self, lane: Lane) -> float:
        """When a due lane may send: at once in the midst of a sweep, or else when it has lingered."""
        if lane.going or lane.forced:
            return _NEVER
        return lane.sent_at + self._linger.seconds[lane.klass]

    def choose(self, now: float, batch: int) -> tuple[Lane, int] | None:
        """Whose turn it is, if any lane is due and has lingered, and how many of `batch` bytes it may send."""
        ready = [lane for lane in self._open() if self.due(lane) and self.ready_at(lane) <= now]
        if not ready:
            return None
        for lane in ready[1:]:
            if lane.owed >= min(batch, _TURN):
                return lane, min(batch, int(lane.owed))
        return ready[0], batch

    def build(self, lane: Lane, limit: int, now: float, *, may_reset: bool) -> Batch | None:
        """The next batch of the lane, about `limit` bytes; None if the peer turns out to have it all."""
        items: list[tuple[int, bytes]] = []
        new_keys: list[bytes] = []
        reset = False
        if len(self._names) >= _MAX_REFS:
            if not may_reset:
                return None
            self._refs.clear()
            self._names.clear()
            reset = True
        size = 0
        while size < limit and len(self._names) < _MAX_REFS:
            key = self._next(lane)
            if key is None:
                break
            encoded = self._encode(lane, key)
            if encoded is None:
                continue
            ref = self._refs.get(key)
            if ref is None:
                ref = self._refs[key] = len(self._names)
                self._names.append(key)
                new_keys.append(self._name(key, short=not encoded.whole))
                size += len(new_keys[-1]) + 2
            items.append((ref, encoded.body))
            size += len(encoded.body) + 4
        if not items:
            return None
        lane.sent_at = now
        lane.owed = max(0.0, lane.owed - size)
        for other in self.lanes:
            if other is not lane and self.due(other):
                other.owed += _SHARE * size
            elif other is not lane:
                other.owed = 0.0
        self._number += 1
        through = None if self._blind else lane.through
        if through is not None:
            lane.told = through
        return Batch(lane.klass, self._number, tuple(items), tuple(new_keys), through, reset, more=bool(lane.sweep))

    def skim(self) -> None:
        """Move every lane past what the peer already has, without sending."""
        for lane in self._open():
            while not lane.forced:
                if lane.sweep:
                    seq, key = lane.sweep[0]
                    version = self._store.version(key)
                    known = self._peer_has.get(key)
                    if version is not None and (known is None or known < version):
                        break
                    lane.sweep.popleft()
                    self._pass(lane, seq)
                    if not lane.sweep:
                        self._finish(lane)
                elif not self._begin(lane):
                    break

    def guess(self, held: int) -> None:
        """The peer has not said yet what it holds: take it to hold what it did last time, in the first class, and send
        nothing of the others. What is sent meanwhile does not tell the peer how far it is."""
        self._blind = True
        self.lanes[0].held = self.lanes[0].base = held

    def know(self) -> None:
        """The peer has said what it holds."""
        if self._blind:
            self._blind = False
            lane = self.lanes[0]
            lane.sweep.clear()
            lane.going = lane.ordered = False
            lane.target = lane.passed = None

    @property
    def surely_held(self) -> int:
        """Up to which seq of the first class the peer has all, if nothing is on its way."""
        lane = self.lanes[0]
        return lane.held if lane.settled else lane.base

    def untold(self) -> list[Lane]:
        """Lanes in which the peer is further than it was told."""
        return [lane for lane in self.lanes if lane.settled and lane.told < lane.held]

    def forget_class(self, lane: Lane) -> None:
        """Start the lane anew: the peer may have lost what it had."""
        lane.sweep.clear()
        lane.forced.clear()
        lane.going = False
        lane.target = lane.passed = None
        lane.ordered = False
        lane.base = 0
        self._peer_has.clear()

    def add(self, lane: Lane, keys: Iterable[Key]) -> None:
        """Also send these."""
        lane.ordered = False
        lane.passed = None
        lane.sweep.extend((0, key) for key in keys)

    def _open(self) -> list[Lane]:
        return self.lanes[:1] if self._blind else self.lanes

    def _next(self, lane: Lane) -> Key | None:
        if lane.forced:
            return next(iter(lane.forced))
        if not lane.sweep and not self._begin(lane):
            return None
        seq, key = lane.sweep.popleft()
        self._pass(lane, seq)
        lane.going = True
        if not lane.sweep:
            self._finish(lane)
        return key

    def _begin(self, lane: Lane) -> bool:
        """Start a sweep over what changed since the last one."""
        if self._store.head(lane.klass) <= lane.held:
            return False
        changed = self._store.changed_since(lane.klass, lane.held, _SWEEP, peer=self._peer)
        if not changed:
            lane.held = self._store.head(lane.klass)
            return False
        lane.sweep.extend(changed)
        lane.ordered = True
        lane.target = changed[-1][0]
        return True

    def _finish(self, lane: Lane) -> None:
        lane.going = lane.ordered = False
        lane.passed = None
        if lane.target is not None:
            lane.held = lane.target
            lane.target = None

    def _pass(self, lane: Lane, seq: int) -> None:
        """A part of the sweep is on its way. Only a sweep of what changed since a cursor tells how far the peer is."""
        if lane.ordered:
            lane.passed = seq

    def _name(self, key: Key, *, short: bool) -> bytes:
        """What to call the part: a peer that has it knows it by its fingerprint."""
        spelled = self._store.encode_key(key)
        return fingerprint_of(spelled).to_bytes(DIGEST, "big") if short and len(spelled) > 2 * DIGEST else spelled

    def _encode(self, lane: Lane, key: Key) -> Encoded | None:
        """What to send of the part: None if nothing, an empty body if it was promised and is gone."""
        forced = key in lane.forced
        lane.forced.pop(key, None)
        version = self._store.version(key)
        known = None if forced else self._peer_has.get(key)
        if version is not None and (known is None or known < version):
            encoded = self._store.encode(key, known, 0 if forced else lane.base)
            if encoded is not None:
                self.peer_has(key, version)
                return encoded
            version = None
        return Encoded(b"", whole=True) if forced and version is None else None
