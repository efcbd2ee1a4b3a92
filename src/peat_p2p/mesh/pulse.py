"""Whether the other side of a link is alive.

Owns the pings of one link: when to ask, how long an answer may take, how long the round trip was. Keeps the rules that
a silent peer is noticed within 15 seconds, and that the two sides do not ask at the same time. Time is an argument.
"""

from __future__ import annotations

from enum import Enum

HELLO_WITHIN = 10.0
PING_AFTER = 5.0
DEAD_AFTER = 13.0
_LATER = 2.0


class Sign(Enum):
    """What the time that has passed means."""

    WELL = "well"
    ASK = "ask"
    NO_HELLO = f"no hello within {HELLO_WITHIN:.0f} s"
    SILENT = f"silent for {DEAD_AFTER:.0f} s"


class Pulse:
    """Of one link, which begins `now`. The hello counts as the first question."""

    def __init__(self, now: float, *, dialled: bool) -> None:
        self._ping_after = PING_AFTER if dialled else PING_AFTER + _LATER
        self.began = now
        self.nonce = 0
        self._heard = self._pinged = now
        self._asked_at: float | None = now

    def heard(self, now: float) -> None:
        """Something came in."""
        self._heard = now

    def asked(self, now: float) -> int:
        """A ping goes out; returns its nonce."""
        self.nonce += 1
        self._pinged = self._asked_at = now
        return self.nonce

    def answered(self, nonce: int, now: float) -> float | None:
        """A pong came in: the round trip in seconds, if it answers what was asked last and is its first answer."""
        if nonce != self.nonce or self._asked_at is None:
            return None
        asked, self._asked_at = self._asked_at, None
        return now - asked

    def deadline(self, *, greeted: bool) -> float:
        """When `check` will next have something to say."""
        if not greeted:
            return self.began + HELLO_WITHIN
        return min(self._heard + DEAD_AFTER, max(self._heard, self._pinged) + self._ping_after)

    def check(self, now: float, *, greeted: bool) -> Sign:
        """What is due. `greeted`: both sides have said where they are."""
        if not greeted:
            return Sign.NO_HELLO if now - self.began >= HELLO_WITHIN else Sign.WELL
        if now - self._heard >= DEAD_AFTER:
            return Sign.SILENT
        return Sign.ASK if now - max(self._heard, self._pinged) >= self._ping_after else Sign.WELL
