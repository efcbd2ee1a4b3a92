"""The SDK: what a user imports to reach a sidecar, asynchronously or not.

`async with SidecarClient("http://127.0.0.1:50051") as sidecar: ...` or, without asyncio,
`with SyncSidecarClient("unix:///run/peat/api.sock") as sidecar: ...`

A name is imported when it is first used: a command that asks an agent for one thing starts in half the time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "peat_p2p.client.agent": ("AgentClient",),
    "peat_p2p.client.client": ("SidecarClient",),
    "peat_p2p.client.model": (
        "Cell",
        "Deleted",
        "Event",
        "Gap",
        "Link",
        "NodeInfo",
        "Peer",
        "Platform",
        "SnapshotComplete",
        "Status",
        "SyncStats",
        "Track",
        "Upserted",
    ),
    "peat_p2p.client.sync": ("SyncSidecarClient",),
    "peat_p2p.documents.query": (
        "All",
        "And",
        "Eq",
        "Greater",
        "Less",
        "Not",
        "Or",
        "Query",
    ),
    "peat_p2p.fleet.commands": (
        "Command",
        "CommandStatus",
        "Receipt",
    ),
    "peat_p2p.fleet.heartbeat": (
        "Heartbeat",
        "Liveness",
    ),
    "peat_p2p.fleet.holdings": (
        "Deployment",
        "Holding",
        "PullStatus",
    ),
    "peat_p2p.fleet.view": (
        "AgentState",
        "CommandState",
        "Holder",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """What `from peat_p2p.client import NAME` is answered with."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value
