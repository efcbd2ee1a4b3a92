"""Local ports that lead to other agents.

Owns the joining of local TCP connections with streams: `port_to(peer, service)` is an address on this host to which
libtorrent or an HTTP client connects as if it were the peer; at the peer the stream ends in a connection to its own
service. TLS is between the two ends as ever: nothing here reads what passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from enum import IntEnum

from peat_p2p.core.address import HostPort
from peat_p2p.core.waiting import within
from peat_p2p.swarm.bearers.association import Reading
from peat_p2p.swarm.bearers.endpoint import Endpoint, Link
from peat_p2p.swarm.bearers.streams import Arrived, Stream

log = logging.getLogger(__name__)
_READ = 1 << 16
_LOOPBACK = "127.0.0.1"


class Service(IntEnum):
    """What a stream leads to at the other agent: the first byte of every stream."""

    SWARM = 1
    METADATA = 2


class _Joint:
    """A stream and the local connection it is joined with."""

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.incoming: deque[bytes] = deque()
        self.fin = False
        self.broken = False
        self.wake = asyncio.Event()
        self.room = asyncio.Event()


class Bearers:
    """The bearers of one agent. Use `open_bearers`."""

    def __init__(self, services: Mapping[Service, HostPort], tasks: asyncio.TaskGroup) -> None:
        self._services = dict(services)
        self._tasks = tasks
        self._joints: dict[tuple[int, int], _Joint] = {}
        self._ports: dict[tuple[HostPort, Service], HostPort] = {}
        self._servers: list[asyncio.Server] = []
        self._endpoint: Endpoint

    @property
    def address(self) -> HostPort:
        """The UDP address that other agents reach."""
        return self._endpoint.address

    async def port_to(self, peer: HostPort, service: Service, patience: float = 30.0) -> HostPort:
        """A local address that leads to a service of the agent whose bearers listen at `peer` (an IP address).

        A connection to it breaks after `patience` seconds if `peer` has never been heard by then.
        """
        known = self._ports.get((peer, service))
        if known is not None:
            return known

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._outgoing(peer, service, reader, writer, patience)

        server = await asyncio.start_server(accept, _LOOPBACK, 0, limit=_READ)
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        local = self._ports[peer, service] = HostPort(host, port)
        return local

    def ring(self, peer: HostPort, answered: Callable[[], None] | None = None) -> None:
        """Ask the bearers at `peer` (an IP address) for a sign of life until they give one; then call `answered`."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(peer.host)  # names are resolved by whoever connects
            link = self._endpoint.link_to(peer)
            if answered is not None:
                link.rung.add(answered)
            if not link.association.asking:
                link.association.ping()
                self._endpoint.flush(link)

    def heard(self, peer: HostPort) -> float:
        """When something came from the bearers at `peer`, by the loop's clock; minus infinity if nothing ever did."""
        link = self._endpoint.known(peer)
        return link.association.last_heard if link is not None and link.association.heard else float("-inf")

    def reading(self, peer: HostPort) -> Reading | None:
        """What the link to a peer has shown, or None when nothing has come back yet."""
        link = self._endpoint.known(peer)
        return link.association.reading() if link is not None and link.association.heard else None

    async def _outgoing(
        self,
        peer: HostPort,
        service: Service,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        patience: float,
    ) -> None:
        link = self._endpoint.link_to(peer)
        stream = self._endpoint.open_stream(link)
        link.association.write(stream.number, bytes((service,)))
        joint = _Joint(link, stream.number)
        self._joints[link.association.connection, stream.number] = joint
        if link.association.heard:
            await self._join(stream, reader, writer, joint)
            return
        async with asyncio.TaskGroup() as both:
            waiting = both.create_task(self._expect(joint, patience), name="bearer-first-sign")
            await self._join(stream, reader, writer, joint)
            waiting.cancel()

    async def _expect(self, joint: _Joint, patience: float) -> None:
        """Break a connection off when the other side gives no sign of life."""
        await within(patience, joint.link.heard)
        if not joint.link.association.heard:
            joint.broken = True
            joint.wake.set()
            joint.room.set()

    async def _serve(self, joint: _Joint, stream: Stream) -> None:
        try:
            await self._incoming(joint, stream)
        except Exception:
            log.exception("a stream of a bearer failed")  # one stream's trouble is no other's

    async def _incoming(self, joint: _Joint, stream: Stream) -> None:
        """The other side has begun a stream: connect it with the service it asks for."""
        while not joint.incoming and not joint.broken and not joint.fin:
            await joint.wake.wait()
            joint.wake.clear()
        first = joint.incoming.popleft() if joint.incoming else b""
        target = self._services.get(Service(first[0])) if first and first[0] in list(Service) else None
        try:
            if target is None:
                raise ConnectionRefusedError("no such service")
            reader, writer = await asyncio.open_connection(target.host, target.port, limit=_READ)
        except OSError as error:
            log.debug("a stream led nowhere: %s", error)
            self._joints.pop((joint.link.association.connection, joint.number), None)
            joint.link.association.reset(joint.number)
            self._endpoint.flush(joint.link)
            return
        joint.link.association.consume(joint.number, 1)
        if len(first) > 1:
            joint.incoming.appendleft(first[1:])
        joint.wake.set()
        await self._join(stream, reader, writer, joint)

    async def _join(
        self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, joint: _Joint
    ) -> None:
        link = joint.link
        sock = writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._send(joint, stream, reader), name="bearer-send")
                both.create_task(self._receive(joint, writer), name="bearer-receive")
        except* OSError:
            link.association.reset(stream.number)
            self._endpoint.flush(link)
        finally:
            self._joints.pop((link.association.connection, stream.number), None)
            writer.close()

    async def _send(self, joint: _Joint, stream: Stream, reader: asyncio.StreamReader) -> None:
        association = joint.link.association
        while not joint.broken:
            if stream.sending.room <= 0:
                joint.room.clear()
                await joint.room.wait()
                continue
            data = await reader.read(_READ)
            association.write(stream.number, data, fin=not data)
            self._endpoint.flush(joint.link)
            if not data:
                return
        raise ConnectionResetError("the other side broke the stream off")

    async def _receive(self, joint: _Joint, writer: asyncio.StreamWriter) -> None:
        while True:
            while joint.incoming:
                data = b"".join(joint.incoming)
                joint.incoming.clear()
                writer.write(data)
                await writer.drain()
                joint.link.association.consume(joint.number, len(data))
            if joint.broken:
                raise ConnectionResetError("the other side broke the stream off")
            if joint.fin:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            await joint.wake.wait()
            joint.wake.clear()

    def _arrived(self, link: Link, arrived: Arrived) -> None:
        key = (link.association.connection, arrived.stream)
        joint = self._joints.get(key)
        if joint is None:
            if not arrived.new:
                return
            joint = self._joints[key] = _Joint(link, arrived.stream)
            stream = link.association.streams.get(arrived.stream)
            if stream is None:
                del self._joints[key]
                return
            self._tasks.create_task(self._serve(joint, stream), name="bearer-incoming")
        joint.incoming.extend(arrived.data)
        joint.fin = joint.fin or arrived.fin
        joint.broken = joint.broken or arrived.reset
        joint.wake.set()
        if joint.broken:
            joint.room.set()

    def _room(self, link: Link) -> None:
        if link.association.heard:
            link.heard.set()
            while link.rung:
                link.rung.pop()()
        connection = link.association.connection
        for number, stream in link.association.streams.items():
            if stream.sending.room > 0:
                joint = self._joints.get((connection, number))
                if joint is not None:
                    joint.room.set()

    def _open(self, listen: HostPort, limit: int) -> None:
        self._endpoint = Endpoint.open(listen, self._arrived, self._room, limit)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        self._endpoint.close()
        for joint in list(self._joints.values()):
            joint.broken = True
            joint.wake.set()
            joint.room.set()


@contextlib.asynccontextmanager
async def open_bearers(
    listen: HostPort, services: Mapping[Service, HostPort], limit: int = 0
) -> AsyncIterator[Bearers]:
    """Bearers that listen on UDP at `listen` and lead others to `services`. Raises UnavailableError.

    They send at most `limit` bytes per second in all; 0 is no limit.
    """
    tasks = asyncio.TaskGroup()
    bearers = Bearers(services, tasks)
    bearers._open(listen, limit)
    await tasks.__aenter__()
    try:
        yield bearers
    finally:
        await bearers._close()
        # The body's own error goes on as it is; the group would wrap it.
        await tasks.__aexit__(None, None, None)
