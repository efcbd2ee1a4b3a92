"""The caps of a node, held by its torrents and its streams together.

libtorrent limits itself, streams take from a throttle. Rule: what both may use never adds up to more than the cap.
Each has a share of it that follows what it uses: who uses its share up takes what the other leaves, and when both do
they get half each. Must not know transfers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from peat_p2p.swarm.session import Limits
from peat_p2p.swarm.throttle import Throttle

LEAST_SHARE = 0.03  # of who uses nothing: enough to begin with, and to be seen wanting more
_HUNGRY = 0.8
_SPARE = 1.25
_TICK_S = 0.5


@dataclass(slots=True)
class Share:
    """How one cap is divided. Pure. `streams` is their part of it, between 0 and 1."""

    streams: float = 0.5

    def look(self, cap: float, torrents: float, streams: float) -> None:
        """Take a look at what was used since the last time, in bytes per second like the cap."""
        want_torrents = torrents >= _HUNGRY * cap * (1.0 - self.streams)
        want_streams = streams >= _HUNGRY * cap * self.streams
        if want_torrents and want_streams:
            self.streams = 0.5
        elif want_streams:
            self.streams = max(self.streams, 1.0 - max(LEAST_SHARE, _SPARE * torrents / cap))
        elif want_torrents:
            self.streams = min(self.streams, max(LEAST_SHARE, _SPARE * streams / cap))


class CappedTorrents(Protocol):
    """The session, as far as caps go (`torrents.TorrentSession`)."""

    received: int
    sent: int

    def ask_traffic(self) -> None:
        """Bring `received` and `sent`, in bytes since the start, up to date soon."""
        ...

    def set_limits(self, limits: Limits) -> None:
        """Cap everything."""
        ...

    def set_outside_limits(self, limits: Limits) -> None:
        """Cap what crosses to other sites."""
        ...


class _Way:
    """One direction. Streams go to other sites alone, so both caps bound them."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self.whole = self.outside = 0
        self._shares = (Share(), Share())
        self._torrents = self._streams = 0

    def look(self, torrents: int, span: float) -> None:
        """`torrents`: bytes since the start; `span`: seconds since the last look."""
        used = (torrents - self._torrents) / span, (self._throttle.total - self._streams) / span
        self._torrents, self._streams = torrents, self._throttle.total
        for cap, share in zip((self.whole, self.outside), self._shares, strict=True):
            if cap:
                share.look(cap, *used)

    def apply(self) -> tuple[int, int]:
        """Set what streams may use; returns what torrents may: in all, and to other sites."""
        caps = [(cap, share.streams) for cap, share in zip((self.whole, self.outside), self._shares, strict=True)]
        self._throttle.rate = min((max(1, int(cap * part)) for cap, part in caps if cap), default=0)
        whole, outside = (max(1, int(cap * (1.0 - part))) if cap else 0 for cap, part in caps)
        return whole, outside


class Caps:
    """Divides the caps, in bytes per second (0: none), while `run` runs."""

    def __init__(self, taken: Throttle, given: Throttle, clock: Callable[[], float]) -> None:
        self._down, self._up = _Way(taken), _Way(given)
        self._clock = clock
        self._set = asyncio.Event()
        self._torrents: CappedTorrents | None = None
        self._told: tuple[Limits, Limits] | None = None

    def bind(self, torrents: CappedTorrents) -> None:
        """From now on these torrents are capped."""
        self._torrents = torrents
        self._apply()

    def set_whole(self, download: int, upload: int) -> None:
        """Cap everything."""
        self._down.whole, self._up.whole = download, upload
        self._apply()

    def set_outside(self, download: int, upload: int) -> None:
        """Cap what crosses to other sites."""
        self._down.outside, self._up.outside = download, upload
        self._apply()

    @property
    def _any(self) -> bool:
        return any(way.whole or way.outside for way in (self._down, self._up))

    def _apply(self) -> None:
        (down, outside_down), (up, outside_up) = self._down.apply(), self._up.apply()
        limits = Limits(down, up), Limits(outside_down, outside_up)
        if self._torrents is not None and limits != self._told:
            self._torrents.set_limits(limits[0])
            self._torrents.set_outside_limits(limits[1])
            self._told = limits
        if self._any:
            self._set.set()
        else:
            self._set.clear()

    async def run(self) -> None:
        """Follow what is used, for ever; costs nothing while there is no cap."""
        torrents = self._torrents
        assert torrents is not None, "bind comes first"
        while True:
            await self._set.wait()
            began = self._clock()
            torrents.ask_traffic()
            await asyncio.sleep(_TICK_S)
            span = max(self._clock() - began, _TICK_S / 2)
            self._down.look(torrents.received, span)
            self._up.look(torrents.sent, span)
            self._apply()
