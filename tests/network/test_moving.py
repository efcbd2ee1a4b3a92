"""A node whose machine gets its address late, and another one in the middle of a transfer."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from bench.net import Network, parse
from peat_p2p.trust.identity import Role

pytestmark = pytest.mark.network
MEBI = 1 << 20
SIZE = 24 * MEBI
ALL = (Role.HUB, Role.PUBLISHER, Role.AGENT)
ANYWHERE = tuple(word for face in ("swarm", "metadata", "mesh") for word in (f"--{face}-listen", "0.0.0.0:0"))


@pytest.mark.timeout(240)
def test_an_address_that_comes_late_or_changes_is_used_at_once(fleet: Any, file: Any) -> None:
    with Network(parse({"sites": {"deck": ["depot", "edge"]}})) as net:

        def move(old: str, new: str) -> None:
            for words in (f"flush dev eth0 to {old}/32", f"add {new}/24 dev eth0"):
                net.run("edge", ["ip", "addr", *words.split()])

        def start(name: str, *words: str) -> Any:
            return fleet.start("up", name, *ANYWHERE, *words, roles=ALL, argv=partial(net.command, name))

        net.run("edge", ["ip", "addr", "flush", "dev", "eth0"])
        with net.inside("depot"):
            depot = start("depot")
            depot.json("publish", file("one", SIZE), "--name", "one", "--version", "1")
        with net.inside("edge"):
            peer = depot.peer.replace("0.0.0.0", net.address("depot"))
            edge = start("edge", "--peer", peer, "--download-limit", str(2 * MEBI))
            move("10.1.0.3", "10.1.0.77")
            fleet.until(lambda: edge.json("packages"), 20, "the mesh uses the address that came late")
            edge.json("publish", file("two", SIZE), "--name", "two", "--version", "1")
        with net.inside("depot"):
            # It listens where it did not when it began.
            assert depot.json("pull", "two:1", timeout=60)["state"] == "complete"
        with net.inside("edge"):
            order = edge.send("pull", "--target", "edge", "--package", "one:1")
            fleet.until(lambda: int(edge.transfer("one").get("verifiedBytes", 0)) > SIZE // 4, 30)
            before = int(edge.transfer("one")["verifiedBytes"])
            assert before < SIZE
            move("10.1.0.77", "10.1.0.78")
            fleet.until(lambda: edge.transfer("one").get("verifiedBytes", 0) > before + 4 * MEBI, 20, "it goes on")
            fleet.until(lambda: edge.said(order, "edge")[0] == "completed", 60)
            done = edge.transfer("one")
            assert done["verifiedBytes"] == SIZE
            assert done["receivedBytes"] < 1.2 * SIZE
            move("10.1.0.78", "10.1.0.79")
            order = edge.send("pull", "--target", "nobody", "--package", "one:1")
        with net.inside("depot"):
            # Sooner than a silent link is given up.
            fleet.until(lambda: order in str(depot.json("commands", "list")), 7, "the mesh uses the new address")
        for node in (edge, depot):
            node.stop()
