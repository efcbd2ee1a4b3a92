"""Time as an argument.

Owns the `Clock` port. Deciding code takes a Clock so that tests and simulations choose what time it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Wall time for what people and documents see; monotonic time for intervals. Both in seconds."""

    def wall(self) -> float:
        """Unix time in seconds; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since an arbitrary start."""
        return time.monotonic()


@dataclass(slots=True)
class ManualClock:
    """A clock that moves only when told to."""

    now: float = 1_700_000_000.0
    elapsed: float = 0.0

    def wall(self) -> float:
        """The set Unix time."""
        return self.now

    def monotonic(self) -> float:
        """The set elapsed time."""
        return self.elapsed

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        self.now += seconds
        self.elapsed += seconds
