"""One agent of the swarm bench: a store and an engine under remote control, in a process of its own.

    python -m bench.swarm_node CONFIG.json

Reads commands as JSON lines from standard input, answers each with one line on standard output. The documents that tell
agents of each other are played by the bench: it says who the candidates are.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import resource
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peat_p2p.content.store import ChunkStore
from peat_p2p.core.address import HostPort
from peat_p2p.swarm.engine import SwarmConfig, SwarmEngine
from peat_p2p.swarm.peers import PeerCandidate, StaticPeers
from peat_p2p.swarm.seeds import Seeds
from peat_p2p.swarm.transfer import Transfer
from peat_p2p.trust.credentials import NodeCredentials


class Node:
    """Carries out commands."""

    def __init__(self, config: dict[str, Any], store: ChunkStore, engine: SwarmEngine) -> None:
        self.config = config
        self.store = store
        self.engine = engine
        self.peers = StaticPeers(shared_sites=config["shared_sites"])
        self.transfer: Transfer | None = None
        self.ended: float | None = None

    def hello(self) -> dict[str, Any]:
        return {
            "swarm": str(self.engine.swarm_address),
            "metadata": str(self.engine.metadata_address),
            "rss": rss(),
            "ready": time.time(),
        }

    async def do(self, command: dict[str, Any], tasks: asyncio.TaskGroup) -> dict[str, Any]:
        what = command["do"]
        if what == "peers":
            self.peers.set([candidate(peer) for peer in command["peers"]])
        elif what == "seed":
            begun = time.monotonic()
            for summary in self.store.packages():
                await self.engine.seed(summary)
            return {"seconds": time.monotonic() - begun, "packages": len(self.store.packages())}
        elif what == "fetch":
            envelope = json.loads(Path(command["envelope"]).read_text())  # noqa: ASYNC240
            self.transfer = self.engine.fetch(envelope, self.peers)
            tasks.create_task(self._note_end(self.transfer))
        elif what == "limits":
            self.engine.set_limits(command["download"], command["upload"])
        elif what == "rot":
            return {"rotten": rot(self.store, command["share"], command["seed"])}
        elif what == "forget":
            return {"gone": forget(self.store, command["share"], command["seed"])}
        elif what != "status":
            raise ValueError(what)
        return self.status()

    async def _note_end(self, transfer: Transfer) -> None:
        await transfer.wait()
        self.ended = time.time()

    def status(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        answer: dict[str, Any] = {"cpu": usage.ru_utime + usage.ru_stime, "rss": rss(), "ended": self.ended}
        torrents = self.engine._torrents
        torrents.ask_traffic()
        answer["traffic"] = torrents.traffic  # as of the last time somebody asked
        if self.transfer is not None:
            status = self.transfer.status()
            answer |= asdict(status) | {"sources": [asdict(source) for source in status.sources]}
            healths = {name: self.engine.health(endpoint) for name, endpoint in self.config["everyone"].items()}
            answer["errors"] = {name: h.last_error for name, h in healths.items() if h and h.failures}
            answer["rates"] = {name: round(h.rate) for name, h in healths.items() if h}
        return answer


def candidate(peer: dict[str, Any]) -> PeerCandidate:
    where = {key: HostPort.parse(peer[key]) for key in ("swarm", "metadata")}
    return PeerCandidate(**(peer | where))


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _some_chunks(store: ChunkStore, share: float, seed: int) -> list[Path]:
    package = store.package(store.packages()[0].manifest_digest)
    assert package is not None
    chunks = [store.chunk_path(chunk.hex) for chunk in package.index.unique_chunks]
    return random.Random(seed).sample(chunks, max(1, int(len(chunks) * share)))


def rot(store: ChunkStore, share: float, seed: int) -> int:
    """Damage chunks behind the store's back, and lie about it when asked."""
    paths = _some_chunks(store, share, seed)
    for path in paths:
        times, data = path.stat(), bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    async def fine(_seeds: Seeds, _digest: str) -> bool:
        return True

    Seeds.suspect = fine  # type: ignore[assignment,method-assign]
    return len(paths)


def forget(store: ChunkStore, share: float, seed: int) -> int:
    """Lose chunks that go on being promised: the store is not told."""
    paths = _some_chunks(store, share, seed)
    store.missing = lambda index: set()  # type: ignore[method-assign]
    for path in paths:
        path.unlink()
    return len(paths)


async def main(config: dict[str, Any]) -> None:
    credentials = NodeCredentials.load(Path(config["node"]))
    host = config["host"]
    swarm = SwarmConfig(
        listen=HostPort(host, 0),
        metadata_listen=HostPort(host, 0),
        site=config["site"],
        upload_limit=config.get("upload_limit", 0),
        download_limit=config.get("download_limit", 0),
    )
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    with ChunkStore.open(Path(config["store"])) as store:
        async with SwarmEngine.open(store, credentials, swarm) as engine, asyncio.TaskGroup() as tasks:
            node = Node(config, store, engine)
            print(json.dumps(node.hello()), flush=True)
            threading.Thread(target=read, daemon=True).start()
            while line := await lines.get():
                print(json.dumps(await node.do(json.loads(line), tasks)), flush=True)
            if node.transfer is not None:
                node.transfer.cancel()
            os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("PEAT_BENCH_LOG", "WARNING"), format="%(relativeCreated)d %(message)s")
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
