"""A fleet of agents in one process: real stores, real swarm, and a sidecar in memory that they share."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from peat_p2p.agent.config import AgentConfig
from peat_p2p.agent.service import Agent
from peat_p2p.client.model import Deleted, Event, Gap, SnapshotComplete, Upserted
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.config import NodeConfig
from peat_p2p.core.errors import InvalidInputError, UnavailableError
from peat_p2p.fleet.commands import Command, CommandStatus, seal_command
from peat_p2p.swarm.engine import SwarmConfig, SwarmEngine
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role


class FakeSidecar:
    """Documents in memory, with a mesh of no delay: several agents may share one."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}
        self.puts: list[tuple[str, str, dict[str, Any]]] = []
        self._up = asyncio.Event()
        self._up.set()
        self._down = asyncio.Event()
        self._readers: list[asyncio.Queue[Event]] = []

    def stop(self) -> None:
        self._up.clear()
        self._down.set()

    def start(self) -> None:
        self._down.clear()
        self._up.set()

    async def put_document(self, collection: str, doc_id: str, document: Mapping[str, object] | str) -> None:
        if not self._up.is_set():
            raise UnavailableError("sidecar: connection refused")
        fields = json.loads(document if isinstance(document, str) else json.dumps(dict(document)))
        if fields.get("poison"):
            raise InvalidInputError("poison")
        self.puts.append((collection, doc_id, fields))
        stored = {**self.documents.get((collection, doc_id), {}), **fields}
        self.documents[collection, doc_id] = stored
        self._tell(Upserted(collection, doc_id, json.dumps(stored), stored))

    async def delete_document(self, collection: str, doc_id: str) -> None:
        if not self._up.is_set():
            raise UnavailableError("sidecar: connection refused")
        if self.documents.pop((collection, doc_id), None) is not None:
            self._tell(Deleted(collection, doc_id))

    async def subscribe(self, collections: Sequence[str] = ()) -> AsyncGenerator[Event, None]:
        while True:
            await self._up.wait()
            inbox: asyncio.Queue[Event] = asyncio.Queue()
            for (collection, doc_id), fields in list(self.documents.items()):
                if collection in collections:
                    yield Upserted(collection, doc_id, json.dumps(fields), dict(fields))
            self._readers.append(inbox)
            yield SnapshotComplete()
            try:
                while not self._down.is_set():
                    try:
                        async with asyncio.timeout(0.02):
                            yield await inbox.get()
                    except TimeoutError:
                        continue
            finally:
                self._readers.remove(inbox)
            yield Gap("connection refused")

    def get(self, collection: str, doc_id: str) -> dict[str, Any]:
        return self.documents.get((collection, doc_id), {})

    def _tell(self, event: Event) -> None:
        for reader in self._readers:
            reader.put_nowait(event)


@dataclass
class Fleet:
    """Makes nodes of one formation and agents on them."""

    root: Path
    formation: Formation
    sidecar: FakeSidecar = field(default_factory=FakeSidecar)
    interval: float = 0.3

    def credentials(self, node: str, *roles: Role) -> NodeCredentials:
        folder = self.root / "nodes" / node
        if not folder.exists():
            self.formation.issue(node, roles or (Role.AGENT, Role.PUBLISHER), folder, replace=True)
        return NodeCredentials.load(folder)

    def config(self, node: str, **more: Any) -> AgentConfig:
        data = self.root / "data" / node
        data.mkdir(parents=True, exist_ok=True)
        folder = self.root / "nodes" / node
        node_config = NodeConfig(data_dir=data, formation=folder, site=more.pop("site", "s1"))
        return AgentConfig(node=node_config, sidecar="http://127.0.0.1:1", heartbeat_interval_s=self.interval, **more)

    @contextlib.asynccontextmanager
    async def agent(self, node: str, sidecar: FakeSidecar | None = None, **more: Any) -> AsyncIterator[Agent]:
        credentials = self.credentials(node)
        config = self.config(node, **more)
        clock = SystemClock()
        with ChunkStore.open(config.store_root, clock) as store:
            swarm = SwarmConfig(
                site=config.node.site,
                state_dir=config.state_root / "swarm",
                download_limit=config.download_limit,
                upload_limit=config.upload_limit,
            )
            async with SwarmEngine.open(store, credentials, swarm, clock) as engine:
                agent = Agent(config, credentials, store, engine, sidecar or self.sidecar, clock)
                async with agent.run():
                    yield agent

    def command(self, command_id: str, target: str, kind: str = "pull", **payload: Any) -> Command:
        now = int(SystemClock().wall())
        expires = payload.pop("expires_at", 0)
        created = payload.pop("created_at", now)
        return Command(
            id=command_id,
            target_id=target,
            command_type=kind,
            status=CommandStatus.PENDING,
            created_at=created,
            expires_at=expires,
            payload_json=json.dumps(payload),
        )

    async def order(self, command: Command, by: NodeCredentials | None = None, sidecar: Any = None) -> None:
        signer = by or self.credentials("hub", Role.HUB)
        sealed = replace(command, envelope=seal_command(signer, command))
        await (sidecar or self.sidecar).put_document("commands", command.id, sealed.to_fields())


async def wait_until(condition: Callable[[], Any], timeout: float = 60.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def formation(tmp_path_factory: pytest.TempPathFactory) -> Formation:
    return Formation.init(tmp_path_factory.mktemp("ca") / "ca", "test")


@pytest.fixture
async def fleet(tmp_path: Path, formation: Formation) -> Fleet:
    return Fleet(tmp_path, formation)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return wait_until


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of files with content that differs by `seed`."""

    def make(seed: int = 1, size: int = 300_000, files: int = 4) -> Path:
        import random

        folder = tmp_path / "packages" / f"p{seed}-{size}"
        folder.mkdir(parents=True)
        source = random.Random(seed)
        for number in range(files):
            (folder / f"file{number}.bin").write_bytes(source.randbytes(size))
        (folder / "empty").mkdir()
        return folder

    return make
