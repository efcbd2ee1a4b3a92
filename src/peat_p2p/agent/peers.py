"""Where the swarm's candidates come from: holdings and heartbeats, nothing else.

Owns the joining of `packages` documents with the `platforms` documents of their agents, and the choice among several
addresses of one agent. Must not judge health: the swarm does that with what it measures.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import psutil

from peat_p2p.agent.view import FleetView
from peat_p2p.core.address import HostPort, check_endpoint_id
from peat_p2p.core.errors import ConfigError, PeatError
from peat_p2p.fleet.heartbeat import Heartbeat
from peat_p2p.fleet.holdings import Holding, PullStatus
from peat_p2p.fleet.ids import PLATFORMS
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.session import peer_fingerprint

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class FleetPeers:
    """A PeerSource on the agent's copy of the fleet's documents."""

    def __init__(self, view: FleetView, networks: Sequence[Network] = ()) -> None:
        self._view = view
        self._networks = tuple(networks)
        self._sites: dict[str, str] = {}
        self._sites_for: object = None

    def candidates(self, manifest_digest: str) -> list[PeerCandidate]:
        """Agents that say they hold chunks of the package and where they are.

        After those that hold this very version come those that hold another of the same name: versions share chunks.
        """
        found: dict[str, PeerCandidate] = {}
        for holding in self._view.holders(manifest_digest):
            self._add(found, holding, kin=False)
        try:
            manifest = self._view.manifest(manifest_digest).manifest
        except PeatError:
            return list(found.values())
        for holding in self._view.holders_of_name(manifest.name):
            if holding.arch == manifest.arch and holding.agent_id not in found:
                self._add(found, holding, kin=True)
        return list(found.values())

    def _add(self, found: dict[str, PeerCandidate], holding: Holding, *, kin: bool) -> None:
        if holding.pull_status not in (PullStatus.PULLING, PullStatus.COMPLETE):
            return
        candidate = self._candidate(holding, kin=kin)
        if candidate is not None:
            found[holding.agent_id] = candidate

    def set_networks(self, networks: Sequence[Network]) -> None:
        """Say on which networks this machine is now: of several addresses of a peer, those there are tried first."""
        self._networks = tuple(networks)

    def shared(self, site: str, me: str) -> bool:
        """Whether another agent than this one, by its heartbeats, is at a site."""
        return any(
            beat.get("site") == site and beat.get("endpoint_id") != me for beat in self._view.all(PLATFORMS).values()
        )

    async def wait_change(self) -> None:
        """Return when any document changed."""
        await self._view.changes.next().wait()

    def site_of(self, peer: str) -> str:
        """The site of the agent whose endpoint id begins with these digits, by its heartbeat; empty when unknown."""
        changes = self._view.changes.next()
        if self._sites_for is not changes:
            self._sites_for = changes
            self._sites = {
                peer_fingerprint(str(beat.get("endpoint_id", ""))): str(beat.get("site", ""))
                for beat in self._view.all(PLATFORMS).values()
            }
        return self._sites.get(peer, "")

    def _candidate(self, holding: Holding, *, kin: bool) -> PeerCandidate | None:
        document = self._view.get(PLATFORMS, holding.agent_id)
        if document is None:
            return None
        beat = Heartbeat.from_document(holding.agent_id, document)
        swarm = choose_address(_parse(beat.swarm), self._networks)
        try:
            check_endpoint_id(beat.endpoint_id)
        except ConfigError:
            return None
        if swarm is None or self._view.revoked.endpoint(beat.endpoint_id) is not None:
            return None
        return PeerCandidate(
            agent_id=holding.agent_id,
            endpoint_id=beat.endpoint_id,
            swarm=swarm,
            metadata=choose_address(_parse(beat.metadata), self._networks),
            site=beat.site,
            complete=holding.complete and not kin,
            kin=kin,
            last_seen=float(beat.last_seen),
        )


def choose_address(addresses: Sequence[HostPort], networks: Sequence[Network]) -> HostPort | None:
    """The address to try: one on a network this machine is on, else the first that is not this machine's loopback."""
    for address in addresses:
        if not address.is_loopback and any(_in(address.host, network) for network in networks):
            return address
    beyond = [address for address in addresses if not address.is_loopback]
    return next(iter(beyond or addresses), None)


def own_networks() -> list[Network]:
    """The networks this machine's interfaces are on, loopback left out."""
    return [interface.network for interface in _interfaces()]


def advertised(bound: HostPort) -> list[HostPort]:
    """The addresses others can try for a socket bound to `bound`: itself, or every interface's for a wildcard."""
    if bound.host not in ("0.0.0.0", "::", ""):  # noqa: S104
        return [bound]
    v4_only = bound.host == "0.0.0.0"  # noqa: S104
    hosts = [str(i.ip) for i in _interfaces() if not v4_only or i.version == 4]
    return [HostPort(host, bound.port) for host in hosts] or [HostPort("127.0.0.1", bound.port)]


def _interfaces() -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    found: list[ipaddress.IPv4Interface | ipaddress.IPv6Interface] = []
    for _name, addresses in sorted(psutil.net_if_addrs().items()):
        for address in addresses:
            if not address.netmask:
                continue
            try:
                interface = ipaddress.ip_interface(f"{address.address}/{_prefix(address.netmask)}")
            except ValueError:
                continue
            if not interface.ip.is_loopback and not interface.ip.is_link_local:
                found.append(interface)
    return found


def _prefix(netmask: str) -> int | str:
    """IPv6 masks come as addresses, which `ipaddress` does not take."""
    return int(ipaddress.IPv6Address(netmask)).bit_count() if ":" in netmask else netmask


def _in(host: str, network: Network) -> bool:
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False


def _parse(texts: Sequence[str]) -> list[HostPort]:
    found: list[HostPort] = []
    for text in texts:
        try:
            found.append(HostPort.parse(text))
        except ConfigError:
            continue
    return found
