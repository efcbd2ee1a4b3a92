"""One transmission for a site of many: a signed package over IP multicast to receivers that lose packets, each its own.

Everything is real but the radio: formation, publishing, stores, verification; sender and receivers are sockets in hosts
of an emulated shared channel. What the channel carried is counted by the emulator.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from bench.net import Network, parse
from bench.result import Bench, Run, Scenario
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import SystemClock
from peat_p2p.swarm.bearers.multicast import BroadcastStore, listen, receiver_socket, send_package, sender_socket
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

GROUP = HostPort("239.20.30.40", 7600)
RECEIVERS = 8
LOSS = 0.1
RATE = 1e6


async def lossy_channel(run: Run) -> None:
    """8 receivers, 10 % independent loss, 1 Mbit/s: what is sent, over the package."""
    size = (1 if run.quick else 4) << 20
    hosts = [f"r{number}" for number in range(RECEIVERS)]
    topology = parse(
        {
            "name": "broadcast",
            "seed": run.seed,
            "sites": {"base": ["sender"], **{host: [host] for host in hosts}},
            "links": [
                {"name": "air", "between": ["base", *hosts], "rate": RATE, "delay": 0.15, "loss": LOSS, "queue": 0.5}
            ],
        }
    )
    run.parameter(receivers=RECEIVERS, loss=LOSS, rate=RATE, package_bytes=size, seed=run.seed)
    with tempfile.TemporaryDirectory(prefix="bench-broadcast-") as folder, Network(topology) as net:
        root = Path(folder)
        formation = Formation.init(root / "formation", "bench")
        for name in ("sender", *hosts):
            formation.issue(name, [Role.AGENT, Role.PUBLISHER], root / name)
        source = root / "package.bin"
        source.write_bytes(run.random.randbytes(size))
        sender = NodeCredentials.load(root / "sender")
        async with AsyncExitStack() as stack:
            store = stack.enter_context(ChunkStore.open(root / "sender" / "store"))
            builder = torrent_builder(store, sender.ca_pem)
            package = publish(source, "app", "1.0", "any", store, sender, builder, SystemClock())
            targets = []
            for host in hosts:
                with net.inside(host):
                    sock = stack.enter_context(receiver_socket(GROUP, net.address(host)))
                held = stack.enter_context(ChunkStore.open(root / host / "store"))
                target = BroadcastStore(held, NodeCredentials.load(root / host))
                await stack.enter_async_context(listen(sock, target))
                targets.append(target)
            with net.inside("sender"):
                out = stack.enter_context(sender_socket(net.address("sender")))
            net.restart()
            began = time.monotonic()
            await send_package(out, GROUP, store, package, RATE / 8 * 0.99, LOSS)
            await asyncio.sleep(1.0)
            seconds = time.monotonic() - began
            whole = sum(bool(target.packages) for target in targets)
            directions = net.stats()["links"]["air"]
            sent = sum(way["sent_bytes"] for name, way in directions.items() if name.startswith("base>"))
            lost = sum(way["dropped_loss"] for way in directions.values())
            stored = package.index.unique_bytes
    run.record("seconds", seconds, "s")
    run.record("bytes on the air", sent, "B")
    run.record("datagrams lost, all receivers", lost)
    run.record("bytes sent one by one instead, at least", int(stored * RECEIVERS / (1 - LOSS)), "B")
    run.at_least("receivers complete", whole, RECEIVERS)
    run.at_most("bytes on the air / package", sent / size, 1.25)


BENCH = Bench(
    "broadcast",
    "a package by IP multicast to many receivers at once",
    (Scenario("lossy-channel", "8 receivers, each losing 10 % on its own, on one channel of 1 Mbit/s", lossy_channel),),
)
