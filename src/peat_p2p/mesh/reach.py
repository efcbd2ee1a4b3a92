"""How far this side holds what the peer of a link has.

Owns, class by class, the place reached and the parts that the peer still owes: those it named and of which what it sent
could not be used. Keeps the rule that a cursor does not move while anything of its class is owed. Pure.
"""

from __future__ import annotations

from peat_p2p.mesh.frames import CLASSES, FrameError
from peat_p2p.mesh.ports import Key

_MAX_OWED = 65536


class Reach:
    """The places of one link."""

    def __init__(self) -> None:
        self._owed: list[set[Key | int]] = [set() for _ in CLASSES]
        self._reached = [-1 for _ in CLASSES]
        self._whole: set[int] = set()
        self._caught_up = False

    def owe(self, klass: int, name: Key | int) -> None:
        """The part (its key, or its fingerprint) must be sent again. Raises FrameError when too much is owed."""
        if len(self._owed[klass]) >= _MAX_OWED:
            raise FrameError("too many parts of unknown names")
        self._owed[klass].add(name)

    def owes(self, klass: int) -> bool:
        """Whether anything of the class is owed."""
        return bool(self._owed[klass])

    def pay(self, klass: int, *names: Key | int) -> None:
        """The part that was owed has come, or never will."""
        self._owed[klass].difference_update(names)

    def move(self, klass: int, seq: int | None, *, whole: bool) -> int | None:
        """The peer says that with all it sent we have everything up to `seq` (None: it cannot tell yet).

        `whole`: that was all the peer held, not a step on the way. Returns where the cursor is, once nothing is owed.
        """
        if seq is not None:
            self._reached[klass] = max(self._reached[klass], seq)
            if whole:
                self._whole.add(klass)
        reached = self._reached[klass]
        return reached if reached >= 0 and not self._owed[klass] else None

    def take_caught_up(self) -> bool:
        """Whether everything the peer held is here (true once)."""
        if self._caught_up or len(self._whole) < len(CLASSES) or any(self._owed):
            return False
        self._caught_up = True
        return True
