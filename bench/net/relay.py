"""The process that is the network: it holds the namespaces, moves the packets and ends what ran inside.

Owns every descriptor that keeps a namespace alive. The namespaces have no names: when this process ends, by whatever
way, the kernel takes down devices, routes and addresses with it; nothing is left to clean up but processes, and those
are ended by their namespace here, or by the next start when this process was killed (bench/net/state.py).

Run by bench/net/network.py as `python -m bench.net.relay STATE_DIR [--detached]` with the topology as JSON on stdin.
Unless detached it lives no longer than its standard input, that is: than the process that started it.
"""

from __future__ import annotations

import gc
import heapq
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.net import kernel, state
from bench.net.shape import Pipe, Shape, ShapeError, Wire
from bench.net.topology import GATEWAY, Link, Topology, from_table

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


class Relay:
    """Builds the network of a topology and runs it until told to stop."""

    def __init__(self, topology: Topology, directory: Path) -> None:
        self.topology = topology
        self.directory = directory
        self.namespaces: dict[str, int] = {}
        self.ports: dict[int, Port] = {}
        self.deliveries: list[Delivery] = []
        self.epoch = time.monotonic()
        self.stopping = False
        self.scheduling = "normal"
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._ends: dict[str, list[Port]] = {}

    # -- building ------------------------------------------------------------------------------------------------

    def build(self) -> None:
        topology = self.topology
        for site, members in topology.sites.items():
            nodes = members if len(members) == 1 else [*members, GATEWAY + site]
            for node in nodes:
                self.namespaces[node] = kernel.new_namespace()
        for site, members in topology.sites.items():
            if len(members) > 1:
                self._build_lan(site, members)
        for number, link in enumerate(topology.links):
            self._build_link(number, link)
        for host in topology.hosts:
            self._ip(host.name, "link set lo up")
        for site, members in topology.sites.items():
            if len(members) > 1:
                self._ip(GATEWAY + site, "link set lo up")
        for site in topology.sites:
            self._routes(site)

    def _path(self, node: str) -> str:
        return f"/proc/{os.getpid()}/fd/{self.namespaces[node]}"

    def _ip(self, node: str, *lines: str) -> None:
        with kernel.inside(self.namespaces[node]):
            text = "\n".join(lines) + "\n"
            done = subprocess.run(["ip", "-batch", "-"], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"cannot set up {node}: {done.stderr.strip()} (in: {'; '.join(lines)})")

    def _sysctl(self, node: str, **values: str) -> None:
        with kernel.inside(self.namespaces[node]):
            for name, value in values.items():
                path = Path("/proc/sys/net") / name.replace("__", "/")
                if path.exists():
                    path.write_text(value)

    def _quiet(self, node: str) -> None:
        # Router solicitations and the like would be counted as traffic of the scenario.
        self._sysctl(node, ipv6__conf__all__disable_ipv6="1", ipv6__conf__default__disable_ipv6="1")
        self._sysctl(node, ipv4__conf__all__rp_filter="0", ipv4__conf__default__rp_filter="0")
        self._sysctl(node, ipv4__tcp_no_metrics_save="1")

    def _build_lan(self, site: str, members: list[str]) -> None:
        gateway = GATEWAY + site
        self._quiet(gateway)
        self._sysctl(gateway, ipv4__ip_forward="1")
        own = self.topology.subnet(site).replace(".0/24", ".1/24")
        self._ip(gateway, "link add lan type bridge", f"addr add {own} dev lan", "link set lan up")
        congestion = {host.name: host.congestion for host in self.topology.hosts}
        for place, member in enumerate(members):
            self._quiet(member)
            port = f"p{place}"
            self._ip(
                gateway,
                f"link add {port} type veth peer name eth0 netns {self._path(member)}",
                f"link set {port} master lan",
                f"link set {port} up",
            )
            address = self.topology.address(member)
            self._ip(
                member,
                f"addr add {address}/24 dev eth0 noprefixroute",
                "link set eth0 up",
                f"route add {self.topology.subnet(site)} dev eth0 src {address} congctl {congestion[member]}",
                f"route add default via {own.removesuffix('/24')} dev eth0 src {address} congctl {congestion[member]}",
                "route add 224.0.0.0/4 dev eth0",
            )
            if self.topology.lan is not None:
                self._limit(member, "eth0", self.topology.lan)
                self._limit(gateway, port, self.topology.lan)

    def _limit(self, node: str, device: str, rate: float) -> None:
        """Let a device send no more than `rate` bit/s, with the kernel's token bucket (tc-tbf(8))."""
        # Segments of up to 64 KiB are handed over whole: the bucket must hold some.
        words = f"qdisc add dev {device} root tbf rate {rate:.0f}bit burst 256kb latency 20ms".split()
        with kernel.inside(self.namespaces[node]):
            done = subprocess.run(["tc", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the kernel cannot limit a LAN's rate (tc {' '.join(words)}): {done.stderr.strip()}")

    def _build_link(self, number: int, link: Link) -> None:
        topology = self.topology
        ports = []
        for site in link.ends:
            node = topology.router(site)
            if not topology.sites[site][1:]:
                self._quiet(node)
            device = f"wan{number}"
            with kernel.inside(self.namespaces[node]):
                fd = kernel.open_tun(device)
            port = Port(link.name, site, fd)
            self.ports[fd] = port
            ports.append(port)
            # The relay reads at once whatever comes; the queue that is emulated is its own, not the device's.
            self._ip(node, f"link set {device} mtu {topology.mtu} txqueuelen 5000 up")
            if len(topology.sites[site]) == 1:
                self._ip(node, f"addr replace {topology.address(node)}/32 dev {device}")
        wire = Wire()
        cuts = tuple((cut.at, cut.at + cut.seconds) for cut in topology.cuts if cut.link == link.name)
        for place, port in enumerate(ports):
            own = wire if link.shared else Wire()
            for other in ports:
                if other is port:
                    continue
                shape = link.down if place == 0 else link.up
                seed = f"{topology.seed}:{link.name}:{port.site}>{other.site}"
                pipe = Pipe(shape, seed, own, self.epoch, cuts=cuts)
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

    def _routes(self, site: str) -> None:
        topology = self.topology
        node = topology.router(site)
        alone = len(topology.sites[site]) == 1
        numbers = {link.name: number for number, link in enumerate(topology.links)}
        host = next(host for host in topology.hosts if host.site == site)
        tail = f" src {topology.address(node)} congctl {host.congestion}" if alone else ""
        lines = [
            f"route replace {topology.subnet(there)} dev wan{numbers[link]}{tail}"
            for there, (link, _) in topology.next_hops(site).items()
        ]
        if alone:
            lines += [
                f"route add 224.0.0.0/4 dev wan{numbers[link.name]}" for link in topology.links if site in link.ends
            ][:1]
        if any(site in link.ends for link in topology.links) and len(lines):
            self._ip(node, *lines)
        if alone and sum(site in link.ends for link in topology.links) > 1:
            self._sysctl(node, ipv4__ip_forward="1")

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, owners: tuple[int, ...]) -> None:
        """Move packets until told to stop, or until one of `owners` (descriptors) is closed at its other end."""
        control = socket.socket(socket.AF_UNIX)
        control.setblocking(False)
        control.bind(str(self.directory / "control"))
        control.listen(16)
        timer = kernel.Timer()
        poll = select.epoll()
        for fd in self.ports:
            poll.register(fd, select.EPOLLIN)
        poll.register(timer.fd, select.EPOLLIN)
        poll.register(control.fileno(), select.EPOLLIN)
        for owner in owners:
            poll.register(owner, select.EPOLLIN | select.EPOLLHUP)
        gc.collect()
        gc.disable()  # a collection would show up as delay; the loop makes no cycles
        self.scheduling = kernel.be_prompt()
        self._write_state()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
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
                elif fd in owners:
                    if not os.read(fd, 4096):
                        self.stopping = True
                elif fd == control.fileno():
                    client, _ = control.accept()
                    client.setblocking(False)
                    self._clients[client.fileno()] = (client, bytearray())
                    poll.register(client.fileno(), select.EPOLLIN)
                else:
                    self._serve(fd, poll)

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

    def _serve(self, fd: int, poll: select.epoll) -> None:
        client, buffer = self._clients[fd]
        try:
            data = client.recv(65_536)
        except OSError:
            data = b""
        if not data:
            poll.unregister(fd)
            del self._clients[fd]
            client.close()
            return
        buffer += data
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            try:
                answer = self._answer(json.loads(line))
            except (ShapeError, KeyError, ValueError, TypeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            client.setblocking(True)
            try:
                client.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                pass
            client.setblocking(False)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "stats": self._stats,
            "change": self._change,
            "restart": self._restart,
            "stop": self._stop,
        }
        return handlers[str(request["do"])](request)

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

    def _stats(self, _request: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        links: dict[str, Any] = {}
        for name, ports in self._ends.items():
            links[name] = {
                f"{port.site}>{other.site}": pipe.counters.as_json() | {"down": pipe.is_down(now)}
                for port in ports
                for other, pipe in zip(port.others, port.pipes, strict=True)
            }
        usage = os.times()
        return {"clock": now - self.epoch, "links": links, "cpu": usage.user + usage.system, "sched": self.scheduling}

    def _change(self, request: dict[str, Any]) -> dict[str, Any]:
        values = dict(request.get("values", {}))
        cut = values.pop("cut", None)
        for _name, pipe in self._pipes(request):
            pipe.shape = Shape().changed(pipe.shape.as_json()).changed(values)
            if cut is not None:
                pipe.cut = bool(cut)
        return {}

    def _restart(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Start the schedules' clock, and the counters, anew."""
        self.epoch = time.monotonic()
        for delivery in self.deliveries:
            delivery.pipe.epoch = self.epoch
            delivery.pipe.counters = type(delivery.pipe.counters)()
        return {}

    def _stop(self, _request: dict[str, Any]) -> dict[str, Any]:
        self.stopping = True
        return {}

    def _write_state(self) -> None:
        state.write(
            self.directory,
            state.State(
                name=self.topology.name,
                pid=os.getpid(),
                started=state.start_time(os.getpid()) or 0,
                namespaces={node: (self._path(node), os.fstat(fd).st_ino) for node, fd in self.namespaces.items()},
                addresses={host.name: self.topology.address(host.name) for host in self.topology.hosts},
            ),
        )

    def close(self) -> None:
        """End every process inside and forget the state; the kernel does the rest when this process is gone."""
        state.end_processes({os.fstat(fd).st_ino for fd in self.namespaces.values()})
        state.remove(self.directory)


def main() -> int:
    """Build, say "ready", run, clean up."""
    directory = Path(sys.argv[1])
    detached = "--detached" in sys.argv[2:]
    relay = Relay(from_table(json.loads(sys.stdin.readline())), directory)

    def stop(_number: int, _frame: object) -> None:
        relay.stopping = True

    signal.signal(signal.SIGTERM, stop)
    # Ctrl-C in a terminal reaches the whole group; the owner decides, and closes our input when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    try:
        relay.build()
        relay.run((wake_read,) if detached else (wake_read, sys.stdin.fileno()))
    finally:
        relay.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
