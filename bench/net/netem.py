"""Links made by the kernel: tc-tbf(8) for rate and queue, tc-netem(8) for delay, loss and outages.

A direction is a chain of devices in a namespace of its own between the two sites, so that neither end sees a queue
that is the network's:

    site's wan0 == entry --> [netem: outage, tbf: rate and queue] wire == exit --> [netem: delay and loss] far == wan0

What tc cannot say by itself is said anew as time passes: edges of outages and cuts, episodes, and the slow wander of
the delay, in steps of 10 ms. Packets keep their order, as netem with a rate lets none overtake. The definition of every
word is shape.py's; `python -m bench net selftest` measures this backend as it does the other. Unlike there the losses
of a run are not the seed's but the kernel's own.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bench.net import kernel
from bench.net.emulator import Emulator
from bench.net.server import Server
from bench.net.shape import Pipe, Shape, ShapeError
from bench.net.topology import Link, Topology

AIR = "net--air"  # between all sites; a name that no host or gateway has
# Without neighbour discovery a frame goes to its sender's own address: all ends have the same.
_MAC = "02:00:00:00:00:01"
_ETHERNET = 14
_STEP_S = 0.01
_DELAY_STEP_S = 200e-6
_BURST_S = 0.001  # what a wire may send at once after it was idle: finer than the self-test's 2 ms
_UNLIMITED = 100e9
_PACKETS = 1_000_000  # the queue is tbf's; netem's own only holds what is under way
_NETEM = f"netem limit {_PACKETS}"


def why_not(topology: Topology) -> str | None:
    """The reason why this backend cannot be this network, or None."""
    for link in topology.links:
        if link.shared or len(link.ends) > 2:
            return f"{link.name} is a shared channel"
        if link.down.reorder or link.up.reorder:
            return f"{link.name} lets packets overtake"
    fd = kernel.new_namespace()
    try:
        with kernel.inside(fd):
            return _kernel_lacks()
    finally:
        os.close(fd)


def _kernel_lacks() -> str | None:
    for words in (
        "ip link add v0 type veth peer name v1",
        "tc qdisc add dev v0 root handle 1: netem limit 10 rate 1gbit",
        "tc qdisc add dev v0 parent 1:1 handle 10: tbf rate 1mbit burst 2000 limit 9000",
        "tc qdisc add dev v0 clsact",
        "tc filter add dev v0 ingress matchall action mirred egress redirect dev v1",
    ):
        done = subprocess.run(words.split(), capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{words}: {done.stderr.strip().splitlines()[0]}"
    return None


@dataclass(slots=True)
class _Lane:
    """One direction of a link. `pipe` is what it should be at any time; `counted` what the devices had at `restart`."""

    name: str
    pipe: Pipe
    entry: str
    wire: str
    out: str
    far: str
    down: bool = False
    said: str = ""
    wander: float = 0.0
    counted: dict[str, int] = field(default_factory=dict)
    lost_down: int = 0
    lost_before: int = 0


class _Tc:
    """A tc(8) that waits for lines: to start one for each change would take longer than a step."""

    def __init__(self) -> None:
        words = ["tc", "-statistics", "-json", "-force", "-batch", "-"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def say(self, lines: str) -> None:
        """Have it do something soon."""
        assert self._process.stdin is not None
        self._process.stdin.write(lines.encode())
        self._process.stdin.flush()

    def lost(self, device: str) -> int:
        """What a device's netem has lost, after all that was said before."""
        self.say(f"qdisc show dev {device}\n")
        assert self._process.stdout is not None
        return sum(one["drops"] for one in json.loads(self._process.stdout.readline()) if one["kind"] == "netem")

    def close(self) -> None:
        """End it."""
        self._process.communicate()


class Netem(Emulator):
    """The network whose links are the kernel's."""

    backend: ClassVar[str] = "netem"

    def __init__(self, topology: Topology, directory: Path) -> None:
        super().__init__(topology, directory)
        self._lanes: dict[str, list[_Lane]] = {}
        self.namespaces[AIR] = kernel.new_namespace()
        self._quiet(AIR)
        with kernel.inside(self.namespaces[AIR]):
            self._tc = _Tc()

    # -- building ------------------------------------------------------------------------------------------------

    def _join(self, number: int, link: Link, nodes: Mapping[str, str]) -> None:
        for place, node in enumerate(nodes.values()):
            inner, outer = f"e{number}-{place}", f"wan{number}"
            self._ip(
                AIR,
                f"link add {inner} address {_MAC} type veth peer name {outer} address {_MAC} netns {self._path(node)}",
                f"link set {inner} up",
            )
            # A segment of 64 KiB would be lost, or not, as a whole.
            self._ip(
                node,
                f"link set {outer} arp off mtu {self.topology.mtu} gso_max_segs 1 txqueuelen 5000",
                f"link set {outer} up",
            )
        lanes = self._lanes[link.name] = []
        for place, here in enumerate(link.ends):
            there = link.ends[1 - place]
            pipe = self._pipe(link, here, there)
            wire, out = f"w{number}-{place}", f"x{number}-{place}"
            lane = _Lane(f"{here}>{there}", pipe, f"e{number}-{place}", wire, out, f"e{number}-{1 - place}")
            self._ip(
                AIR,
                f"link add {wire} address {_MAC} type veth peer name {out} address {_MAC}",
                f"link set {wire} up",
                f"link set {out} up",
            )
            self._say(
                f"qdisc add dev {wire} root handle 1: stab overhead -{_ETHERNET} {_first(lane)}",
                f"qdisc add dev {wire} parent 1:1 handle 10: {_tbf(pipe.shape, self.topology.mtu)}",
                f"qdisc add dev {lane.far} root handle 1: stab overhead -{_ETHERNET} {_second(lane)}",
                f"qdisc add dev {lane.entry} clsact",
                f"filter add dev {lane.entry} ingress matchall action mirred egress redirect dev {wire}",
                f"qdisc add dev {out} clsact",
                f"filter add dev {out} ingress matchall action mirred egress redirect dev {lane.far}",
            )
            lanes.append(lane)

    def _say(self, *lines: str) -> None:
        """Have tc do something and wait for it. Raises RuntimeError."""
        with kernel.inside(self.namespaces[AIR]):
            text = "\n".join(lines) + "\n"
            done = subprocess.run(["tc", "-batch", "-"], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"tc: {done.stderr.strip()} (in: {'; '.join(lines)})")

    # -- running -------------------------------------------------------------------------------------------------

    def _loop(self, poll: select.epoll, server: Server, owners: tuple[int, ...]) -> None:
        try:
            while not self.stopping:
                timed = [lane for lanes in self._lanes.values() for lane in lanes if _changes(lane.pipe)]
                self._update(timed)
                for fd, _event in poll.poll(_STEP_S if timed else -1.0):
                    self._attend(fd, server, owners)
        finally:
            self._tc.close()

    def _update(self, lanes: Iterable[_Lane]) -> None:
        """Say anew what time has changed, and only then see what was lost before."""
        edges = []
        for lane in lanes:
            now = time.monotonic()
            if lane.pipe.is_down(now) != lane.down:
                lane.down = not lane.down
                edges.append(lane)
            lane.wander = round(lane.pipe.wander(now + _STEP_S / 2) / _DELAY_STEP_S) * _DELAY_STEP_S
            said = _stages(lane)
            if said != lane.said:
                lane.said = said
                self._tc.say(said)
        self._note_edges(edges)

    def _note_edges(self, lanes: Iterable[_Lane]) -> None:
        """What is lost while a link is down counts as the outage's."""
        for lane in lanes:
            lost = self._tc.lost(lane.far)
            if lane.down:
                lane.lost_before = lost
            else:
                lane.lost_down += lost - lane.lost_before

    # -- control -------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, dict[str, int]]:
        """By device: packets and IP bytes in and out, what its netem lost and what its tbf had no room for."""
        with kernel.inside(self.namespaces[AIR]):
            links = json.loads(subprocess.run(["ip", "-s", "-j", "link"], capture_output=True, check=True).stdout)
            queues = json.loads(
                subprocess.run(["tc", "-s", "-j", "qdisc", "show"], capture_output=True, check=True).stdout
            )
        found: dict[str, dict[str, int]] = {}
        for one in links:
            figures = found[one["ifname"]] = {"lost": 0, "full": 0}
            for way in ("rx", "tx"):
                packets, size = (one["stats64"][way][what] for what in ("packets", "bytes"))
                figures |= {f"{way}_packets": packets, f"{way}_bytes": size - _ETHERNET * packets}
        for queue in queues:
            if queue["kind"] == "netem":
                found[queue["dev"]]["lost"] = queue["drops"]
            elif queue["kind"] == "tbf":
                found[queue["dev"]]["full"] = queue["drops"]
        return found

    @staticmethod
    def _totals(lane: _Lane, devices: Mapping[str, dict[str, int]]) -> dict[str, int]:
        entry, wire, out, far = (devices[name] for name in (lane.entry, lane.wire, lane.out, lane.far))
        lost_down = lane.lost_down + (far["lost"] - lane.lost_before if lane.down else 0)
        sent = out["rx_packets"] - lost_down
        return {
            "offered_packets": entry["rx_packets"],
            "offered_bytes": entry["rx_bytes"],
            "sent_packets": sent,
            # Of what left the queue into an outage only the number is known.
            "sent_bytes": out["rx_bytes"] * sent // max(1, out["rx_packets"]),
            "delivered_packets": far["tx_packets"],
            "delivered_bytes": far["tx_bytes"],
            "dropped_queue": wire["full"],
            "dropped_loss": far["lost"] - lost_down,
            # netem counts the drops of the queue below it, too.
            "dropped_outage": wire["lost"] - wire["full"] + lost_down,
        }

    def _links(self) -> dict[str, Any]:
        now, devices = time.monotonic(), self._read()
        return {
            name: {
                lane.name: {key: value - lane.counted.get(key, 0) for key, value in self._totals(lane, devices).items()}
                | {"down": lane.pipe.is_down(now)}
                for lane in lanes
            }
            for name, lanes in self._lanes.items()
        }

    def _change(self, request: dict[str, Any]) -> dict[str, Any]:
        values = dict(request.get("values", {}))
        cut = values.pop("cut", None)
        wanted = request.get("direction")
        lanes = [
            lane
            for place, lane in enumerate(self._lanes[str(request["link"])])
            if wanted in (None, "down" if place == 0 else "up")
        ]
        shapes = [Shape().changed(lane.pipe.shape.as_json()).changed(values) for lane in lanes]
        if any(shape.reorder for shape in shapes):
            raise ShapeError('netem lets no packet overtake here; say backend = "tun" for that')
        edges = []
        for lane, shape in zip(lanes, shapes, strict=True):
            lane.pipe.shape = shape
            if cut is not None:
                lane.pipe.cut = bool(cut)
            if lane.pipe.is_down(time.monotonic()) != lane.down:
                lane.down = not lane.down
                edges.append(lane)
            lane.wander = lane.pipe.wander(time.monotonic())
            lane.said = _stages(lane)
            self._say(
                lane.said + f"qdisc change dev {lane.wire} parent 1:1 handle 10: {_tbf(shape, self.topology.mtu)}"
            )
        self._note_edges(edges)
        return {}

    def _restart(self, request: dict[str, Any]) -> dict[str, Any]:
        lanes = [lane for lanes in self._lanes.values() for lane in lanes]
        self._begin_anew(lanes)
        self._update(lanes)
        devices = self._read()
        for lane in lanes:
            lane.counted = self._totals(lane, devices)
        self._begin_anew(lanes)  # all that took its time
        return {}

    def _begin_anew(self, lanes: Iterable[_Lane]) -> None:
        self.epoch = time.monotonic()
        for lane in lanes:
            lane.pipe.epoch = self.epoch


def _changes(pipe: Pipe) -> bool:
    """Whether a direction changes by itself."""
    shape = pipe.shape
    return bool(shape.outage or pipe.cuts or shape.episodes or shape.jitter)


def _tbf(shape: Shape, mtu: int) -> str:
    rate = shape.rate or _UNLIMITED
    burst = max(mtu, int(rate / 8 * _BURST_S))
    # A packet that would wait longer than `queue` is dropped. The one that leaves is not in here any more.
    limit = max(mtu, int(rate / 8 * shape.queue))
    return f"tbf rate {rate:.0f}bit burst {burst} limit {limit}"


def _first(lane: _Lane) -> str:
    """At the wire's entrance: lets in all, or nothing. With a rate netem also frees the sender of its packets."""
    return f"{_NETEM} loss {100 if lane.down else 0}% rate {_UNLIMITED:.0f}bit"


def _second(lane: _Lane) -> str:
    return f"{_NETEM} {second_stage(lane.pipe, time.monotonic(), lane.wander, down=lane.down)}"


def _stages(lane: _Lane) -> str:
    """The lines that have tc make a direction what it should be now."""
    return (
        f"qdisc change dev {lane.wire} root handle 1: {_first(lane)}\n"
        f"qdisc change dev {lane.far} root handle 1: {_second(lane)}\n"
    )


def second_stage(pipe: Pipe, now: float, wander: float, *, down: bool = False) -> str:
    """What netem is told to do behind the wire at a time, when the delay has wandered by `wander` seconds.

    Its rate is the time that a packet takes to leave; see `transmit` in shape.py.
    """
    shape = pipe.shape
    words = f"delay {max(0.0, shape.delay + wander) * 1e6:.0f}us "
    extra = 1.0 if down else pipe.episode_loss(now)
    good = 1.0 - (1.0 - shape.loss) * (1.0 - extra)
    if shape.burst is not None and not down:
        bad = 1.0 - (1.0 - good) * (1.0 - shape.burst.loss)
        chances = (shape.burst.enter, shape.burst.leave, bad, good)
        words += "loss gemodel " + " ".join(f"{100 * chance:.6g}%" for chance in chances)
    else:
        words += f"loss {100 * good:.6g}%"
    return f"{words} rate {shape.rate or _UNLIMITED:.0f}bit"
