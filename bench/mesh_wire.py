"""What documents cost on the wire: the scenarios idle and chain, measured on the packets of an emulated link."""

from __future__ import annotations

import time
from typing import Any

from bench.mesh_fleet import NodeProcess, Processes, processes, wait_until
from bench.net import Network, pair, parse
from bench.result import Run

AGENTS = 5000
INTERVAL = 30.0
RECONNECTS = 5


def wire_bytes(network: Network) -> int:
    """Bytes of IP packets that crossed any link so far, both ways."""
    return sum(direction["sent_bytes"] for link in network.stats()["links"].values() for direction in link.values())


def settled(network: Network, quiet: float = 1.5, within: float = 120.0) -> None:
    """Wait until the links are quiet but for pings."""
    last, since = wire_bytes(network), time.monotonic()
    began = since
    while time.monotonic() - since < quiet:
        if time.monotonic() - began > within:
            raise RuntimeError("the links do not become quiet")
        time.sleep(0.25)
        now = wire_bytes(network)
        if now - last > 700:
            since = time.monotonic()
        last = now


def same(nodes: list[NodeProcess], collections: list[str]) -> bool:
    digests = [node.ask("digest", collections=collections) for node in nodes]
    return all(digest == digests[0] for digest in digests)


def idle(run: Run) -> None:
    agents = [f"agent-{number:04d}" for number in range(500 if run.quick else AGENTS)]
    interval = INTERVAL * len(agents) / AGENTS
    seconds = interval * (1 if run.quick else 2)
    run.parameter(agents=len(agents), interval=interval, seconds=seconds)
    for engine in ("mesh", "naive"):
        with (
            Network(pair("lan", near=("a",), far=("b",), seed=run.seed)) as network,
            processes(network, engine) as fleet,
        ):
            figures = _idle(run, network, fleet, agents, interval, seconds, engine)
        if engine == "naive":
            run.baseline("whole documents flooded over WebSocket", figures)
        else:
            nothing_new = figures.pop("reconnect_bytes")
            middle = run.spread("reconnect_bytes", nothing_new, unit="B")
            for name, value in figures.items():
                run.record(name, value)
            run.at_most("bytes per heartbeat", figures["bytes_per_heartbeat"], 60.0, unit="B")
            run.at_most("reconnect with nothing new, median", middle, 2048.0, unit="B")
            run.at_most("reconnect with nothing new, the most", max(nothing_new), 2048.0, unit="B")
            for k, cost in figures["reconnect_changed"].items():
                run.at_most(f"reconnect with {k} changed", cost, 2048.0 + 120.0 * int(k), unit="B")


def _idle(
    run: Run, network: Network, fleet: Processes, agents: list[str], interval: float, seconds: float, engine: str
) -> dict[str, Any]:
    a = fleet.start("a", site="near", memory=True)
    b = fleet.start("b", a, site="far", memory=True)
    run.say(f"{engine}: writing {len(agents)} agents")
    a.ask("fill", agents=agents, site="near", deployments=0, packages=0)
    if wait_until(lambda: len(b.ask("keys", collection="platforms")) == len(agents), 120) is None:
        raise RuntimeError("the agents did not arrive")
    settled(network)
    quiet_from, at = wire_bytes(network), time.monotonic()
    time.sleep(10)
    quiet = (wire_bytes(network) - quiet_from) / (time.monotonic() - at)
    before = wire_bytes(network)
    a.ask("heartbeats", agents=agents, interval=interval, seconds=seconds)
    time.sleep(seconds + 2)
    spent = wire_bytes(network) - before
    count = len(agents) * seconds / interval
    figures: dict[str, Any] = {
        "bytes_per_heartbeat": spent / count,
        "quiet_bytes_per_second": quiet,
        "latest_write_late_by": a.ask("late"),
        "freshness_worst": b.ask("freshness")[-1],
    }
    figures["reconnect_bytes"] = [_reconnect(network, a, b, [], str(n)) for n in range(RECONNECTS)]
    figures["reconnect_changed"] = {str(k): _reconnect(network, a, b, agents[:k], f"with {k}") for k in (10, 100)}
    return figures


def _reconnect(network: Network, a: NodeProcess, b: NodeProcess, changed: list[str], mark: str) -> int:
    """Bytes from the moment `b` links again, everything counted, while `a` meanwhile changed the agents `changed`."""
    b.ask("sync", on=False)
    time.sleep(1.0)
    before = wire_bytes(network)
    for agent in changed:
        a.ask("put", collection="platforms", doc_id=agent, fields={"k8s_node_status": f"NotReady {mark}"})
    b.ask("sync", on=True)
    if wait_until(lambda: same([a, b], ["platforms"]), 30) is None:
        raise RuntimeError("the changes did not arrive")
    time.sleep(2.0)
    return wire_bytes(network) - before


def chain(run: Run) -> None:
    documents = 200 if run.quick else 1000
    run.parameter(documents=documents)
    table = {
        "sites": {name: [name] for name in "abcd"},
        "links": [{"between": [x, y], "profile": "lan"} for x, y in ("ab", "bc", "cd")],
    }
    for engine in ("mesh", "naive"):
        with Network(parse(table)) as network, processes(network, engine) as fleet:
            nodes = [fleet.start("a", memory=True)]
            for name in "bcd":
                nodes.append(fleet.start(name, nodes[-1], memory=True))
            settled(network)
            before = _by_link(network)
            nodes[0].ask(
                "writes",
                prefix="w",
                rate=200,
                seconds=documents / 200,
                collections=["deployments", "packages"],
                deletes=0,
            )
            time.sleep(documents / 200)
            _arrived(nodes[-1], documents)
            settled(network)
            after = _by_link(network)
        cost = {link: after[link] - before[link] for link in after}
        figures = {"bytes_by_link": cost, "bytes_per_document": {k: v / documents for k, v in cost.items()}}
        if engine == "naive":
            run.baseline("whole documents flooded over WebSocket", figures)
            continue
        for name, value in figures.items():
            run.record(name, value)
        first = min(cost.values())
        run.at_most("most bytes on a link / bytes of the state crossing once", max(cost.values()) / first, 1.3)


def _arrived(node: NodeProcess, documents: int) -> None:
    if wait_until(lambda: len(node.ask("arrivals")) >= documents, 60) is None:
        raise RuntimeError("the documents did not arrive")


def _by_link(network: Network) -> dict[str, int]:
    return {
        name: sum(direction["sent_bytes"] for direction in link.values())
        for name, link in network.stats()["links"].items()
    }
