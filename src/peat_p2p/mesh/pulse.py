"""Whether the other side of a link is alive.

Owns the pings of one link: when to ask, how long an answer may take, how long the round trip was. Keeps the rules that
a silent peer is noticed within 15 seconds, and that the two sides do not ask at the same time. On a link whose round
trips are longer than a satellite's, a thin radio, a peer may be silent for longer: what is lost there comes again after
many seconds, and a new link costs as much as minutes of what it carries. Time is an argument.
"""

from __future__ import annotations

from enum import Enum

HELLO_WITHIN = 10.0
PING_AFTER = 5.0
DEAD_AFTER = 13.0
_SLOW_TRIP_S, _SLOW_TRIPS = 0.7, 30  # from so long a round trip on: so many of them
_HELLO_TRIPS = 2  # at most, until the hello is answered
_LATER = 2.0


class Sign(Enum):
    """What the time that has passed means."""

    WELL = "well"
    ASK = "ask"
    NO_HELLO = f"no hello within {HELLO_WITHIN:.0f} s"
    SILENT = "silent"


class Pulse:
    """Of one link, which begins `now`. The hello counts as the first question."""

    def __init__(self, now: float, *, dialled: bool) -> None:
        self._ping_after = PING_AFTER if dialled else PING_AFTER + _LATER
        self.began = now
        self.nonce = 0
        self._heard = self._pinged = now
        self._asked_at: float | None = now
        self._shortest = 0.0

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
        trip = (now - asked) / (1 if nonce else _HELLO_TRIPS)
        self._shortest = min(self._shortest, trip) if self._shortest else trip
        return now - asked

    @property
    def dead_after(self) -> float:
        """Seconds of silence after which the other side is given up."""
        return _SLOW_TRIPS * self._shortest if self._shortest >= _SLOW_TRIP_S else DEAD_AFTER

    def deadline(self, *, greeted: bool) -> float:
        """When `check` will next have something to say."""
        if not greeted:
            return self.began + HELLO_WITHIN
        return min(self._heard + self.dead_after, max(self._heard, self._pinged) + self._ping_after)

    def check(self, now: float, *, greeted: bool) -> Sign:
        """What is due. `greeted`: both sides have said where they are."""
        if not greeted:
            return Sign.NO_HELLO if now - self.began >= HELLO_WITHIN else Sign.WELL
        if now - self._heard >= self.dead_after:
            return Sign.SILENT
        return Sign.ASK if now - max(self._heard, self._pinged) >= self._ping_after else Sign.WELL
