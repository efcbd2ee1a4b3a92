"""The scenario fleet: thousands of sidecars in the in-memory simulation, with the real link core and topology.

Sites of 50 on a LAN, joined by links of 1 Mbit/s and 50 ms. Every byte is counted: frames, TLS and TCP headers, and the
handshakes of new connections as measured on real ones.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import statistics
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.result import Run
from peat_p2p.mesh.simulation import Node, Simulation, Wire
from peat_p2p.mesh.topology import Member, Topology

SITE = 50
LAN = Wire(delay=0.0002, rate=125e6)
WAN = Wire(delay=0.05, rate=125e3, jitter=0.005)
COMMAND_JSON = 600
"""What one signed command weighs as whole JSON; the naive flood sends that. The mesh sends it packed (see `whole`)."""
WHOLE = 420


@dataclass(slots=True)
class Fleet:
    """A simulated fleet whose links follow the topology."""

    simulation: Simulation
    members: list[Member]
    topology: Topology
    chance: random.Random

    @classmethod
    def build(cls, count: int, seed: int) -> Fleet:
        members = [
            Member(hashlib.sha256(f"{seed}/{number}".encode()).hexdigest(), f"site-{number // SITE}")
            for number in range(count)
        ]
        simulation = Simulation(seed, whole=WHOLE)
        for member in members:
            simulation.add(member.endpoint_id, member.site)
        return cls(simulation, members, Topology(members), random.Random(seed))

    def connect(self, unreachable: Collection[str] = (), spread: float = 1.0) -> None:
        """Every node dials whom its plan names, each at its own moment within `spread` seconds."""
        for member in self.members:
            if member.endpoint_id in unreachable:
                continue
            self.simulation.at(self.simulation.now + self.chance.uniform(0, spread), partial(self.dial, member))

    def dial(self, member: Member, unreachable: Collection[str] = ()) -> None:
        node = self.simulation.nodes[member.endpoint_id]
        sites = {peer: end.peer.site for peer, end in node.ends.items()}
        plan = self.topology.plan(member, alive=lambda _: True, unreachable=unreachable, linked_sites=sites)
        for peer in plan.wanted:
            if peer not in node.ends:
                other = self.simulation.nodes[peer]
                wire = LAN if other.site == node.site else WAN
                # TCP and TLS take two round trips before the first frame
                at = self.simulation.now + 4 * wire.delay
                self.simulation.at(at, partial(self._open, node, other, wire))

    def _open(self, a: Node, b: Node, wire: Wire) -> None:
        if b.name not in a.ends:
            self.simulation.link(a.name, b.name, wire)

    def everybody_has(self, klass: int, key: str) -> bool:
        return all(node.store.version(node.store.key(klass, key)) for node in self.simulation.nodes.values())

    def total(self) -> int:
        return sum(self.simulation.bytes.values())

    def crossing(self) -> int:
        site = {member.endpoint_id: member.site for member in self.members}
        return sum(size for (a, b), size in self.simulation.bytes.items() if site[a] != site[b])

    def links(self) -> list[int]:
        return [len(node.ends) for node in self.simulation.nodes.values()]

    def spread(self, klass: int, key: str, within: float) -> tuple[float | None, int, int]:
        """Write at one node; seconds until all have it, bytes on all links and between sites."""
        simulation = self.simulation
        missing = {member.endpoint_id for member in self.members}
        writer = self.chance.choice(self.members).endpoint_id
        part = simulation.nodes[writer].store.key(klass, key)
        total, crossing = self.total(), self.crossing()
        began = simulation.now
        last = began

        def applied(node: Node, now: float) -> None:
            nonlocal last
            if node.name in missing and node.store.version(part) is not None:
                missing.discard(node.name)
                last = now

        simulation.on_applied = applied
        missing.discard(writer)
        simulation.put(writer, klass, key)
        simulation.run(began + within, stop=lambda: not missing)
        simulation.on_applied = None
        simulation.run(simulation.now + 2.0)
        return (None if missing else last - began), self.total() - total, self.crossing() - crossing


def fleet(run: Run) -> None:
    counts = [100, 300] if run.quick else [100, 300, 1000, 2000, 5000]
    run.parameter(counts=counts, nodes_per_site=SITE, wan_bytes_per_second=WAN.rate, wan_delay=WAN.delay, seed=run.seed)
    rows = []
    for count in counts:
        run.say(f"{count} sidecars")
        row = _fleet(count, run.seed)
        rows.append(row)
        run.say(", ".join(f"{name} {value}" for name, value in row.items()))
    run.record("growth", rows)
    largest = rows[-1]
    for name in ("command_seconds", "restart_seconds", "split_heal_seconds", "command_bytes_per_sidecar"):
        run.record(name, largest[name])
    run.at_most("links per sidecar, the most", largest["links_most"], 8)
    run.at_least("sidecars that have everything", 1.0 if all(r["complete"] for r in rows) else 0.0, 1.0)
    run.baseline(
        "whole documents flooded over WebSocket to every peer, on the same links",
        {"growth": [{"sidecars": row["sidecars"], **row["naive"]} for row in rows]},
    )


def _fleet(count: int, seed: int) -> dict[str, Any]:
    it = Fleet.build(count, seed)
    simulation = it.simulation
    it.connect()
    simulation.run(20.0)
    links = it.links()
    quiet = it.total()
    simulation.run(30.0)
    quiet = it.total() - quiet
    command, bytes_all, bytes_crossing = it.spread(0, "command", 60.0)
    naive = _naive(it)
    restart = _restart(it)
    split = _split(it)
    sites = len({member.site for member in it.members})
    crossing_links = sum(end.peer.site != node.site for node in simulation.nodes.values() for end in node.ends.values())
    return {
        "sidecars": count,
        "sites": sites,
        "links_median": statistics.median(links),
        "links_most": max(links),
        "inter_site_links": crossing_links // 2,
        "quiet_bytes_per_link_per_second": round(quiet / 10.0 / max(1, sum(links) / 2), 1),
        "command_seconds": command,
        "command_bytes_per_sidecar": round(bytes_all / count, 1),
        "command_bytes_per_inter_site_link": round(bytes_crossing / max(1, crossing_links // 2), 1),
        **restart,
        **split,
        "naive": naive,
        "complete": command is not None
        and restart["restart_seconds"] is not None
        and split["split_heal_seconds"] is not None,
    }


def _restart(it: Fleet) -> dict[str, Any]:
    """Everybody restarts within five seconds, and an order is given in the midst of it."""
    simulation = it.simulation
    for node in list(simulation.nodes.values()):
        for peer in list(node.ends):
            simulation.cut(node.name, peer)
    began, before = simulation.now, it.total()
    it.connect(spread=5.0)
    seconds, _, _ = it.spread(0, "order in the restart", 120.0)
    simulation.run(max(simulation.now, began + 15.0))
    return {
        "restart_seconds": None if seconds is None else round(seconds, 3),
        "restart_bytes_per_sidecar": round((it.total() - before) / len(it.members), 1),
    }


def _split(it: Fleet) -> dict[str, Any]:
    """Half of the sites are cut off from the other half, both write, then the cut is mended."""
    simulation = it.simulation
    sites = sorted({member.site for member in it.members})
    half = set(sites[: len(sites) // 2])
    side = {member.endpoint_id: member.site in half for member in it.members}
    sides = [[m for m in it.members if side[m.endpoint_id] is wanted] for wanted in (True, False)]
    for node in list(simulation.nodes.values()):
        for peer in list(node.ends):
            if side[peer] is not side[node.name]:
                simulation.cut(node.name, peer)
    for members in sides:
        others = {m.endpoint_id for m in it.members} - {m.endpoint_id for m in members}
        for member in members:
            simulation.at(simulation.now + it.chance.uniform(13.0, 16.0), partial(it.dial, member, others))
    simulation.run(simulation.now + 20.0)
    for members in sides:
        for number in range(20):
            writer = it.chance.choice(members)
            simulation.put(writer.endpoint_id, 0, f"split-{side[writer.endpoint_id]}-{number}")
            simulation.put(writer.endpoint_id, 3, f"beat-{side[writer.endpoint_id]}-{number}")
    simulation.run(simulation.now + 30.0)
    keys = [
        (klass, f"{what}-{s}-{n}")
        for klass, what in ((0, "split"), (3, "beat"))
        for s in (True, False)
        for n in range(20)
    ]
    inside = all(
        node.store.version(node.store.key(klass, key)) is not None
        for klass, key in keys
        for node in simulation.nodes.values()
        if key.split("-")[1] == str(side[node.name])
    )
    began, before = simulation.now, it.total()
    last = began
    missing = {
        name: {node.store.key(k, key) for k, key in keys if key.split("-")[1] != str(side[name])}
        for name, node in simulation.nodes.items()
    }

    def applied(node: Node, now: float) -> None:
        nonlocal last
        lacks = missing.get(node.name)
        if lacks:
            lacks -= {key for key in lacks if node.store.version(key) is not None}
            if not lacks:
                del missing[node.name]
                last = now

    simulation.on_applied = applied
    it.connect(spread=2.0)
    simulation.run(began + 120.0, stop=lambda: not missing)
    simulation.on_applied = None
    simulation.run(simulation.now + 2.0)
    return {
        "split_sides_complete": inside,
        "split_heal_seconds": None if missing else round(last - began, 3),
        "split_heal_bytes_per_sidecar": round((it.total() - before) / len(it.members), 1),
    }


def _naive(it: Fleet) -> dict[str, Any]:
    """One command, flooded whole to every peer: each node sends it on to all but the one it had it from."""
    neighbours = {
        name: [(peer, end.wire) for peer, end in node.ends.items()] for name, node in it.simulation.nodes.items()
    }
    size = COMMAND_JSON + 60
    start = it.members[0].endpoint_id
    queue = [(0.0, start, "")]
    has: dict[str, float] = {}
    sent: defaultdict[bool, int] = defaultdict(int)
    site = {member.endpoint_id: member.site for member in it.members}
    while queue:
        at, name, giver = heapq.heappop(queue)
        if name in has:
            continue
        has[name] = at
        for peer, wire in neighbours[name]:
            if peer != giver:
                sent[site[peer] != site[name]] += size
                heapq.heappush(queue, (at + wire.delay + size / (wire.rate or 1e9), peer, name))
    return {
        "command_seconds": round(max(has.values()), 3),
        "command_bytes_per_sidecar": round(sum(sent.values()) / len(has), 1),
        "command_bytes_between_sites": sent[True],
    }
