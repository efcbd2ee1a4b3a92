"""One node of the mesh bench: a replica with the mesh, or the naive flood it is compared with, under remote control.

    python -m bench.mesh_node CONFIG.json

Reads commands as JSON lines from a Unix socket and answers each with one line. Owns the workload generators and the
figures a node can tell about itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import resource
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil

from bench.mesh_naive import NaiveNode
from peat_p2p.core.address import HostPort, PeerAddress
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.lifecycle import collect_rarely
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import Change
from peat_p2p.mesh.service import Mesh
from peat_p2p.mesh.types import MeshConfig
from peat_p2p.trust.credentials import NodeCredentials


def heartbeat(agent: str, site: str) -> dict[str, Any]:
    """A heartbeat as agents send it, about 700 bytes of JSON."""
    return {
        "agent_id": agent,
        "platform_type": "uds-remote-agent",
        "name": f"Edge node {agent}",
        "site": site,
        "version": "0.14.2",
        "architecture": "amd64",
        "classification": "UNCLASSIFIED",
        "k8s_version": "v1.31.4+k3s1",
        "k8s_node_status": "Ready",
        "zarf_version": "v0.45.0",
        "run_mode": "systemd",
        "heartbeat_interval_s": 30,
        "labels": {"region": "pacific", "echelon": "company", "hull": agent[-3:]},
        "swarm": {"swarm": ["10.20.30.40:46123"], "metadata": ["10.20.30.40:46124"]},
        "workloads": [
            {"name": f"app-{n}", "image": f"registry.local/app-{n}:1.{n}.0", "ready": True} for n in range(3)
        ],
        "last_seen": int(time.time()),
    }


class MeshNode:
    """Replica and mesh, seen as the bench needs them."""

    def __init__(self, replica: Replica, mesh: Mesh) -> None:
        self.replica = replica
        self.mesh = mesh

    async def put(self, collection: str, doc_id: str, fields: dict[str, Any]) -> None:
        texts = {name: json.dumps(value) for name, value in fields.items()}
        await self.replica.put_fields(collection, doc_id, texts)

    async def delete(self, collection: str, doc_id: str) -> None:
        await self.replica.delete(collection, doc_id)

    def all(self, collection: str) -> dict[str, Any]:
        return {document.doc_id: json.loads(document.json) for document in self.replica.read(collection)}

    def collections(self) -> list[str]:
        return self.replica.collections()

    def figures(self) -> dict[str, Any]:
        stats = self.mesh.stats
        links = [
            {"node": peer.node_id, "sent": peer.bytes_sent, "received": peer.bytes_received, "rtt": peer.rtt}
            for peer in self.mesh.peers()
            if peer.connected
        ]
        return {"sent": stats.bytes_sent, "received": stats.bytes_received, "links": links}

    def size(self) -> int:
        return self.replica.counts().parts

    def state(self) -> list[str]:
        """A digest of each class: equal digests, equal documents."""
        trees = self.mesh._trees
        for tree in trees:
            tree.refresh()
        return [f"{tree.digest(0, 0):016x}" for tree in trees]

    def set_budget(self, budget: float | None) -> None:
        self.mesh.set_link_budget(budget)

    async def stop_sync(self) -> None:
        await self.mesh.stop_sync()

    async def start_sync(self) -> None:
        await self.mesh.start_sync()


class Driver:
    """Answers the bench's commands."""

    def __init__(self, node: Any, group: asyncio.TaskGroup, info: dict[str, Any]) -> None:
        self.node = node
        self.group = group
        self.info = info
        self.arrivals: dict[str, float] = {}
        self.stopped = asyncio.Event()
        self.late = 0.0

    async def serve(self, path: str) -> None:
        server = await asyncio.start_unix_server(self._client, path, limit=64 * 1024 * 1024)
        async with server:
            await self.stopped.wait()

    async def watch(self) -> None:
        """Note when each document of every collection but heartbeats first arrived."""
        if isinstance(self.node, NaiveNode):
            self.node.on_new = self._arrived
            return
        with self.node.replica.subscribe(["commands", "deployments", "packages"]) as events:
            async for event in events:
                if isinstance(event, Change):
                    gone = "-" if event.document is None else ""
                    self._arrived(event.collection, gone + event.doc_id)

    def _arrived(self, collection: str, doc_id: str) -> None:
        if collection != "platforms":
            self.arrivals.setdefault(f"{collection}/{doc_id}", time.time())

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked = json.loads(line)
            try:
                answer = await getattr(self, "do_" + asked.pop("do"))(**asked)
            except Exception as error:
                answer = {"error": repr(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    async def do_info(self) -> dict[str, Any]:
        return self.info

    async def do_stop(self) -> dict[str, Any]:
        self.stopped.set()
        return {}

    async def do_stats(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "rss": psutil.Process().memory_info().rss,
            "peak_rss": usage.ru_maxrss * 1024,
            "cpu": usage.ru_utime + usage.ru_stime,
            "time": time.time(),
            **self.node.figures(),
        }

    async def do_counts(self) -> dict[str, int]:
        return {name: len(self.node.all(name)) for name in self.node.collections()}

    async def do_digest(self, collections: list[str]) -> dict[str, str]:
        """One hash of each collection's content."""
        return {
            name: hashlib.sha256(json.dumps(self.node.all(name), sort_keys=True).encode()).hexdigest()
            for name in collections
        }

    async def do_size(self) -> int:
        return int(self.node.size())

    async def do_state(self) -> list[str]:
        return list(self.node.state())

    async def do_budget(self, budget: float | None) -> dict[str, Any]:
        self.node.set_budget(budget)
        return {}

    async def do_keys(self, collection: str) -> list[str]:
        return sorted(self.node.all(collection))

    async def do_arrivals(self) -> dict[str, float]:
        return self.arrivals

    async def do_freshness(self) -> list[float]:
        now = time.time()
        return sorted(now - document.get("last_seen", 0) for document in self.node.all("platforms").values())

    async def do_late(self) -> float:
        return self.late

    async def do_sync(self, on: bool) -> dict[str, Any]:
        await (self.node.start_sync() if on else self.node.stop_sync())
        return {}

    async def do_fill(self, agents: list[str], site: str, deployments: int, packages: int) -> dict[str, Any]:
        """Write the documents of agents: a heartbeat, deployments and holdings for each."""
        began = time.time()
        for start in range(0, len(agents), 200):
            async with asyncio.TaskGroup() as group:
                for agent in agents[start : start + 200]:
                    group.create_task(self.node.put("platforms", agent, heartbeat(agent, site)))
                    for number in range(deployments):
                        group.create_task(
                            self.node.put("deployments", f"{agent}:p{number}", _deployment(agent, number))
                        )
                    for number in range(packages):
                        name = f"{agent}:p{number}:1.0.{number}-amd64"
                        group.create_task(self.node.put("packages", name, _holding(agent, number)))
        return {"seconds": time.time() - began}

    async def do_heartbeats(self, agents: list[str], interval: float, seconds: float) -> dict[str, Any]:
        """Begin to move `last_seen` of the agents, spread over the interval."""
        self.group.create_task(self._beat(agents, interval, seconds))
        return {}

    async def _beat(self, agents: list[str], interval: float, seconds: float) -> None:
        began = time.monotonic()
        number = 0
        async with asyncio.TaskGroup() as group:
            while (due := number * interval / len(agents)) < seconds:
                ahead = began + due - time.monotonic()
                if ahead > 0:
                    await asyncio.sleep(ahead)
                else:
                    self.late = max(self.late, -ahead)
                fields = {"last_seen": int(time.time())}
                group.create_task(self.node.put("platforms", agents[number % len(agents)], fields))
                number += 1

    async def do_writes(
        self, prefix: str, rate: float, seconds: float, collections: list[str], deletes: float
    ) -> dict[str, Any]:
        """Begin to write documents at a rate; a share of them deletes earlier ones."""
        self.group.create_task(self._write(prefix, rate, seconds, collections, deletes))
        return {}

    async def _write(self, prefix: str, rate: float, seconds: float, collections: list[str], deletes: float) -> None:
        began = time.monotonic()
        every = int(1 / deletes) if deletes else 0
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                ahead = began + number / rate - time.monotonic()
                if ahead > 0:
                    await asyncio.sleep(ahead)
                collection = collections[number % len(collections)]
                if every and number % every == every - 1 and number >= 20:
                    group.create_task(self.node.delete(collection, f"{prefix}-{number - len(collections) * 4}"))
                else:
                    doc = {"n": number, "by": prefix, "at": time.time(), "text": "x" * 60}
                    group.create_task(self.node.put(collection, f"{prefix}-{number}", doc))

    async def do_put(self, collection: str, doc_id: str, fields: dict[str, Any]) -> float:
        await self.node.put(collection, doc_id, fields)
        return time.time()


def _deployment(agent: str, number: int) -> dict[str, Any]:
    return {
        "agent_id": agent,
        "package": f"p{number}",
        "version": f"1.0.{number}",
        "status": 3,
        "flavor": "upstream",
        "digest": "blake3:" + hashlib.sha256(f"{number}".encode()).hexdigest(),
        "last_seen": int(time.time()),
    }


def _holding(agent: str, number: int) -> dict[str, Any]:
    return {
        "agent_id": agent,
        "registry": "swarm",
        "package": f"p{number}",
        "reference": f"p{number}:1.0.{number}",
        "arch": "amd64",
        "version": f"1.0.{number}",
        "total_bytes": 52_428_800 + number,
        "held_bytes": 52_428_800 + number,
        "pull_status": 3,
        "manifest": "blake3:" + hashlib.sha256(f"{number}".encode()).hexdigest(),
        "last_seen": int(time.time()),
    }


async def main(config: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S")
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        if config.get("engine") == "naive":
            node: Any = await stack.enter_async_context(NaiveNode.open(config["listen"], config["peers"]))
            info = {"address": f"{node.address[0]}:{node.address[1]}", "endpoint_id": config["name"]}
        else:
            credentials = NodeCredentials.load(Path(config["node_dir"]))
            replica = await stack.enter_async_context(
                Replica.open(Path(config["database"]) if config["database"] else None, credentials, SystemClock())
            )
            settings = MeshConfig(
                HostPort.parse(config["listen"]),
                tuple(PeerAddress.parse(peer) for peer in config["peers"]),
                mdns=False,
                site=config["site"],
                link_budget=config.get("budget"),
                topology=config.get("topology", False),
            )
            mesh = await stack.enter_async_context(Mesh.open(replica, credentials, settings, SystemClock()))
            node = MeshNode(replica, mesh)
            info = {"address": str(mesh.address), "endpoint_id": credentials.identity.endpoint_id}
        collect_rarely()  # as a sidecar does
        info["ready_seconds"] = time.monotonic() - began
        async with asyncio.TaskGroup() as group:
            driver = Driver(node, group, info)
            watching = group.create_task(driver.watch()) if config["watch"] else None
            await driver.serve(config["control"])
            if watching is not None:
                watching.cancel()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
