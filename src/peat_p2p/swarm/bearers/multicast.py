"""Broadcasts over IP multicast: paced sending, and a receiver that fills a chunk store.

Owns the sockets and the pace. Rule: a manifest that is not signed by a publisher of the formation opens nothing, and a
chunk is kept only after the store has verified it from its own disk, as after any transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from peat_p2p.content.index import ChunkRef
from peat_p2p.content.manifest import Manifest, open_manifest
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import Clock, SystemClock
from peat_p2p.core.errors import InvalidInputError
from peat_p2p.swarm.bearers.broadcast import BroadcastReceiver, broadcast
from peat_p2p.swarm.torrent import ParsedInfo, parse_info
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.identity import Identity

log = logging.getLogger(__name__)
_HOPS = 8
_BUFFER = 4 << 20
_UDP_IP_BYTES = 28
_LATE_S = 0.02
_TOGETHER = 64


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
    await asyncio.sleep(max(0.0, due - loop.time()))
    return sent


async def send_package(
    sock: socket.socket,
    group: HostPort,
    store: ChunkStore,
    package: StoredPackage,
    rate: float,
    loss: float,
    wanted: Sequence[bool] | None = None,
    permit: Callable[[int], Awaitable[None]] | None = None,
) -> int:
    """Broadcast a package of the store, or the chunks of it that are marked in `wanted`; the bytes sent.

    `permit` is awaited with the bytes that go next, before they go; what it raises ends the broadcast.
    """
    chunks = package.index.unique_chunks

    def read(chunk: ChunkRef) -> bytes:
        return store.chunk_path(chunk.hex).read_bytes()

    marked = wanted if wanted is not None else [True] * len(chunks)
    session = secrets.randbits(64)
    datagrams = broadcast(session, package.envelope, package.info, chunks, marked, read, loss)
    sent = 0
    # Coding a block takes longer than the event loop may stand still.
    while some := await asyncio.to_thread(lambda: list(itertools.islice(datagrams, _TOGETHER))):
        if permit is not None:
            await permit(sum(len(datagram) + _UDP_IP_BYTES for datagram in some))
        sent += await send(sock, group, iter(some), rate)
    return sent


class BroadcastStore:
    """Receives into a chunk store. `packages` lists what has become whole, `heard` counts datagrams.

    `allow` is asked about a manifest that verified, and raises PeatError for one that shall not come in. Chunks of what
    is not whole yet are held from garbage collection.
    """

    def __init__(
        self,
        store: ChunkStore,
        credentials: NodeCredentials,
        clock: Clock | None = None,
        allow: Callable[[Manifest, str, Identity], None] | None = None,
    ) -> None:
        self.packages: list[StoredPackage] = []
        self.arrived = asyncio.Event()
        self.heard = 0
        self._allow = allow
        self._held: dict[str, contextlib.ExitStack] = {}
        self._store = store
        self._credentials = credentials
        self._clock = clock or SystemClock()
        self._open: dict[str, tuple[dict[str, Any], ParsedInfo]] = {}
        self._left: dict[str, set[bytes]] = {}  # of what is open: the chunks that have not come
        self.receiver = BroadcastReceiver(self._check, self._keep)

    def receive(self, datagram: bytes) -> None:
        """Take a datagram in."""
        before = self.receiver.taken
        self.receiver.receive(datagram)
        # Noise and what was refused do not count: they must not keep a broadcast from being over.
        self.heard += self.receiver.taken - before

    def begun(self) -> dict[str, dict[str, Any]]:
        """The signed manifests, by digest, of what is not whole yet."""
        return {digest: envelope for digest, (envelope, _) in self._open.items()}

    def give_up(self, digest: str) -> None:
        """Wait no longer for the rest of a package; what has come stays. Another broadcast of it begins it anew."""
        self._open.pop(digest, None)
        self._left.pop(digest, None)
        held = self._held.pop(digest, None)
        if held is not None:
            held.close()

    def close(self) -> None:
        """Wait for nothing more."""
        for digest in list(self._held):
            self.give_up(digest)

    def _check(self, envelope: dict[str, Any], info: bytes) -> Sequence[ChunkRef]:
        manifest, digest, publisher = open_manifest(envelope, self._credentials.anchor, self._clock.wall())
        if self._allow is not None:
            self._allow(manifest, digest, publisher)
        parsed = parse_info(info, manifest.infohash, self._credentials.ca_pem)
        if parsed.index.digest != manifest.digest:
            raise InvalidInputError("the broadcast's metadata is not the one that its manifest names")
        self._store.check_space(sum(chunk.size for chunk in parsed.chunks), manifest.reference)
        if digest not in self._held:
            self._held[digest] = contextlib.ExitStack()
            self._held[digest].enter_context(self._store.hold(chunk.hex for chunk in parsed.chunks))
        self._open[digest] = (envelope, parsed)
        self._finish(digest)
        return parsed.chunks

    def _keep(self, chunk: ChunkRef, data: bytes) -> None:
        if not self._store.has(chunk.hex):
            path = self._store.chunk_path(chunk.hex)
            # Renamed into place: a transfer of the same package may have the file open.
            temporary = self._store.temporary / f"broadcast-{chunk.hex}"
            temporary.write_bytes(data)
            temporary.replace(path)
            if not self._store.verify(chunk.hex, chunk.size):
                return
        for digest, left in list(self._left.items()):
            if chunk.digest in left:
                left.discard(chunk.digest)
                if not left:
                    self._finish(digest)

    def _finish(self, digest: str) -> None:
        """Enter a package if it is whole. The whole store is asked only here: not for every chunk that comes."""
        envelope, parsed = self._open[digest]
        self._left[digest] = {bytes.fromhex(name) for name in self._store.missing(parsed.index)}
        if not self._left[digest]:
            self.packages.append(self._store.put_package(envelope, parsed.meta.info, parsed.index))
            self.give_up(digest)
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
