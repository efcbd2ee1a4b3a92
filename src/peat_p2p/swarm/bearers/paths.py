"""Which way to a peer: straight, or through a bearer. Decided per peer from what the link has shown.

Rule: a short path (a LAN) is taken straight, TCP fills it with the least work; a long one by the bearer, on which loss
does not matter. A peer whose bearer does not answer (older, or its UDP is filtered) is taken straight and asked again
later. What is decided holds for new connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass

from peat_p2p.core.address import HostPort
from peat_p2p.swarm.bearers.relay import Bearers, Service

LONG_RTT_S = 0.008
_PATIENCE_S = 2.5
_ASK_AGAIN_S = 60.0


@dataclass(slots=True)
class _Known:
    asked_at: float
    answered: bool


class Paths:
    """Turns a peer's address into the one to connect to."""

    def __init__(self, bearers: Bearers) -> None:
        self._bearers = bearers
        self._known: dict[HostPort, _Known] = {}
        self._local: dict[HostPort, HostPort] = {}

    async def to(self, direct: HostPort, bearer: HostPort, service: Service) -> HostPort:
        """Where to connect for a service of a peer: `direct`, or a local port that leads there.

        `bearer` is the UDP address of the peer's bearers. Takes a round trip the first time.
        """
        if not _by_bearer(bearer):
            return direct
        if not await self._answers(bearer):
            return direct
        shown = self._bearers.reading(bearer)
        if shown is None or shown.min_rtt < LONG_RTT_S:
            return direct
        local = await self._bearers.port_to(bearer, service)
        self._local[local] = direct
        return local

    def far(self, bearer: HostPort) -> bool:
        """Whether what is known of a peer's bearer says that the way leads through it."""
        if not _by_bearer(bearer):
            return False
        shown = self._bearers.reading(bearer)
        return shown is not None and shown.min_rtt >= LONG_RTT_S

    def behind(self, address: HostPort) -> HostPort:
        """The direct address for which a local port stands; any other address is returned as it is."""
        return self._local.get(address, address)

    async def _answers(self, bearer: HostPort) -> bool:
        now = asyncio.get_running_loop().time()
        known = self._known.get(bearer)
        if known is not None and (known.answered or now - known.asked_at < _ASK_AGAIN_S):
            known.answered = known.answered or self._bearers.reading(bearer) is not None
            return known.answered
        known = self._known[bearer] = _Known(now, False)
        known.answered = await self._bearers.ask(bearer, _PATIENCE_S)
        return known.answered


def _by_bearer(address: HostPort) -> bool:
    """Bearers reach IP addresses of other machines."""
    try:
        return not ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False
