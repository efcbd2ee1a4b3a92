"""A fleet in memory, and nodes with real sockets on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from peat_p2p.core.address import HostPort, PeerAddress
from peat_p2p.core.clock import SystemClock
from peat_p2p.documents.replica import Replica
from peat_p2p.mesh.service import Mesh
from peat_p2p.mesh.simulation import Simulation
from peat_p2p.mesh.types import MeshConfig
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role


@pytest.fixture
def simulation() -> Callable[..., Simulation]:
    """Makes seeded fleets in memory."""
    return Simulation


@dataclass(slots=True)
class RunningNode:
    replica: Replica
    mesh: Mesh
    credentials: NodeCredentials

    @property
    def endpoint_id(self) -> str:
        return self.credentials.identity.endpoint_id

    @property
    def peer(self) -> PeerAddress:
        return PeerAddress(self.endpoint_id, self.mesh.address)

    async def put(self, collection: str, doc_id: str, text: str) -> None:
        await self.replica.put(collection, doc_id, text)

    def text(self, collection: str, doc_id: str) -> str | None:
        document = self.replica.get(collection, doc_id)
        return None if document is None else document.json


class Fleet:
    """Nodes of one formation, each with its own folder, started and stopped at will."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.formation = Formation.init(root / "formation", "test")

    def credentials(self, name: str, formation: Formation | None = None) -> NodeCredentials:
        folder = self.root / (formation or self.formation).name / name
        if not folder.exists():
            (formation or self.formation).issue(name, [Role.AGENT, Role.OPERATOR], folder)
        return NodeCredentials.load(folder)

    @asynccontextmanager
    async def node(
        self,
        name: str,
        *peers: PeerAddress,
        formation: Formation | None = None,
        mdns: bool = False,
        listen: HostPort = HostPort("127.0.0.1", 0),  # noqa: B008
        site: str = "here",
        **settings: object,
    ) -> AsyncIterator[RunningNode]:
        credentials = self.credentials(name, formation)
        path = self.root / f"{credentials.identity.formation}-{name}.sqlite"
        async with AsyncExitStack() as stack:
            replica = await stack.enter_async_context(Replica.open(path, credentials, SystemClock()))
            config = MeshConfig(listen, peers, mdns=mdns, site=site, **settings)  # type: ignore[arg-type]
            mesh = await stack.enter_async_context(Mesh.open(replica, credentials, config, SystemClock()))
            yield RunningNode(replica, mesh, credentials)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture
def until() -> Callable[..., object]:
    """Waits for a condition; fails with its text after a while."""

    async def wait(condition: Callable[[], object], within: float = 10.0) -> None:
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not true within {within} s")
            await asyncio.sleep(0.02)

    return wait
