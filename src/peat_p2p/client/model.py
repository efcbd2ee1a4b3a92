"""What the SDK's calls return: plain frozen values, with nothing of the wire in them.

Owns the values of the fixed API. What documents mean (heartbeats, holdings, commands) is in `fleet/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Status:
    """How a sidecar does. `phase` is "initializing", "ready", "syncing" or "shutting_down"."""

    node_id: str
    endpoint_addr: str
    sync_active: bool
    connected_peers: int
    phase: str


@dataclass(frozen=True, slots=True)
class Peer:
    """A sidecar this sidecar was told of or found."""

    endpoint_id: str
    addresses: tuple[str, ...]
    connected: bool


@dataclass(frozen=True, slots=True)
class SyncStats:
    """What the mesh has moved since the sidecar started."""

    sync_active: bool
    connected_peers: int
    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Who the sidecar is."""

    node_id: str
    endpoint_id: str
    formation: str
    roles: tuple[str, ...]
    site: str
    version: str
    mesh_address: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the mesh, with the reason for its state in words."""

    endpoint_id: str
    node_id: str
    address: str
    site: str
    state: str
    reason: str
    learned: str
    bytes_sent: int
    bytes_received: int
    round_trip_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A platform, as the typed call knows it. `status` is a number of PlatformStatus."""

    id: str
    platform_type: str = ""
    name: str = ""
    status: int = 0
    latitude: float = 0.0
    longitude: float = 0.0
    altitude_m: float = 0.0
    readiness: float = 0.0
    capabilities: tuple[str, ...] = ()
    unit_id: str | None = None
    callsign: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A group of platforms. `status` is a number of CellStatus."""

    id: str
    name: str = ""
    status: int = 0
    platform_count: int = 0
    center_latitude: float = 0.0
    center_longitude: float = 0.0
    capabilities: tuple[str, ...] = ()
    formation_id: str | None = None
    leader_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Something seen. `category` is a number of TrackCategory."""

    id: str
    source_platform: str = ""
    cell_id: str | None = None
    formation_id: str | None = None
    latitude: float = 0.0
    longitude: float = 0.0
    altitude_m: float | None = None
    cep_m: float | None = None
    heading_deg: float | None = None
    speed_mps: float | None = None
    classification: str = ""
    confidence: float = 0.0
    category: int = 0


@dataclass(frozen=True, slots=True)
class Upserted:
    """A document is there or has changed; `text` is its JSON object exactly as stored, `document` the same, parsed."""

    collection: str
    doc_id: str
    text: str = field(repr=False)
    document: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Deleted:
    """A document is gone."""

    collection: str
    doc_id: str


@dataclass(frozen=True, slots=True)
class SnapshotComplete:
    """Every document that existed when the subscription (or its fresh start) began has been told."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes may have been missed: forget what was told so far, a fresh snapshot follows. `reason` is for a person."""

    reason: str


Event = Upserted | Deleted | SnapshotComplete | Gap
