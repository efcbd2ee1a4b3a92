"""What the mesh is told and what it tells: configuration, peers, statistics.

Owns the frozen values of the room's border.
"""

from __future__ import annotations

from dataclasses import dataclass

from peat_p2p.core.address import HostPort, PeerAddress

LONG_WAY = 0.2


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """How a node takes part in the mesh.

    `link_budget`: bytes per second that may be sent over one link to another site, everything counted; None: as the
    link allows. Links within a named site are not limited by it.
    `advertise`: addresses told to others in place of those found on this machine. `topology`: whether to link with
    members learned from documents and multicast, as the topology plans; else only configured peers are dialled.
    `long_way`: seconds there and back from which on urgent batches are sent as datagrams too.
    """

    listen: HostPort
    peers: tuple[PeerAddress, ...] = ()
    mdns: bool = True
    site: str = ""
    link_budget: float | None = None
    advertise: tuple[HostPort, ...] = ()
    connect_timeout: float = 10.0
    handshake_timeout: float = 15.0
    topology: bool = True
    long_way: float = LONG_WAY


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer that is wanted or linked. `learned`: how it became known; `reason`: why it is not linked, if it is not."""

    endpoint_id: str
    node_id: str
    addresses: tuple[str, ...]
    connected: bool
    state: str
    reason: str
    learned: tuple[str, ...]
    site: str
    bytes_sent: int
    bytes_received: int
    rtt: float | None


@dataclass(frozen=True, slots=True)
class MeshStats:
    """Totals since the start of the process; bytes count everything above TCP."""

    sync_active: bool
    connected_peers: int
    bytes_sent: int
    bytes_received: int
