"""When the swarm may use the network, and how much.

Owns byte budgets per hour, day and month and windows of the day, all in UTC, and which bytes count. Rule: when a budget
is used up everything stops and says so, until the period ends; nothing falls back to another way by itself; after a
crash rather too much has been counted than too little. Pure: time is an argument. Must not know sessions or files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from peat_p2p.core.errors import ConfigError

_DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of each day, in minutes after midnight UTC; it may run over midnight."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read `HH:MM-HH:MM`. Raises ConfigError."""
        begin, dash, end = text.partition("-")
        if not dash:
            raise ConfigError(f"time window {text!r} is not HH:MM-HH:MM")
        window = cls(_minutes(begin, text), _minutes(end, text))
        if window.start == window.end:
            raise ConfigError(f"time window {text!r} is empty")
        return window

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day is inside."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.start, self.end))


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes, both ways together, per hour, day and month (0: no limit), and when traffic is allowed (none: always).

    What stays inside the site counts only with `inside`.
    """

    hour: int = 0
    day: int = 0
    month: int = 0
    windows: tuple[Window, ...] = ()
    inside: bool = False

    @property
    def limits(self) -> bool:
        """Whether it forbids anything at all."""
        return bool(self.hour or self.day or self.month or self.windows)


@dataclass(slots=True)
class Crossings:
    """Of all bytes of a session, those that crossed between sites.

    Payload is known by connection, protocol and headers are not: they are shared out as the payload of the same
    moment is. Where that says nothing, neighbours alone are nothing that crosses; when nobody is connected any more it
    is as it was last; else everything counts.
    """

    _traffic: int = 0
    _payload: dict[str, int] = field(default_factory=dict)
    _share: float = 1.0

    def observe(self, traffic: int, connections: Iterable[tuple[str, bool, int]]) -> int:
        """Take a look: all bytes since the start; of each connection its key, whether it stays inside, its payload."""
        gained = max(0, traffic - self._traffic)
        self._traffic = max(traffic, self._traffic)
        before, self._payload = self._payload, {}
        sides, seen = {True: 0, False: 0}, {True: False, False: False}
        for key, inside, payload in connections:
            last = before.get(key, 0)
            sides[inside] += payload - last if payload >= last else payload
            seen[inside] = True
            self._payload[key] = payload
        total = sides[True] + sides[False]
        if total:
            self._share = sides[False] / total
        elif seen[True] or seen[False]:
            self._share = 1.0 if seen[False] else 0.0
        return round(gained * self._share)


@dataclass(slots=True)
class Meter:
    """What was used of a budget in the present periods."""

    budget: Budget
    _used: dict[str, tuple[str, int]] = field(default_factory=dict)  # period -> (which one, bytes)

    def spend(self, now: float, count: int) -> None:
        """Count bytes that crossed."""
        for period, key in _periods(now).items():
            known, used = self._used.get(period, (key, 0))
            self._used[period] = (key, (used if known == key else 0) + count)

    def used(self, now: float, period: str) -> int:
        """Bytes in the present hour, day or month."""
        key, used = self._used.get(period, ("", 0))
        return used if key == _periods(now)[period] else 0

    def room(self, now: float) -> int | None:
        """How many bytes may cross before the first budget is used up; None when no bytes are counted."""
        budget = self.budget
        limits = (("hour", budget.hour), ("day", budget.day), ("month", budget.month))
        return min((max(0, limit - self.used(now, period)) for period, limit in limits if limit), default=None)

    def why_not(self, now: float) -> str:
        """Why nothing may cross now, and for how long; empty when it may."""
        found = self._closed(now)
        return f"{found[0]}; {found[1]} in {_span(found[2])}" if found is not None else ""

    def closed_until(self, now: float) -> str:
        """The same in words that stay true while time passes: until when. Empty when bytes may cross."""
        found = self._closed(now)
        if found is None:
            return ""
        return f"{found[0]} until {datetime.fromtimestamp(round(now + found[2]), UTC):%Y-%m-%d %H:%M} UTC"

    def _closed(self, now: float) -> tuple[str, str, float] | None:
        """Why nothing may cross, what happens then, and in how many seconds."""
        for period, limit in (("month", self.budget.month), ("day", self.budget.day), ("hour", self.budget.hour)):
            if limit and self.used(now, period) >= limit:
                why = f"the budget of {_size(limit)} per {period} is used up"
                return why, "it begins anew", _ends(now, period) - now
        windows = self.budget.windows
        at = datetime.fromtimestamp(now, UTC)
        minute = at.hour * 60 + at.minute
        if windows and not any(window.holds(minute) for window in windows):
            wait = min((window.start - minute) % _DAY_MINUTES for window in windows) * 60 - at.second
            return f"outside the hours {_list(windows)} UTC", "they begin", wait - at.microsecond / 1e6
        return None

    def dump(self, margin: int) -> bytes:
        """The account as JSON, with `margin` bytes added for what may cross before the next one is written."""
        return json.dumps({period: [key, used + margin] for period, (key, used) in self._used.items()}).encode()

    def load(self, data: bytes) -> None:
        """Take up an account. One that cannot be read counts as none."""
        try:
            content: Any = json.loads(data)
            self._used = {str(period): (str(key), int(used)) for period, (key, used) in content.items()}
        except (ValueError, TypeError, AttributeError):
            self._used = {}


def _periods(now: float) -> dict[str, str]:
    at = datetime.fromtimestamp(now, UTC)
    return {"hour": at.strftime("%Y-%m-%dT%H"), "day": at.strftime("%Y-%m-%d"), "month": at.strftime("%Y-%m")}


def _ends(now: float, period: str) -> float:
    at = datetime.fromtimestamp(now, UTC).replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return (at + timedelta(hours=1)).timestamp()
    at = at.replace(hour=0)
    if period == "day":
        return (at + timedelta(days=1)).timestamp()
    return (at.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()


def _minutes(text: str, whole: str) -> int:
    hours, colon, minutes = text.strip().partition(":")
    digits = hours.isascii() and hours.isdigit() and minutes.isascii() and minutes.isdigit()
    if not colon or not digits or int(hours) > 24 or int(minutes) > 59 or int(hours) * 60 + int(minutes) > _DAY_MINUTES:
        raise ConfigError(f"time window {whole!r} is not HH:MM-HH:MM")
    return (int(hours) * 60 + int(minutes)) % _DAY_MINUTES


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:g} {unit}"
    return f"{count} bytes"


def _span(seconds: float) -> str:
    seconds = max(0, int(seconds))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172800 else f"{seconds // 86400} days"


def _list(windows: Iterable[Window]) -> str:
    return ", ".join(str(window) for window in windows)
