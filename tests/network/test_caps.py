"""Caps of whole nodes: on what crosses between sites, and on what the bearer sends."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from bench.net import Network, pair
from peat_p2p.trust.identity import Role

MEBI = 1 << 20
ALL = (Role.HUB, Role.PUBLISHER, Role.AGENT)


def test_a_cap_on_what_comes_from_other_sites_leaves_neighbours_alone(fleet: Any, file: Any) -> None:
    size, cap = 6 * MEBI, MEBI
    depot = fleet.start("up", "depot", "--site", "shore", roles=ALL)
    words = ("--site-download-limit", str(cap), "--peer", depot.peer)
    near = fleet.start("up", "near", "--site", "shore", *words)
    far = fleet.start("up", "far", "--site", "ship", *words)
    depot.json("publish", file("one", size), "--name", "app", "--version", "1")
    took = {}
    for node in (near, far):
        fleet.until(lambda node=node: node.json("packages"))
        took[node.name] = node.json("pull", "app:1")["elapsed_s"]
    # What may come at once before a cap takes hold is a part of a second's worth.
    assert took["far"] > 0.8 * size / cap > took["near"]
    assert "limit" in far.peat("why", "app:1").stdout


@pytest.mark.network
@pytest.mark.timeout(120)
def test_a_cap_on_the_bearer_holds_over_a_long_link(fleet: Any, file: Any) -> None:
    size, cap = 2 * MEBI, 256 << 10
    with Network(pair("lte", near=("depot",), far=("edge",))) as net:

        def start(name: str, *words: str) -> Any:
            faces = [
                word
                for face in ("swarm", "metadata", "mesh")
                for word in (f"--{face}-listen", net.address(name) + ":0")
            ]
            return fleet.start("up", name, "--site", name, *faces, *words, roles=ALL, argv=partial(net.command, name))

        with net.inside("depot"):
            depot = start("depot", "--bearer-limit", str(cap))
            depot.json("publish", file("one", size), "--name", "app", "--version", "1")
        with net.inside("edge"):
            edge = start("edge", "--peer", depot.peer)
            fleet.until(lambda: edge.json("packages"), 30)
            before = net.stats()["links"]["link"]["near>far"]["delivered_bytes"]
            pulled = edge.json("pull", "app:1", timeout=100)
        crossed = net.stats()["links"]["link"]["near>far"]["delivered_bytes"] - before
        assert crossed >= size
        # An uncapped link carries it in a second; headers count, and a start may be ahead by what it holds ready.
        assert pulled["elapsed_s"] > 0.8 * size / cap
        for node in (edge, depot):
            node.stop()
