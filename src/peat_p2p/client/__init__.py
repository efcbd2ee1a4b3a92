"""The SDK: what a user imports to reach a sidecar, asynchronously or not.

`async with SidecarClient("http://127.0.0.1:50051") as sidecar: ...` or, without asyncio,
`with SyncSidecarClient("unix:///run/peat/api.sock") as sidecar: ...`
"""

from peat_p2p.client.agent import AgentClient
from peat_p2p.client.client import SidecarClient
from peat_p2p.client.model import (
    Cell,
    Deleted,
    Event,
    Gap,
    Link,
    NodeInfo,
    Peer,
    Platform,
    SnapshotComplete,
    Status,
    SyncStats,
    Track,
    Upserted,
)
from peat_p2p.client.sync import SyncSidecarClient
from peat_p2p.documents.query import All, And, Eq, Greater, Less, Not, Or, Query
from peat_p2p.fleet.commands import Command, CommandStatus, Receipt
from peat_p2p.fleet.heartbeat import Heartbeat, Liveness
from peat_p2p.fleet.holdings import Deployment, Holding, PullStatus
from peat_p2p.fleet.view import AgentState, CommandState, Holder

__all__ = [
    "AgentClient",
    "AgentState",
    "All",
    "And",
    "Cell",
    "Command",
    "CommandState",
    "CommandStatus",
    "Deleted",
    "Deployment",
    "Eq",
    "Event",
    "Gap",
    "Greater",
    "Heartbeat",
    "Holder",
    "Holding",
    "Less",
    "Link",
    "Liveness",
    "NodeInfo",
    "Not",
    "Or",
    "Peer",
    "Platform",
    "PullStatus",
    "Query",
    "Receipt",
    "SidecarClient",
    "SnapshotComplete",
    "Status",
    "SyncSidecarClient",
    "SyncStats",
    "Track",
    "Upserted",
]
