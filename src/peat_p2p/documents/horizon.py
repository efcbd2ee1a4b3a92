"""What is remembered of what is gone.

Owns three facts. The floor: the stamp up to which deletions have been forgotten here. The covers: up to which stamp
of each writer and class this replica certainly had everything, told by the writer's own beacons. And which peers must
be offered everything again, because a writer was out of touch for longer than the horizon. Keeps the rule that a part
which was here and was forgotten never comes back, while a write nobody here has seen is never refused. Must not
delete anything itself.
"""

from __future__ import annotations

from collections.abc import Callable

from peat_p2p.documents.content import Content
from peat_p2p.documents.rules import is_reserved
from peat_p2p.documents.shelf import Shelf
from peat_p2p.documents.stamps import StampClock, stamp_time
from peat_p2p.documents.types import PartKey
from peat_p2p.documents.view import Writer

_FLOOR = "floor"
# For how long after an absence was noticed a peer's word that something was forgotten is taken.
_LAPSE = 86_400.0


class Horizon:
    """The memory of one replica."""

    def __init__(self, shelf: Shelf, own: Callable[[], Writer], stamps: StampClock) -> None:
        self._shelf = shelf
        self._own = own
        self._stamps = stamps
        self._coming: dict[str, dict[tuple[Writer, int], int]] = {}
        self._reoffer: set[str] = set()
        self._lapsed: dict[str, float] = {}
        self._refused: dict[tuple[Writer, int], float] = {}

    @property
    def floor(self) -> int:
        """The stamp up to which deletions have been forgotten here."""
        meta = self._shelf.staged.meta.get(_FLOOR) or self._shelf.meta.get(_FLOOR, b"")
        return int.from_bytes(meta, "big")

    def raise_floor(self, stamp: int) -> None:
        """Stage a higher floor."""
        if stamp > self.floor:
            self._shelf.staged.meta[_FLOOR] = stamp.to_bytes(8, "big")

    def cover(self, writer: Writer, klass: int) -> int:
        """Up to which stamp everything of a writer's class was here."""
        if writer == self._own():
            return self._stamps.last
        ahead = self._shelf.staged.covers.get((writer, klass))
        return ahead or self._shelf.covers.get((writer, klass), 0)

    def purged_up_to(self, key: PartKey, content: Content, now: float) -> int:
        """Up to which stamp what an unknown part says was here and was forgotten; 0: it was not."""
        if is_reserved(key.collection):
            return 0
        writer, klass = (key.origin, key.incarnation), self._shelf.rules.of(key.collection).klass
        cover = self.cover(writer, klass)
        bound = min(self.floor, cover)
        if content.oldest > bound:
            return 0
        # Until its writer has said anew what counts of it, we do not have everything of that writer.
        self._refused[writer, klass] = now
        for coming in self._coming.values():
            coming.pop((writer, klass), None)
        return bound

    def saw_beacon(self, key: PartKey, content: Content, source: str, now: float) -> None:
        """A writer's beacon came: what it wrote before came before it, once the source has given all it has."""
        klass = self._shelf.rules.of(key.collection).klass
        writer = (key.origin, key.incarnation)
        if abs(now - self._refused.get((writer, klass), float("-inf"))) > _LAPSE:
            self._coming.setdefault(source, {})[writer, klass] = content.version
        # A writer whose beacons never came to anything here is judged by the oldest we have of it.
        before = self.cover(writer, klass) or self._shelf.oldest.get(writer, 0)
        if before and stamp_time(content.version) - stamp_time(before) > self._shelf.rules.horizon:
            self._reoffer.add(source)
            self._lapsed[source] = now + _LAPSE

    def caught_up(self, source: str) -> bool:
        """Stage what the beacons from `source` promised: it has given all it had. Returns whether anything changed."""
        changed = False
        for (writer, klass), stamp in self._coming.pop(source, {}).items():
            if stamp > self.cover(writer, klass):
                self._shelf.staged.covers[writer, klass] = stamp
                changed = True
        return changed

    def take_reoffer(self, peer: str) -> bool:
        """Whether `peer` should be offered everything again; true once."""
        if peer in self._reoffer:
            self._reoffer.discard(peer)
            return True
        return False

    def believes(self, peer: str, now: float) -> bool:
        """Whether the word of `peer` that something was forgotten counts.

        It does after we were out of touch for longer than the horizon, which the beacons prove that came from that
        peer, and while we have nothing of our own knowledge yet. Otherwise a captured peer could empty its neighbours.
        """
        return now < self._lapsed.get(peer, 0.0) or not (self._shelf.covers or self._shelf.staged.covers)
