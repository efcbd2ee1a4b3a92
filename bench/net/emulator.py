"""The process that is a network, whatever moves its packets: it holds the namespaces and ends what ran inside.

Owns every descriptor that keeps a namespace alive. The namespaces have no names: when this process ends, by whatever
way, the kernel takes down devices, routes and addresses with it; nothing is left to clean up but processes, and those
are ended by their namespace here, or by the next start when this process was killed (bench/net/state.py). How a link
does what its shape says is for the backends: `relay` (TUN devices and a loop of our own) and `netem` (the kernel's).
"""

from __future__ import annotations

import abc
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from bench.net import kernel, state
from bench.net.server import Server
from bench.net.shape import Pipe, Wire
from bench.net.topology import GATEWAY, Link, Topology


class Emulator(abc.ABC):
    """Builds the network of a topology and runs it until told to stop."""

    backend: ClassVar[str]

    def __init__(self, topology: Topology, directory: Path) -> None:
        self.topology = topology
        self.directory = directory
        self.namespaces: dict[str, int] = {}
        self.epoch = time.monotonic()
        self.stopping = False
        self.scheduling = "normal"

    # -- what a backend does -------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _join(self, number: int, link: Link, nodes: Mapping[str, str]) -> None:
        """Make the devices `wan<number>` of a link in the nodes of its sites, and what lies between them."""

    @abc.abstractmethod
    def _loop(self, poll: select.epoll, server: Server, owners: tuple[int, ...]) -> None:
        """Move packets until `stopping`."""

    @abc.abstractmethod
    def _links(self) -> dict[str, Any]:
        """Counters of every direction of every link."""

    @abc.abstractmethod
    def _change(self, request: dict[str, Any]) -> dict[str, Any]:
        """Change a link as asked."""

    @abc.abstractmethod
    def _restart(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start the schedules' clock, and the counters, anew."""

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

    def _pipe(self, link: Link, here: str, there: str, wire: Wire | None = None) -> Pipe:
        """One direction of a link, from the site `here`; those on one `wire` share its rate."""
        cuts = tuple((cut.at, cut.at + cut.seconds) for cut in self.topology.cuts if cut.link == link.name)
        shape = link.down if here == link.ends[0] else link.up
        return Pipe(shape, f"{self.topology.seed}:{link.name}:{here}>{there}", wire or Wire(), self.epoch, cuts=cuts)

    def _build_link(self, number: int, link: Link) -> None:
        topology = self.topology
        nodes = {site: topology.router(site) for site in link.ends}
        for site, node in nodes.items():
            if len(topology.sites[site]) == 1:
                self._quiet(node)
        self._join(number, link, nodes)
        for site, node in nodes.items():
            if len(topology.sites[site]) == 1:
                self._ip(node, f"addr replace {topology.address(node)}/32 dev wan{number}")

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
        poll = select.epoll()
        answers = {"stats": self._stats, "change": self._change, "restart": self._restart, "stop": self._stop}
        server = Server(self.directory / "control", answers, poll)
        for owner in owners:
            poll.register(owner, select.EPOLLIN | select.EPOLLHUP)
        self.scheduling = kernel.be_prompt()
        self._write_state()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        self._loop(poll, server, owners)

    def _attend(self, fd: int, server: Server, owners: tuple[int, ...]) -> None:
        """Something happened at a descriptor that is not the backend's."""
        if fd not in owners:
            server.attend(fd)
        elif not os.read(fd, 4096):
            self.stopping = True

    def _stats(self, _request: dict[str, Any]) -> dict[str, Any]:
        usage = os.times()
        return {
            "backend": self.backend,
            "clock": time.monotonic() - self.epoch,
            "links": self._links(),
            "cpu": usage.user + usage.system,
            "sched": self.scheduling,
        }

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
