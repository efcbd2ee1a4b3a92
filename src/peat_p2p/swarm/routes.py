"""The way to a peer's ports: its name resolved, and by a bearer where the path is long.

Owns the step from a candidate's announced addresses to the one to connect to. A peer's bearer listens on UDP at the
number of its metadata port. Must not know what is said there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import UnavailableError
from peat_p2p.swarm.bearers.paths import Paths
from peat_p2p.swarm.bearers.relay import Bearers, Service
from peat_p2p.swarm.peers import PeerCandidate


class Routes:
    """Finds addresses. Without `bearers` every way is the straight one."""

    def __init__(self, bearers: Bearers | None = None, site: str = "") -> None:
        self._bearers = bearers
        self._paths = Paths(bearers) if bearers is not None else None
        self._site = site

    async def swarm(self, peer: PeerCandidate) -> HostPort:
        """Where to dial a peer's torrents. Raises UnavailableError."""
        direct = await resolve(peer.swarm)
        if self._paths is None or peer.metadata is None or self._near(peer):
            return direct
        return await self._paths.to(direct, bearer=await resolve(peer.metadata), service=Service.SWARM)

    async def metadata(self, peer: PeerCandidate, *, straight: bool = False) -> HostPort:
        """Where to ask a peer for metadata and chunks, `straight` without a bearer. Raises UnavailableError."""
        if peer.metadata is None:
            raise UnavailableError(f"{peer.agent_id} has announced no address for metadata")
        direct = await resolve(peer.metadata)
        if self._paths is None or straight or self._near(peer):
            return direct
        return await self._paths.to(direct, bearer=direct, service=Service.METADATA)

    def by_bearer(self, address: HostPort) -> bool:
        """Whether an address that was given here leads through a bearer."""
        return self._paths is not None and self._paths.behind(address) != address

    def far(self, peer: PeerCandidate) -> bool:
        """Whether a peer is reached by a bearer."""
        if self._paths is None or peer.metadata is None or self._near(peer):
            return False
        return self._paths.far(peer.metadata)

    def perhaps_far(self, peer: PeerCandidate) -> bool:
        """Whether a peer is reached by a bearer, or would be tried that way."""
        if self._paths is None or peer.metadata is None or self._near(peer):
            return False
        return self._paths.perhaps_far(peer.metadata)

    async def settle(self, peer: PeerCandidate) -> None:
        """Find out whether a peer that has been dealt with is far, where what its bearer has shown leaves it open."""
        if self._paths is not None and peer.metadata is not None and not self._near(peer):
            direct = await resolve(peer.metadata)
            await self._paths.to(direct, bearer=direct, service=Service.METADATA)

    def near(self, peer: PeerCandidate) -> bool:
        """Whether a peer is known to be on a short path: a neighbour, or shown to be by its bearer."""
        if peer.metadata is None:
            return False
        return self._near(peer) or (self._paths is not None and self._paths.short(peer.metadata))

    def ring(self, peer: PeerCandidate, answered: Callable[[], None] | None) -> None:
        """Have a silent peer asked by UDP, every few seconds, whether it is there again; `answered` is called then."""
        if self._bearers is not None and peer.metadata is not None:
            self._bearers.ring(peer.metadata, answered)

    def heard(self, peer: PeerCandidate) -> float:
        """When a peer last gave a sign of life by UDP, by the loop's clock; minus infinity if it never did."""
        if self._bearers is None or peer.metadata is None:
            return float("-inf")
        return self._bearers.heard(peer.metadata)

    def heard_since(self, peer: PeerCandidate, when: float) -> bool:
        """Whether a peer gave a sign of life by UDP after a moment of the loop's clock."""
        return self.heard(peer) > when

    def round_trip(self, peer: PeerCandidate) -> float:
        """Seconds to a peer and back by the bearer; 0 when that is not known."""
        shown = self._bearers.reading(peer.metadata) if self._bearers is not None and peer.metadata else None
        return shown.min_rtt if shown is not None else 0.0

    def _near(self, peer: PeerCandidate) -> bool:
        """Neighbours are reached straight, also when a busy moment makes the path look long: see `Steering`."""
        return bool(self._site) and peer.site == self._site


async def resolve(address: HostPort) -> HostPort:
    """The address with an IP address for its host. Raises UnavailableError."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=1)
    except OSError as error:
        raise UnavailableError(f"{address.host} has no address: {error}") from error
    if not found:
        raise UnavailableError(f"{address.host} has no address")
    return HostPort(str(found[0][4][0]), address.port)
