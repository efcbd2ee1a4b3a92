"""A fleet of agents for the swarm bench: real processes, each in its host of an emulated network or on loopback.

Owns their folders, keys, start, death and restart, and plays the documents by which they know of each other: every half
second each agent is told who holds or fetches the package, as heartbeats and holdings would say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.net import Network
from bench.result import ROOT
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import SystemClock
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

TELL_S = 0.5
POINT_S = 0.9  # points of a curve are at least this far apart


@dataclass(slots=True)
class Agent:
    """One agent: where it is, its process while it lives, what it said last."""

    name: str
    site: str
    folder: Path
    host: str
    config: dict[str, Any] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    address: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    holds: bool = False
    fetching: bool = False
    begun: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    curve: list[tuple[float, float]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def seconds(self) -> float | None:
        """From the order to the last verified byte."""
        ended = self.last.get("ended")
        return ended - self.begun if ended else None

    async def ask(self, do: str, **rest: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        async with self.lock:
            assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.write(json.dumps({"do": do, **rest}).encode() + b"\n")
            await self.process.stdin.drain()
            line = await self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"{self.name} ended; see {self.folder / 'log'}")
            answer: dict[str, Any] = json.loads(line)
            if "cpu" in answer:
                self.last = answer
                self._plot()
            return answer

    def _plot(self) -> None:
        """Add a point to the curve: seconds since the order, share of the package that is verified."""
        total, verified = self.last.get("total"), self.last.get("verified")
        if not self.begun or not total or verified is None or (self.curve and self.curve[-1][1] >= 1.0):
            return
        at = (self.last["ended"] or time.time()) - self.begun
        if not self.curve or at - self.curve[-1][0] >= POINT_S or verified == total:
            self.curve.append((round(at, 2), round(verified / total, 4)))

    async def kill(self) -> None:
        """End it at once."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Fleet:
    """Agents by name, and the package they are about."""

    def __init__(self, root: Path, sites: Mapping[str, Sequence[str]], network: Network | None) -> None:
        self.root = root
        self.network = network
        formation = Formation.init(root / "formation", "bench")
        self.agents: dict[str, Agent] = {}
        for site, names in sites.items():
            for name in names:
                formation.issue(name, [Role.AGENT, Role.PUBLISHER], root / name / "node")
                host = network.address(name) if network else f"127.0.1.{len(self.agents) + 1}"
                self.agents[name] = Agent(name, site, root / name, host)
        self.endpoints = {name: self.credentials(name).identity.endpoint_id for name in self.agents}
        self.package: StoredPackage | None = None
        self.envelope = root / "envelope.json"

    def credentials(self, name: str) -> NodeCredentials:
        return NodeCredentials.load(self.root / name / "node")

    def publish(self, name: str, source: Path, version: str = "1.0") -> StoredPackage:
        """Publish on an agent that is not running; it becomes the package of the fleet."""
        credentials = self.credentials(name)
        with ChunkStore.open(self.agents[name].store) as store:
            builder = torrent_builder(store, credentials.ca_pem)
            self.package = publish(source, "app", version, "any", store, credentials, builder, SystemClock())
        self.envelope.write_text(json.dumps(self.package.envelope))
        self.agents[name].holds = True
        return self.package

    def copy(self, source: str, target: str) -> None:
        """Give another agent the same store."""
        shutil.copytree(self.agents[source].store, self.agents[target].store)
        self.agents[target].holds = True

    @property
    def total(self) -> int:
        assert self.package is not None
        return self.package.index.unique_bytes

    async def start(self, name: str, **options: Any) -> Agent:
        agent = self.agents[name]
        agent.config = {
            "node": str(agent.folder / "node"),
            "store": str(agent.store),
            "host": agent.host,
            "site": agent.site,
            "everyone": self.endpoints,
            # As heartbeats say it, whether or not anybody has the package.
            "shared_sites": [
                site for site, count in Counter(a.site for a in self.agents.values()).items() if count > 1
            ],
            **options,
        }
        config = agent.folder / "config.json"
        config.write_text(json.dumps(agent.config))
        words = [sys.executable, "-m", "bench.swarm_node", str(config)]
        if self.network is not None:
            words = self.network.command(name, words)
        with (agent.folder / "log").open("ab") as log:
            agent.process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                limit=1 << 24,
            )
        assert agent.process.stdout is not None
        line = await agent.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} did not start; see {agent.folder / 'log'}")
        agent.address = json.loads(line)
        if agent.holds:
            await agent.ask("seed")
        return agent

    def candidates(self) -> list[dict[str, Any]]:
        """What the documents would say now. A dead agent's are still there."""
        return [
            {
                "agent_id": agent.name,
                "endpoint_id": self.endpoints[agent.name],
                "swarm": agent.address["swarm"],
                "metadata": agent.address["metadata"],
                "site": agent.site,
                "complete": agent.holds or bool(agent.last.get("ended")),
                "last_seen": time.time(),
            }
            for agent in self.agents.values()
            if agent.address and (agent.holds or agent.fetching)
        ]

    async def fetch(self, names: Sequence[str]) -> None:
        """Order the package on some agents at once."""
        for name in names:
            self.agents[name].fetching = True
        await self.tell()
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                self.agents[name].begun = time.time()
                tasks.create_task(self.agents[name].ask("fetch", envelope=str(self.envelope)))

    async def tell(self) -> None:
        """Bring the documents and the bench's own view up to date."""
        peers = self.candidates()
        async with asyncio.TaskGroup() as tasks:
            for agent in self.agents.values():
                if agent.process is not None:
                    tasks.create_task(agent.ask("peers", peers=peers))

    def curves(self, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
        """Of each agent: [seconds since the order, share that is verified], for a plot."""
        return {name: self.agents[name].curve for name in names}

    async def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Go on until `done`; False when that took longer than `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.tell()
            if done():
                return True
            await asyncio.sleep(TELL_S)
        return False

    def complete(self, names: Sequence[str]) -> Callable[[], bool]:
        """Whether these agents have everything."""
        return lambda: all(self.agents[name].last.get("ended") for name in names)

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A line for each agent."""
        return [
            {
                "agent": name,
                "seconds": agent.seconds,
                "verified": agent.last.get("verified"),
                "received": agent.last.get("received"),
                "wasted": agent.last.get("wasted"),
                "cpu": agent.last.get("cpu"),
                "bad_peers": agent.last.get("bad_peers"),
                "from": {s["agent_id"] or "unknown": s["bytes"] for s in agent.last.get("sources", [])},
            }
            for name in names
            for agent in [self.agents[name]]
        ]

    def verify(self, names: Sequence[str]) -> int:
        """How many of these (ended) agents do not have every chunk, hashed anew."""
        assert self.package is not None
        wrong = 0
        for name in names:
            with ChunkStore.open(self.agents[name].store) as store:
                wrong += bool(store.verify_many(self.package.index.unique_chunks))
        return wrong

    async def stop(self) -> None:
        for agent in self.agents.values():
            await agent.kill()


@asynccontextmanager
async def fleet(sites: Mapping[str, Sequence[str]], network: Network | None = None) -> AsyncIterator[Fleet]:
    """A fleet in a folder of its own that is gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="peat-bench-swarm-"))
    made = Fleet(root, sites, network)
    try:
        yield made
    finally:
        await made.stop()
        if not os.environ.get("PEAT_BENCH_KEEP"):
            shutil.rmtree(root, ignore_errors=True)


def random_file(path: Path, size: int, rng: random.Random) -> Path:
    """A file that cannot be compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        left = size
        while left:
            piece = rng.randbytes(min(left, 16 << 20))
            file.write(piece)
            left -= len(piece)
    return path
