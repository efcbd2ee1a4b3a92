"""A small formation, stores and engines on loopback, for the tests of the swarm."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import SystemClock
from peat_p2p.swarm.engine import SwarmConfig, SwarmEngine
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role


@dataclass
class Node:
    """A node of the test's formation: its credentials, its store and, while it runs, its engine."""

    name: str
    folder: Path
    credentials: NodeCredentials
    store: ChunkStore
    engine: SwarmEngine | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, **config: object) -> SwarmEngine:
        engine = SwarmEngine.open(self.store, self.credentials, SwarmConfig(**config))  # type: ignore[arg-type]
        self.engine = await self._stack.enter_async_context(engine)
        return self.engine

    async def stop(self) -> None:
        self.engine = None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    def candidate(self, **changes: object) -> PeerCandidate:
        assert self.engine is not None
        values: dict[str, object] = {
            "agent_id": self.name,
            "endpoint_id": self.credentials.identity.endpoint_id,
            "swarm": self.engine.swarm_address,
            "metadata": self.engine.metadata_address,
        }
        return PeerCandidate(**(values | changes))  # type: ignore[arg-type]

    def lose(self, package: StoredPackage) -> None:
        """Be as if a package had never been here."""
        for chunk in package.index.unique_chunks:
            self.store.chunk_path(chunk.hex).unlink()
        self.store.verify_many(package.index.unique_chunks)
        self.store.remove_package(package.manifest_digest)

    def publish(self, source: Path, version: str = "1.0") -> StoredPackage:
        builder = torrent_builder(self.store, self.credentials.ca_pem)
        return publish(source, "app", version, "any", self.store, self.credentials, builder, SystemClock())


@pytest.fixture(scope="session")
def formation_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formation")
    formation = Formation.init(folder / "formation", "test")
    for name in ("ann", "bob", "cat", "dan", "eve", "fay"):
        formation.issue(name, [Role.AGENT, Role.PUBLISHER], folder / name)
    foreign = Formation.init(folder / "foreign", "test")
    foreign.issue("mal", [Role.AGENT, Role.PUBLISHER], folder / "mal")
    return folder


@pytest.fixture
async def node(formation_dir: Path, tmp_path: Path) -> AsyncIterator[Callable[[str], Node]]:
    """A function that makes the node of a name; what it started is stopped at the end."""
    made: list[Node] = []

    def make(name: str) -> Node:
        folder = tmp_path / name
        store = ChunkStore.open(folder / "store")
        node = Node(name, folder, NodeCredentials.load(formation_dir / name), store)
        made.append(node)
        return node

    yield make
    for one in reversed(made):
        await one.stop()
        one.store.close()


@pytest.fixture
def content(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a folder of random files: (name, bytes, files, seed)."""

    def make(name: str = "source", size: int = 3_000_000, files: int = 5, seed: int = 1) -> Path:
        source = tmp_path / name
        source.mkdir()
        rng = random.Random(seed)
        for number in range(files):
            (source / f"file-{number}").write_bytes(rng.randbytes(size // files))
        return source

    return make


@pytest.fixture
def package_of(content: Callable[..., Path]) -> Iterator[Callable[..., StoredPackage]]:
    """A function that publishes a random package on a node."""
    yield lambda node, **kw: node.publish(content(**kw))
