"""Broadcasts over IP multicast: paced sending, and a receiver that fills a chunk store.

Owns the sockets and the pace. Rule: a manifest that is not signed by a publisher of the formation opens nothing, and a
chunk is kept only after the store has verified it from its own disk, as after any transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from peat_p2p.content.index import ChunkRef
from peat_p2p.content.manifest import open_manifest
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import Clock, SystemClock
from peat_p2p.core.errors import InvalidInputError
from peat_p2p.swarm.bearers.broadcast import BroadcastReceiver, broadcast
from peat_p2p.swarm.torrent import ParsedInfo, parse_info
from peat_p2p.trust.credentials import NodeCredentials

log = logging.getLogger(__name__)
_HOPS = 8
_BUFFER = 4 << 20
_UDP_IP_BYTES = 28
_LATE_S = 0.02


def sender_socket(interface: str) -> socket.socket:
    """A socket that sends multicasts out of the interface with this IP address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOPS)
    return sock


def receiver_socket(group: HostPort, interface: str) -> socket.socket:
    """A socket that hears a multicast group on the interface with this IP address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.bind((group.host, group.port))
    sock.setsockopt(
        socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group.host) + socket.inet_aton(interface)
    )
    return sock


async def send(sock: socket.socket, group: HostPort, datagrams: Iterator[bytes], rate: float) -> int:
    """Send datagrams at no more than `rate` bytes per second, headers included; the bytes sent."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    sent = 0
    for datagram in datagrams:
        wait = due - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        size = len(datagram) + _UDP_IP_BYTES
        with contextlib.suppress(BlockingIOError):  # lost like any other
            sock.sendto(datagram, (group.host, group.port))
        sent += size
        due = max(due, loop.time() - _LATE_S) + size / rate
    return sent


async def send_package(
    sock: socket.socket,
    group: HostPort,
    store: ChunkStore,
    package: StoredPackage,
    rate: float,
    loss: float,
    wanted: Sequence[bool] | None = None,
) -> int:
    """Broadcast a package of the store, or the chunks of it that are marked in `wanted`; the bytes sent."""
    chunks = package.index.unique_chunks

    def read(chunk: ChunkRef) -> bytes:
        return store.chunk_path(chunk.hex).read_bytes()

    marked = wanted if wanted is not None else [True] * len(chunks)
    session = secrets.randbits(64)
    return await send(sock, group, broadcast(session, package.envelope, package.info, chunks, marked, read, loss), rate)


class BroadcastStore:
    """Receives into a chunk store. `packages` lists what has become whole."""

    def __init__(self, store: ChunkStore, credentials: NodeCredentials, clock: Clock | None = None) -> None:
        self.packages: list[StoredPackage] = []
        self.arrived = asyncio.Event()
        self._store = store
        self._credentials = credentials
        self._clock = clock or SystemClock()
        self._open: dict[str, tuple[dict[str, Any], ParsedInfo]] = {}
        self.receiver = BroadcastReceiver(self._check, self._keep)

    def receive(self, datagram: bytes) -> None:
        """Take a datagram in."""
        self.receiver.receive(datagram)

    def _check(self, envelope: dict[str, Any], info: bytes) -> Sequence[ChunkRef]:
        manifest, digest, _ = open_manifest(envelope, self._credentials.anchor, self._clock.wall())
        parsed = parse_info(info, manifest.infohash, self._credentials.ca_pem)
        if parsed.index.digest != manifest.digest:
            raise InvalidInputError("the broadcast's metadata is not the one that its manifest names")
        self._store.check_space(sum(chunk.size for chunk in parsed.chunks), manifest.reference)
        self._open[digest] = (envelope, parsed)
        self._finish()
        return parsed.chunks

    def _keep(self, chunk: ChunkRef, data: bytes) -> None:
        if not self._store.has(chunk.hex):
            path = self._store.chunk_path(chunk.hex)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            if not self._store.verify(chunk.hex, chunk.size):
                return
        self._finish()

    def _finish(self) -> None:
        for digest, (envelope, parsed) in list(self._open.items()):
            if not self._store.missing(parsed.index):
                self.packages.append(self._store.put_package(envelope, parsed.meta.info, parsed.index))
                del self._open[digest]
                self.arrived.set()


@contextlib.asynccontextmanager
async def listen(sock: socket.socket, target: BroadcastStore) -> AsyncIterator[None]:
    """Hand what a socket hears to `target` while the context lasts."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        for _ in range(64):
            try:
                datagram = sock.recv(2048)
            except OSError:
                return
            target.receive(datagram)

    loop.add_reader(sock.fileno(), readable)
    try:
        yield
    finally:
        loop.remove_reader(sock.fileno())
