"""Stamps: when a field was written, as one integer that orders writes.

Owns the 64-bit form: Unix milliseconds times 65,536 plus a counter. Keeps the rule that a write is stamped above
everything its writer had seen of the document, so that a later write wins whatever the clocks say. Must not read a
clock.
"""

from __future__ import annotations

COUNTER_BITS = 16
# Half of the range is not used, so that a stamp fits wherever a signed integer does.
MAX_STAMP = (1 << 63) - 1


def stamp_at(unix: float) -> int:
    """The first stamp of the moment `unix` (seconds); times before 1970 count as 1970."""
    return min(max(int(unix * 1000), 1) << COUNTER_BITS, MAX_STAMP >> 1)


def stamp_time(stamp: int) -> float:
    """The Unix time (seconds) a stamp stands for."""
    return (stamp >> COUNTER_BITS) / 1000


class StampClock:
    """Issues one writer's stamps, each above the last one however the wall clock moves."""

    __slots__ = ("last",)

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def next(self, now: float, above: int) -> int:
        """A stamp for a write at `now` (Unix seconds) whose writer has seen the stamp `above` in the document.

        A stamp that had to exceed another writer's does not carry this writer's own clock along: one node with a clock
        in the future does not spread its error to every document.
        """
        self.last = max(stamp_at(now), self.last + 1)
        # There is nothing above the end of time; whoever wrote that may still be outweighed.
        return max(self.last, above + 1) if above < MAX_STAMP else self.last
