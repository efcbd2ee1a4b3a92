"""Chunks on request, as one stream: the giving side of `feeds`.

`POST /peat/v1/chunks/{infohash}`: the request's body is asks for as long as the other side has any, the answer's body
the chunks in the order asked for. Both flow at the same time, so a link never waits for a round trip. Who says so in
`X-Peat-Ahead` gets the packed index first, then, whatever its first ask is, as many of the first chunks as have so many
bytes: before the index is there nothing can be asked for. Rule: only what the store has verified is given, to nodes of
the formation alone. Must not know transfers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from aiohttp import web

from peat_p2p.content.index import ChunkRef
from peat_p2p.core.errors import InvalidInputError
from peat_p2p.swarm.asks import ANSWER, ASK, NOT_HELD, decode_ask, opening_ask
from peat_p2p.swarm.infopack import etag_of, pack_info
from peat_p2p.swarm.throttle import Throttle

log = logging.getLogger(__name__)
PACED_HEADER = "X-Peat-Paced"
AHEAD_HEADER = "X-Peat-Ahead"
INDEX_HEADER = "X-Peat-Index"  # of the answer: the bytes of the packed index
_MOST_DIGITS = 19
_PART = 16 << 10  # a record of TLS
_CONGESTION = b"bbr"


def bytes_told(headers: Mapping[str, str], name: str) -> int:
    """The number of bytes that a header tells; 0 when it is not there or is no such number."""
    text = headers.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS else 0


class ChunkSource(Protocol):
    """Where chunks come from (`seeds.Seeds`)."""

    async def info(self, infohash: str) -> bytes | None:
        """The info dictionary of a package that is given here, None when it is not."""
        ...

    async def chunks(self, infohash: str) -> Sequence[ChunkRef] | None:
        """The chunks of a package that is given here, None when it is not."""
        ...

    def read(self, chunk: ChunkRef) -> bytes | None:
        """One chunk, None when it is not here. Blocks."""
        ...


def paced_tcp() -> bool:
    """Whether this kernel lets us choose a congestion control that does not take loss for a full link."""
    with contextlib.closing(socket.socket()) as probe:
        return _pace(probe)


def _pace(sock: socket.socket) -> bool:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION)
    except OSError:  # not built in, or not for everybody (net.ipv4.tcp_allowed_congestion_control)
        return False
    return True


def chunk_handler(source: ChunkSource, throttle: Throttle) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of the request above."""
    paced = "1" if paced_tcp() else "0"

    async def handle(request: web.Request) -> web.StreamResponse:
        infohash = request.match_info["infohash"]
        chunks = await source.chunks(infohash)
        if chunks is None:
            raise web.HTTPNotFound(text="not held here")
        ahead, index = bytes_told(request.headers, AHEAD_HEADER), b""
        if ahead and (info := await source.info(infohash)) is not None:
            index = await asyncio.to_thread(pack_info, info, short=True)
        sock = request.transport.get_extra_info("socket") if request.transport is not None else None
        if sock is not None and paced == "1":
            _pace(sock)
        response = web.StreamResponse(headers={PACED_HEADER: paced}, status=200)
        response.content_type = "application/octet-stream"
        if index:
            response.headers[INDEX_HEADER], response.headers["ETag"] = str(len(index)), etag_of(index)
        await response.prepare(request)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if index:
                await response.write(index)
            while chunks:
                ask = decode_ask(await request.content.readexactly(ASK.size), len(chunks))
                if index:
                    ask, index = opening_ask((chunk.size for chunk in chunks), ahead), b""
                for number in range(ask.first, ask.first + ask.count):
                    offset = ask.offset if number == ask.first else 0
                    await _give(response, source, throttle, chunks[number], number, offset)
        with contextlib.suppress(OSError):
            await response.write_eof()
        return response

    return handle


async def _give(
    response: web.StreamResponse, source: ChunkSource, throttle: Throttle, chunk: ChunkRef, number: int, offset: int
) -> None:
    data = await asyncio.to_thread(source.read, chunk)
    if data is None:
        await response.write(ANSWER.pack(number, NOT_HELD))
        return
    if offset > len(data):
        raise InvalidInputError(f"chunk {number} has {len(data)} bytes; it was asked for from {offset} on")
    head = ANSWER.pack(number, len(data) - offset)
    for start in range(offset, len(data), _PART):
        part = data[start : start + _PART]
        await throttle.take(len(part))
        await response.write(head + part)
        head = b""
    if head:
        await response.write(head)
