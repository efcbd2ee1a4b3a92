"""The UDP socket of the bearers, and the associations behind it.

Owns the socket, the timers, who is reached where and who shares a link. An association belongs to whoever knows its
number: when its newest packet comes from another address (a rebound NAT, another path), answers go there from then on.
Peers of one network (IPv4: /24, IPv6: /64) are taken to be behind one link, as the agents of a site are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable
from typing import Self

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import UnavailableError
from peat_p2p.swarm.bearers import frames
from peat_p2p.swarm.bearers.association import IDLE_S, Association
from peat_p2p.swarm.bearers.bundle import Bundle
from peat_p2p.swarm.bearers.streams import Arrived, Stream

log = logging.getLogger(__name__)
MAX_ASSOCIATIONS = 512
_BATCH = 64
_BUFFER = 4 << 20
_SWEEP_S = 30.0
_NETWORK_BITS = {4: 24, 6: 64}

Address = tuple[str, int]


class Link:
    """An association and the address of its other side. `rung`: who is told when something comes from there next."""

    def __init__(self, association: Association, address: Address) -> None:
        self.association = association
        self.address = address
        self.newest = -1
        self.heard = asyncio.Event()
        self.rung: set[Callable[[], None]] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at = 0.0


class Endpoint:
    """A UDP socket in the running loop. `on_arrived` is told what comes in, `on_room` when more may be written.

    `limit` is the most that all associations together send, in bytes per second with headers (acknowledgements by
    themselves, a few percent, come on top); 0 is none. Those that have something to send get equal parts of it.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_arrived: Callable[[Link, Arrived], None],
        on_room: Callable[[Link], None],
        limit: int = 0,
    ) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._on_arrived = on_arrived
        self._on_room = on_room
        self._limit = limit
        self._busy: dict[int, Link] = {}  # those that share the limit
        self._links: dict[int, Link] = {}
        self._by_peer: dict[HostPort, Link] = {}
        self._bundles: dict[str, Bundle] = {}  # by network
        host, port = sock.getsockname()[:2]
        self.address = HostPort(host, port)
        self._loop.add_reader(sock.fileno(), self._readable)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    @classmethod
    def open(
        cls,
        listen: HostPort,
        on_arrived: Callable[[Link, Arrived], None],
        on_room: Callable[[Link], None],
        limit: int = 0,
    ) -> Self:
        """Bind a socket. Raises UnavailableError."""
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            sock.bind((listen.host, listen.port))
        except OSError as error:
            sock.close()
            raise UnavailableError(f"the bearers cannot listen on UDP {listen}: {error.strerror}") from error
        return cls(sock, on_arrived, on_room, limit)

    def close(self) -> None:
        """Stop; the other sides will find out by silence."""
        self._sweeper.cancel()
        self._loop.remove_reader(self._socket.fileno())
        for link in self._links.values():
            if link.timer is not None:
                link.timer.cancel()
        self._links.clear()
        self._by_peer.clear()
        self._socket.close()

    def link_to(self, peer: HostPort) -> Link:
        """The association with a peer, begun now if there is none. `peer.host` must be an IP address."""
        link = self._by_peer.get(peer)
        if link is None or link.association.worn_out:
            number = secrets.randbits(frames.CONNECTION_BITS)
            link = Link(Association(number, True, self._loop.time()), (peer.host, peer.port))
            self._links[number] = link
            self._by_peer[peer] = link
            self._tie(link)
        return link

    def known(self, peer: HostPort) -> Link | None:
        """The association with a peer if there is one."""
        return self._by_peer.get(peer)

    def open_stream(self, link: Link) -> Stream:
        """Begin a stream to the other side."""
        return link.association.open_stream()

    def flush(self, link: Link) -> None:
        """Send what may be sent now, and see to it that the rest follows."""
        now = self._loop.time()
        association, address, send = link.association, link.address, self._socket.sendto
        if self._limit:
            self._share(link)
        try:
            for datagram in association.datagrams(now):
                send(datagram, address)
        except BlockingIOError:
            pass  # lost like any other
        except OSError as error:
            log.debug("cannot send to %s: %s", address, error)
        at = association.next_at(now)
        if at is None:
            if link.timer is not None:
                link.timer.cancel()
                link.timer = None
        elif link.timer is None or at < link.timer_at or link.timer_at <= now:
            if link.timer is not None:
                link.timer.cancel()
            link.timer_at = at
            link.timer = self._loop.call_at(at, self._due, link)

    def _share(self, link: Link) -> None:
        """Give those that have something to send equal parts of the limit; `link` may have begun or ended to be one."""
        number, busy = link.association.connection, link.association.busy
        if busy == (number in self._busy):
            return
        if busy:
            self._busy[number] = link
        else:
            del self._busy[number]
        self._cap()

    def _cap(self) -> None:
        for one in self._busy.values():
            one.association.pacer.cap(self._limit / len(self._busy))

    def _due(self, link: Link) -> None:
        link.timer = None
        self.flush(link)

    def _readable(self) -> None:
        touched: dict[int, Link] = {}
        for _ in range(_BATCH):
            try:
                datagram, address = self._socket.recvfrom(2048)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP answer to something sent before
            link = self._take(datagram, address)
            if link is not None:
                touched[link.association.connection] = link
        for link in touched.values():
            self._on_room(link)
            self.flush(link)

    def _take(self, datagram: bytes, address: Address) -> Link | None:
        try:
            link = self._links.get(frames.connection_of(datagram))
            packet = frames.decode(datagram, link.newest if link is not None else -1)
        except frames.BearerFormatError:
            return None
        if link is None:
            if packet.kind != frames.OPENING or len(self._links) >= MAX_ASSOCIATIONS:
                return None
            link = Link(Association(packet.connection, False, self._loop.time()), address)
            self._links[packet.connection] = link
            self._tie(link)
        try:
            arrived = link.association.receive(packet, len(datagram) + 28, self._loop.time())
        except ValueError as error:
            log.info("dropped a connection with %s: %s", address, error)
            self._drop(link)
            return None
        if packet.number > link.newest:
            link.newest = packet.number
            if link.address != address:
                self._untie(link)
                link.address = address
                self._tie(link)
        for one in arrived:
            self._on_arrived(link, one)
        return link

    def _tie(self, link: Link) -> None:
        """Have an association share a link with those whose peers are in the same network."""
        bundle = link.association.bundle = self._bundles.setdefault(_network(link.address), Bundle())
        bundle.members.append(link.association)

    def _untie(self, link: Link) -> None:
        bundle = link.association.bundle
        bundle.members.remove(link.association)
        if not bundle.members:
            del self._bundles[_network(link.address)]

    def _drop(self, link: Link) -> None:
        self._links.pop(link.association.connection, None)
        self._untie(link)
        if self._busy.pop(link.association.connection, None) is not None:
            self._cap()
        if link.timer is not None:
            link.timer.cancel()
        for peer, known in list(self._by_peer.items()):
            if known is link:
                del self._by_peer[peer]
        for number in list(link.association.streams):
            self._on_arrived(link, Arrived(number, reset=True))

    def _sweep(self) -> None:
        now = self._loop.time()
        for link in list(self._links.values()):
            if now - link.association.last_heard > IDLE_S:
                self._drop(link)  # whoever still wants something begins anew
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)


def _network(address: Address) -> str:
    host = ipaddress.ip_address(address[0].partition("%")[0])
    return str(ipaddress.ip_network((host, _NETWORK_BITS[host.version]), strict=False))
