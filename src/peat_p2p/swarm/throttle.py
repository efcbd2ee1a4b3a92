"""A cap on bytes per second for what does not go through libtorrent. Pure but for the sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_BURST_S = 0.25


class Throttle:
    """Whoever moves bytes takes them here first. `rate` is bytes per second, 0 is no cap."""

    def __init__(self, clock: Callable[[], float], rate: int = 0) -> None:
        self._clock = clock
        self.rate = rate
        self.total = 0  # bytes taken since the start
        self._free_at = 0.0

    def charge(self, count: int) -> float:
        """Note that so many bytes move now; the seconds to wait before the next."""
        self.total += count
        if not self.rate:
            return 0.0
        now = self._clock()
        self._free_at = max(self._free_at, now - _BURST_S) + count / self.rate
        return max(0.0, self._free_at - now)

    async def take(self, count: int) -> None:
        """Wait until so many more bytes may have moved."""
        wait = self.charge(count)
        if wait > 0:
            await asyncio.sleep(wait)
