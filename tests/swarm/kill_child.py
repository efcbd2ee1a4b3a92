"""A process that fetches one package, told by its arguments, until it is killed or done."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from peat_p2p.content.store import ChunkStore
from peat_p2p.core.address import HostPort
from peat_p2p.swarm.engine import SwarmConfig, SwarmEngine
from peat_p2p.swarm.peers import PeerCandidate, StaticPeers
from peat_p2p.trust.credentials import NodeCredentials


async def main(arguments: dict[str, str]) -> None:
    credentials = NodeCredentials.load(Path(arguments["node"]))
    peer = PeerCandidate(
        "ann", arguments["endpoint"], HostPort.parse(arguments["swarm"]), HostPort.parse(arguments["metadata"])
    )
    envelope = json.loads(Path(arguments["envelope"]).read_text())
    with ChunkStore.open(Path(arguments["store"])) as store:
        async with SwarmEngine.open(store, credentials, SwarmConfig()) as engine:
            transfer = engine.fetch(envelope, StaticPeers([peer]))
            async for status in transfer.updates():
                print(json.dumps([status.state, status.verified, status.received, status.wasted]), flush=True)
            await transfer.wait()


asyncio.run(main(json.loads(sys.argv[1])))
