"""Chunks from a holder on a short path, by a TLS socket of their own that a thread reads.

Over a LAN neither loss nor distance costs anything, the processor does: an event loop handles each 16 KiB of a stream,
a thread that fills a chunk's memory from a socket does nothing in between. Measured on two cores, both sides together:
2.7 s of processor time for a gigabyte, where the torrent takes 25.

The caller sends `HELLO`, shakes hands, names the package by its infohash and asks as over HTTPS (`asks`); the giver
(`directserver`) says first whether it has the package. Rule: what comes is checked against its name before it is put
anywhere. Must not decide what is asked for, nor where it goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from peat_p2p.content.index import ChunkRef
from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import InvalidInputError, PeatError, UnavailableError
from peat_p2p.swarm.asks import ANSWER, NOT_HELD, NotHeldError

HELLO = b"peat-chunks/1\n"  # its first byte begins no TLS record
OPEN, REFUSED = b"\x01", b"\x00"
CONNECT_S = 2.0
_SILENCE_S = 60.0
Put = Callable[[int, memoryview], None]  # the number of a chunk, its content, which is another's after the call
_TOLD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Came:
    """So many bytes of chunks came since the last time."""

    count: int


@dataclass(frozen=True, slots=True)
class Whole:
    """A chunk is complete. A `good` one is what its name says, and was put; `resumed`: others sent its first bytes."""

    piece: int
    good: bool
    resumed: bool


class NotPutError(PeatError):
    """What came could not be put where it belongs, for the reason of `errno`."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.errno = error.errno or errno.EIO


@dataclass(frozen=True, slots=True)
class _Order:
    asks: bytes
    count: int
    begun: Mapping[int, bytearray]


class DirectLine:
    """One connection. All but `close`, which ends it at any time, are for the loop it was made in.

    `chunks` are the package's, by number. `put` takes those that are good; it is called in a thread.
    """

    def __init__(
        self,
        address: HostPort,
        context: ssl.SSLContext,
        infohash: str,
        chunks: Sequence[ChunkRef],
        put: Put,
        name: str,
    ) -> None:
        self.begun: dict[int, bytearray] = {}  # what came of chunks that broke off; complete after `end`
        self._address = address
        self._context = context
        self._infohash = bytes.fromhex(infohash)
        self._chunks = chunks
        self._put = put
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Came | Whole | PeatError] = asyncio.Queue()
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._socket: socket.socket | None = None
        self._closed = threading.Event()
        self._over = asyncio.Event()
        self._untold = 0
        # One for all chunks: memory that is new for each costs a page fault for every 4 KiB of it.
        self._room = memoryview(bytearray(max((chunk.size for chunk in chunks), default=0)))
        self._thread = threading.Thread(target=self._run, name=f"chunks from {name}", daemon=True)
        self._thread.start()

    def ask(self, asks: bytes, count: int, begun: Mapping[int, bytearray]) -> None:
        """Ask for `count` more chunks; of those in `begun` the first bytes are here."""
        self._orders.put(_Order(asks, count, begun))

    async def next(self) -> Came | Whole:
        """What comes next. Raises NotHeldError, NotPutError or UnavailableError at the end."""
        event = await self._events.get()
        if isinstance(event, PeatError):
            raise event
        return event

    def close(self) -> None:
        """End it."""
        self._closed.set()
        self._orders.put(None)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Not by the method of the TLS socket: the thread would go on with what is left as if it were plain.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    async def end(self) -> None:
        """End it. Of one that was open everything is told and `begun` afterwards."""
        self.close()
        if self._socket is not None:
            await self._over.wait()
        while not self._orders.empty():
            order = self._orders.get()
            if order is not None:
                self.begun.update(order.begun)

    def untold(self) -> int:
        """Bytes of chunks that came and that `next` has not told of, after `end`."""
        events = [self._events.get_nowait() for _ in range(self._events.qsize())]
        return sum(event.count for event in events if isinstance(event, Came))

    def _run(self) -> None:
        error: PeatError = UnavailableError(f"the connection to {self._name} has ended")
        try:
            with socket.create_connection((self._address.host, self._address.port), CONNECT_S) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.sendall(HELLO)
                with self._context.wrap_socket(plain) as tls:
                    self._socket = tls
                    tls.sendall(self._infohash)
                    if bytes(exactly(tls, 1)) != OPEN:
                        raise NotHeldError(f"{self._name} does not give it this way")
                    tls.settimeout(_SILENCE_S)
                    self._talk(tls)
        except PeatError as failure:
            error = failure
        except OSError as failure:
            error = UnavailableError(f"{self._name} at {self._address}: {failure}")
        finally:
            self._tell_count()
            self._on_loop(self._events.put_nowait, error)
            self._on_loop(self._over.set)

    def _talk(self, tls: ssl.SSLSocket) -> None:
        owed = 0
        while not self._closed.is_set():
            while not owed or not self._orders.empty():
                order = self._orders.get()
                if order is None:
                    return
                owed += order.count
                self.begun.update(order.begun)
                tls.sendall(order.asks)
            self._take(tls, *ANSWER.unpack(exactly(tls, ANSWER.size)))
            owed -= 1

    def _take(self, tls: ssl.SSLSocket, piece: int, length: int) -> None:
        if length == NOT_HELD:
            raise NotHeldError(f"{self._name} does not hold all of it")
        if piece >= len(self._chunks):
            raise InvalidInputError(f"{self._name} sends chunk {piece} of {len(self._chunks)}")
        chunk, first = self._chunks[piece], self.begun.pop(piece, b"")
        if len(first) + length != chunk.size:
            raise InvalidInputError(f"{self._name} sends {length} bytes of a chunk of {chunk.size}")
        view, at = self._room[: chunk.size], len(first)
        view[:at] = first
        try:
            while at < chunk.size:
                count = tls.recv_into(view[at:])
                if not count:
                    raise UnavailableError(f"{self._name} closed the connection")
                at += count
                self._untold += count
                if self._untold >= _TOLD_BYTES:
                    self._tell_count()
        except BaseException:
            if at:
                self.begun[piece] = bytearray(view[:at])
            raise
        self._tell_count()
        good = blake3(view).digest() == chunk.digest
        if good:
            try:
                self._put(piece, view)
            except OSError as error:
                raise NotPutError(error) from error
        self._on_loop(self._events.put_nowait, Whole(piece, good, bool(first)))

    def _tell_count(self) -> None:
        if self._untold:
            self._on_loop(self._events.put_nowait, Came(self._untold))
            self._untold = 0

    def _on_loop(self, what: Callable[..., None], *with_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(what, *with_)


def exactly(sock: socket.socket, count: int) -> bytearray:
    """So many bytes. Raises UnavailableError when the other side ends before."""
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        got = sock.recv_into(view[at:])
        if not got:
            raise UnavailableError("the other side closed the connection")
        at += got
    return data
