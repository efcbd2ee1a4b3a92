"""The giving side of `direct`, and the port that it shares with HTTPS.

Owns the accepting socket of the metadata face: what begins with a TLS record is HTTPS, what begins with `HELLO` is
served by a thread of its own. Rule: only what the store has verified is given, to nodes of the formation alone, and
only while no cap and no budget counts bytes: this way nothing is counted. Must not know transfers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import PeatError, UnavailableError
from peat_p2p.swarm.asks import ANSWER, ASK, NOT_HELD, decode_ask
from peat_p2p.swarm.chunkserver import ChunkSource
from peat_p2p.swarm.direct import HELLO, OPEN, REFUSED, exactly

log = logging.getLogger(__name__)
_MOST_LINES = 32
_BACKLOG = 128
_PATIENCE_S = 30.0
_IDLE_S = 300.0
_NO_ROOM_S = 0.1
Secure = Callable[[socket.socket], Awaitable[object]]


class DirectServer:
    """Serves connections, each in a thread. `uncounted` tells whether bytes may go that nothing counts."""

    def __init__(self, source: ChunkSource, context: ssl.SSLContext, uncounted: Callable[[], bool]) -> None:
        self._source = source
        self._context = context
        self._uncounted = uncounted
        self._loop = asyncio.get_running_loop()
        self._lines: dict[threading.Thread, socket.socket] = {}

    def serve(self, sock: socket.socket) -> None:
        """Serve a connection that has begun with (some of) `HELLO`."""
        if len(self._lines) >= _MOST_LINES:
            sock.close()
            return
        thread = threading.Thread(target=self._run, args=(sock,), name="give chunks", daemon=True)
        self._lines[thread] = sock
        thread.start()

    async def close(self) -> None:
        """End all connections."""
        for sock in list(self._lines.values()):
            _shut(sock)
        for thread in list(self._lines):
            await asyncio.to_thread(thread.join, 1.0)

    def _run(self, sock: socket.socket) -> None:
        try:
            with sock:
                sock.settimeout(_PATIENCE_S)
                if exactly(sock, len(HELLO)) == HELLO:
                    with self._context.wrap_socket(sock, server_side=True) as tls:
                        self._lines[threading.current_thread()] = tls
                        self._give(tls)
        except (OSError, PeatError, concurrent.futures.CancelledError, RuntimeError) as error:
            log.debug("a direct line has ended: %s", error)
        finally:
            self._lines.pop(threading.current_thread(), None)

    def _give(self, tls: ssl.SSLSocket) -> None:
        infohash = exactly(tls, 32).hex()
        found = asyncio.run_coroutine_threadsafe(self._source.chunks(infohash), self._loop)
        chunks = found.result(_PATIENCE_S)
        if chunks is None or not self._uncounted():
            tls.sendall(REFUSED)
            return
        tls.sendall(OPEN)
        while True:
            tls.settimeout(_IDLE_S)
            ask = decode_ask(bytes(exactly(tls, ASK.size)), len(chunks))
            tls.settimeout(_PATIENCE_S)
            for number in range(ask.first, ask.first + ask.count):
                data = self._source.read(chunks[number]) if self._uncounted() else None
                offset = ask.offset if number == ask.first else 0
                if data is None or offset > len(data):
                    tls.sendall(ANSWER.pack(number, NOT_HELD))
                    return
                # Not joined, which would copy the chunk: the kernel sends the one with the beginning of the other.
                tls.sendall(ANSWER.pack(number, len(data) - offset))
                tls.sendall(memoryview(data)[offset:])


@asynccontextmanager
async def shared_port(listen: HostPort, secure: Secure, direct: DirectServer) -> AsyncIterator[HostPort]:
    """Accept until the context ends; yields the real address. `secure` takes what begins like TLS, and owns it.

    Raises UnavailableError when the address cannot be had.
    """
    loop = asyncio.get_running_loop()
    try:
        family, _, _, _, where = (
            await loop.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )[0]
        listener = socket.create_server(where[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UnavailableError(f"metadata cannot be served on {listen}: {error.strerror or error}") from error
    listener.setblocking(False)
    sorting: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, or a caller that is gone already
                log.debug("a connection cannot be accepted: %s", error)
                await asyncio.sleep(_NO_ROOM_S)
                continue
            task = loop.create_task(_sort(sock, secure, direct), name="sort connection")
            sorting.add(task)
            task.add_done_callback(sorting.discard)

    accepting = loop.create_task(accept(), name="accept metadata connections")
    try:
        yield HostPort(listen.host, listener.getsockname()[1])
    finally:
        for task in (accepting, *sorting):
            task.cancel()
        await asyncio.wait((accepting, *sorting))
        listener.close()
        await direct.close()


async def _sort(sock: socket.socket, secure: Secure, direct: DirectServer) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            first = await _peek(sock)
        if first and first != HELLO[:1]:
            await secure(sock)
            return
    except (OSError, TimeoutError) as error:
        log.debug("a connection is given up: %s", error)
        sock.close()
        return
    except asyncio.CancelledError:
        sock.close()
        raise
    if first:
        direct.serve(sock)
    else:
        sock.close()


async def _peek(sock: socket.socket) -> bytes:
    """The first byte that comes, left in place; none when the other side closes."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
    return sock.recv(1, socket.MSG_PEEK)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
