"""Links as TUN devices and one loop that reads, delays, drops and writes every packet.

Needs nothing but TUN of the kernel and can do all that a shape says, so it is what defines a link; `netem` does the
same inside the kernel, where that has it.
"""

from __future__ import annotations

import gc
import heapq
import os
import select
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from bench.net import kernel
from bench.net.emulator import Emulator
from bench.net.server import Server
from bench.net.shape import Pipe, Shape, Wire
from bench.net.topology import Link, Topology

_BATCH = 32
_READ = 65_536
# Setting the timer is a third of the work on a fast link: packets that are due within so many seconds leave together.
_TOGETHER_S = 100e-6
_MULTICAST_FIRST = 0xE0
_Queue = deque[tuple[float, bytes]]


class Port:
    """One end of a link: its TUN device, and where a packet that comes out of it goes."""

    __slots__ = ("fd", "link", "others", "pipes", "queues", "routes", "site")

    def __init__(self, link: str, site: str, fd: int) -> None:
        self.link = link
        self.site = site
        self.fd = fd
        self.others: list[Port] = []
        self.pipes: list[Pipe] = []
        self.queues: list[Delivery] = []
        self.routes: dict[int, int] = {}  # second byte of the destination (the site's number) -> place in others


class Delivery:
    """Packets under way to one end, in the order of their arrival there."""

    __slots__ = ("errors", "fd", "heap", "line", "pipe", "reorder", "serial")

    def __init__(self, fd: int, pipe: Pipe) -> None:
        self.fd = fd
        self.pipe = pipe
        self.line: _Queue = deque()
        self.heap: list[tuple[float, int, bytes]] = []
        self.serial = 0
        self.errors = 0

    def put(self, when: float, packet: bytes) -> None:
        if self.pipe.shape.reorder or self.heap:
            self.serial += 1
            heapq.heappush(self.heap, (when, self.serial, packet))
        else:
            self.line.append((when, packet))

    def next_at(self) -> float:
        first = self.line[0][0] if self.line else float("inf")
        return min(first, self.heap[0][0]) if self.heap else first

    def deliver(self, now: float) -> None:
        line, heap, counters, fd = self.line, self.heap, self.pipe.counters, self.fd
        while line and line[0][0] <= now:
            self._write(fd, line.popleft()[1], counters)
        while heap and heap[0][0] <= now:
            self._write(fd, heapq.heappop(heap)[2], counters)

    def _write(self, fd: int, packet: bytes, counters: Any) -> None:
        try:
            os.write(fd, packet)
        except OSError:  # the receiving host is going away, or out of memory for packets: a loss like any other
            self.errors += 1
            return
        counters.delivered_packets += 1
        counters.delivered_bytes += len(packet)


class Relay(Emulator):
    """The network whose links are this process."""

    backend: ClassVar[str] = "tun"

    def __init__(self, topology: Topology, directory: Path) -> None:
        super().__init__(topology, directory)
        self.ports: dict[int, Port] = {}
        self.deliveries: list[Delivery] = []
        self._ends: dict[str, list[Port]] = {}

    # -- building ------------------------------------------------------------------------------------------------

    def _join(self, number: int, link: Link, nodes: Mapping[str, str]) -> None:
        topology = self.topology
        ports = []
        for site, node in nodes.items():
            device = f"wan{number}"
            with kernel.inside(self.namespaces[node]):
                fd = kernel.open_tun(device)
            port = Port(link.name, site, fd)
            self.ports[fd] = port
            ports.append(port)
            # The relay reads at once whatever comes; the queue that is emulated is its own, not the device's.
            self._ip(node, f"link set {device} mtu {topology.mtu} txqueuelen 5000 up")
        wire = Wire()
        for port in ports:
            own = wire if link.shared else Wire()
            for other in ports:
                if other is port:
                    continue
                pipe = self._pipe(link, port.site, other.site, own)
                delivery = Delivery(other.fd, pipe)
                port.routes[int(topology.subnet(other.site).split(".")[1])] = len(port.others)
                port.others.append(other)
                port.pipes.append(pipe)
                port.queues.append(delivery)
                self.deliveries.append(delivery)
        if len(ports) > 2:
            self._route_channel(link, ports)
        self._ends[link.name] = ports

    def _route_channel(self, link: Link, ports: list[Port]) -> None:
        """Sites behind another end of a shared channel are reached through that end."""
        numbers = {site: int(self.topology.subnet(site).split(".")[1]) for site in self.topology.sites}
        for port in ports:
            for site, (name, through) in self.topology.next_hops(port.site).items():
                if name == link.name:
                    place = next(i for i, other in enumerate(port.others) if other.site == through)
                    port.routes[numbers[site]] = place

    # -- running -------------------------------------------------------------------------------------------------

    def _loop(self, poll: select.epoll, server: Server, owners: tuple[int, ...]) -> None:
        timer = kernel.Timer()
        for fd in self.ports:
            poll.register(fd, select.EPOLLIN)
        poll.register(timer.fd, select.EPOLLIN)
        gc.collect()
        gc.disable()  # a collection would show up as delay; the loop makes no cycles
        ports, deliveries = self.ports, self.deliveries
        monotonic, forward = time.monotonic, self._forward
        armed = 0.0
        while not self.stopping:
            now = monotonic()
            soonest = float("inf")
            for delivery in deliveries:
                if delivery.line or delivery.heap:
                    at = delivery.next_at()
                    if at <= now:
                        delivery.deliver(now)
                        at = delivery.next_at()
                    if at < soonest:
                        soonest = at
            timeout = -1.0
            if soonest != float("inf"):
                if soonest <= monotonic():
                    timeout = 0.0
                elif not armed or soonest < armed - _TOGETHER_S:
                    armed = soonest + _TOGETHER_S
                    timer.at(armed)
            for fd, _event in poll.poll(timeout):
                port = ports.get(fd)
                if port is not None:
                    forward(port)
                elif fd == timer.fd:
                    armed = 0.0
                    try:
                        os.read(fd, 8)
                    except BlockingIOError:
                        pass
                else:
                    self._attend(fd, server, owners)

    def _forward(self, port: Port) -> None:
        read, fd = os.read, port.fd
        now = time.monotonic()
        if len(port.pipes) == 1:
            transmit, receive, put = port.pipes[0].transmit, port.pipes[0].receive, port.queues[0].put
            try:
                for _ in range(_BATCH):
                    packet = read(fd, _READ)
                    leaves = transmit(now, len(packet))
                    if leaves is not None:
                        arrives = receive(leaves)
                        if arrives is not None:
                            put(arrives, packet)
            except BlockingIOError:
                pass
            return
        try:
            for _ in range(_BATCH):
                packet = read(fd, _READ)
                if packet[16] >= _MULTICAST_FIRST:
                    self._multicast(port, now, packet)
                    continue
                place = port.routes.get(packet[17])
                if place is not None:
                    when = port.pipes[place].accept(now, len(packet))
                    if when is not None:
                        port.queues[place].put(when, packet)
        except BlockingIOError:
            pass

    def _multicast(self, port: Port, now: float, packet: bytes) -> None:
        leaves = port.pipes[0].transmit(now, len(packet))
        if leaves is None:
            return
        for pipe, queue in zip(port.pipes, port.queues, strict=True):
            when = pipe.receive(leaves)
            if when is not None:
                queue.put(when, packet)

    # -- control -------------------------------------------------------------------------------------------------

    def _pipes(self, request: dict[str, Any]) -> list[tuple[str, Pipe]]:
        """The pipes of one link, or of one direction of it ("down" or "up")."""
        ports = self._ends[str(request["link"])]
        wanted = request.get("direction")
        return [
            (f"{port.site}>{other.site}", pipe)
            for place, port in enumerate(ports)
            for other, pipe in zip(port.others, port.pipes, strict=True)
            if wanted in (None, "down" if place == 0 else "up")
        ]

    def _links(self) -> dict[str, Any]:
        now = time.monotonic()
        return {
            name: {
                f"{port.site}>{other.site}": pipe.counters.as_json() | {"down": pipe.is_down(now)}
                for port in ports
                for other, pipe in zip(port.others, port.pipes, strict=True)
            }
            for name, ports in self._ends.items()
        }

    def _change(self, request: dict[str, Any]) -> dict[str, Any]:
        values = dict(request.get("values", {}))
        cut = values.pop("cut", None)
        for _name, pipe in self._pipes(request):
            pipe.shape = Shape().changed(pipe.shape.as_json()).changed(values)
            if cut is not None:
                pipe.cut = bool(cut)
        return {}

    def _restart(self, _request: dict[str, Any]) -> dict[str, Any]:
        self.epoch = time.monotonic()
        for delivery in self.deliveries:
            delivery.pipe.epoch = self.epoch
            delivery.pipe.counters = type(delivery.pipe.counters)()
        return {}
