"""The mesh between sites on bad links: the scenarios radio and partition, 12 sidecars in namespaces."""

from __future__ import annotations

import random
import time
from typing import Any

from bench.mesh_fleet import NodeProcess, Processes, processes, wait_until
from bench.net import Network, parse
from bench.result import Run

SITES = ("s0", "s1", "s2", "s3")
PER_SITE = 3
RING = [("s0", "s1"), ("s1", "s2"), ("s2", "s3"), ("s0", "s3")]
AGENTS = 5000
INTERVAL = 30.0
RADIO_BYTES = 56_000 / 8


def _network(shape: dict[str, Any], seed: int) -> Network:
    hosts = {site: [f"{site}n{number}" for number in range(PER_SITE)] for site in SITES}
    links = [{"between": list(ends), "name": "-".join(ends), **shape} for ends in RING]
    return Network(parse({"sites": hosts, "links": links, "seed": seed}))


def _start(fleet: Processes, *, topology: bool) -> list[NodeProcess]:
    """Twelve nodes; each knows the first of its own site and, if it is that, the first of the site before.

    With `topology`, the mesh finds further links by itself; else there are these alone, one over each inter-site link.
    """
    nodes: list[NodeProcess] = []
    firsts: list[NodeProcess] = []
    for site in SITES:
        for number in range(PER_SITE):
            peers = [firsts[-1]] if number else firsts[-1:]
            if number == 0 and site == SITES[-1]:
                peers = [firsts[-1], firsts[0]]
            node = fleet.start(f"{site}n{number}", *peers, site=site, topology=topology, memory=True)
            nodes.append(node)
            if number == 0:
                firsts.append(node)
    return nodes


def _percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _change(network: Network, links: list[tuple[str, str]], **shape: Any) -> None:
    for ends in links:
        network.change("-".join(ends), **shape)


def radio(run: Run) -> None:
    seconds = 60.0 if run.quick else 180.0
    run.parameter(sidecars=12, sites=4, agents=AGENTS, budget=RADIO_BYTES / 2, seconds=seconds)
    for engine in ("mesh", "naive"):
        with _network({"profile": "radio"}, run.seed) as network, processes(network, engine) as fleet:
            figures = _radio(run, network, fleet, seconds if engine == "mesh" else min(60.0, seconds), engine)
        if engine == "naive":
            run.baseline("whole documents flooded over WebSocket", figures)
            continue
        for name, value in figures.items():
            run.record(name, value)
        p99 = figures["command_p99"] if figures["commands_lost"] == 0 else None
        run.at_most("commands, end to end, p99", p99, 5.0, unit="s")
        spread = figures["freshness_p99"] / max(figures["freshness_p50"], 1.0)
        run.at_most("freshness of remote heartbeats, p99 / median", spread, 4.0)


def _radio(run: Run, network: Network, fleet: Processes, seconds: float, engine: str) -> dict[str, Any]:
    _change(network, RING, rate="100M", loss=0.0, delay=0.001, jitter=0.0)
    nodes = _start(fleet, topology=False)
    mine = {node.name: [f"{node.name}-{n:03d}" for n in range(AGENTS // len(nodes))] for node in nodes}
    run.say(f"{engine}: writing {AGENTS} agents on fast links")
    for node in nodes:
        node.ask("fill", agents=mine[node.name], site=node.name[:2], deployments=0, packages=0)
    count = sum(map(len, mine.values()))
    if wait_until(lambda: all(len(n.ask("keys", collection="platforms")) == count for n in nodes), 180, 1.0) is None:
        raise RuntimeError("the agents did not reach everybody")
    for node in nodes:
        node.ask("budget", budget=RADIO_BYTES / 2)
    _change(network, RING, rate="56k", loss=0.05, delay=0.5, jitter=0.1)
    run.say("heartbeats and commands on radio links")
    before = network.stats()["links"]
    for node in nodes:
        node.ask("heartbeats", agents=mine[node.name], interval=INTERVAL, seconds=seconds)
    chance = random.Random(run.seed)
    put: dict[str, float] = {}
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < seconds - 10:
        time.sleep(2.0)
        if time.monotonic() - began < 20:
            continue
        name = f"c{number}"
        number += 1
        order = {"target_id": "*", "command_type": "pull", "payload_json": '{"package": "p"}', "at": number}
        put[name] = chance.choice(nodes).ask("put", collection="commands", doc_id=name, fields=order)
    time.sleep(10)
    late: list[float] = []
    lost = 0
    for node in nodes:
        arrivals = node.ask("arrivals")
        for name, at in put.items():
            arrived = arrivals.get(f"commands/{name}")
            if arrived is None:
                lost += 1
            else:
                late.append(max(0.0, arrived - at))
    fresh = [age for node in nodes for age in node.ask("freshness")]
    used = {
        f"{name} {way}": round((figures["sent_bytes"] - before[name][way]["sent_bytes"]) / seconds)
        for name, link in network.stats()["links"].items()
        for way, figures in link.items()
    }
    return {
        "commands": len(put),
        "commands_lost": lost,
        "command_p50": _percentile(late, 0.5),
        "command_p99": _percentile(late, 0.99),
        "command_worst": max(late, default=None),
        "freshness_p50": _percentile(fresh, 0.5),
        "freshness_p90": _percentile(fresh, 0.9),
        "freshness_p99": _percentile(fresh, 0.99),
        "freshness_worst": max(fresh),
        "bytes_per_second_on_links": used,
        "heartbeats_late_by": max(node.ask("late") for node in nodes),
    }


def partition(run: Run) -> None:
    seconds = 30.0 if run.quick else 90.0
    rate = 50.0
    shape = {"rate": "1M", "delay": 0.3, "loss": 0.0, "queue": 0.2}
    run.parameter(sidecars=12, sites=4, cut_seconds=seconds, writes_per_second_each_side=rate, link=shape, scale="1:30")
    for engine in ("mesh", "naive"):
        with _network(shape, run.seed) as network, processes(network, engine) as fleet:
            figures = _partition(run, network, fleet, seconds, rate, engine)
        if engine == "naive":
            run.baseline("whole documents flooded over WebSocket", figures)
            continue
        for name, value in figures.items():
            run.record(name, value)
        run.at_most("commands after the heal", figures["seconds_to_commands"], 5.0, unit="s")
        run.at_most("deployments after the heal", figures["seconds_to_deployments"], 60.0, unit="s")
        run.at_most("holdings after the heal", figures["seconds_to_packages"], 60.0, unit="s")
        run.at_most("everything after the heal", figures["seconds_to_everything"], 300.0, unit="s")
        run.at_least("delivered within 90 s of the end", figures["delivered_within_90_s"], 1.0)


def _partition(
    run: Run, network: Network, fleet: Processes, seconds: float, rate: float, engine: str
) -> dict[str, Any]:
    cut = [("s1", "s2"), ("s0", "s3")]
    nodes = _start(fleet, topology=engine == "mesh")
    for number in range(40):
        nodes[0].ask("put", collection="deployments", doc_id=f"before-{number}", fields={"n": number})
    if wait_until(lambda: _equal(nodes), 60, 0.5) is None:
        raise RuntimeError("the fleet did not agree before the cut")
    time.sleep(12 if engine == "mesh" else 1)
    run.say(f"{engine}: cut for {seconds:.0f} s")
    for ends in cut:
        network.cut("-".join(ends))
    collections = ["commands", "deployments", "packages", "deployments", "packages"]
    for node in (nodes[1], nodes[-1]):
        node.ask("writes", prefix=node.name, rate=rate, seconds=seconds - 2, collections=collections, deletes=0.1)
    time.sleep(seconds)
    expected = {node.name: _expected(node.name, rate, seconds - 2, collections) for node in (nodes[1], nodes[-1])}
    healed = time.time()
    for ends in cut:
        network.mend("-".join(ends))
    run.say("mended")
    took = wait_until(lambda: _equal(nodes), 300, 1.0)
    ended = time.time()
    latest: dict[str, float] = {}
    within_90 = missing = total = 0
    for node in nodes:
        arrivals = node.ask("arrivals")
        here = node in nodes[: len(nodes) // 2]
        keys = expected[nodes[-1].name] if here else expected[nodes[1].name]
        for key in keys:
            total += 1
            at = arrivals.get(key)
            if at is None:
                missing += 1
                continue
            within_90 += at - healed <= 90
            collection = key.partition("/")[0]
            latest[collection] = max(latest.get(collection, 0.0), at - healed)
    figures: dict[str, Any] = {
        f"seconds_to_{name}": None if missing else latest.get(name) for name in ("commands", "deployments", "packages")
    }
    figures["seconds_to_everything"] = None if took is None else ended - healed
    figures["delivered_within_90_s"] = within_90 / total
    figures["not_delivered"] = missing
    figures["changes_each_side"] = len(expected[nodes[1].name])
    return figures


def _expected(prefix: str, rate: float, seconds: float, collections: list[str]) -> list[str]:
    """What a node that was away must have noted in the end: what its writer wrote and did not delete again."""
    written: dict[str, None] = {}
    for number in range(int(rate * seconds)):
        collection = collections[number % len(collections)]
        if number % 10 == 9 and number >= 20:
            written.pop(f"{collection}/{prefix}-{number - len(collections) * 4}", None)
        else:
            written[f"{collection}/{prefix}-{number}"] = None
    return list(written)


def _equal(nodes: list[NodeProcess]) -> bool:
    # Counts first: a digest of every document takes the time of the processors that the nodes share.
    for question in ("size", "state"):
        first, *others = (node.ask(question) for node in nodes)
        if any(other != first for other in others):
            return False
    return True
