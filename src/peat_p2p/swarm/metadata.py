"""Metadata between agents: info dictionaries and manifests over HTTPS with both certificates checked.

An SSL torrent's metadata cannot come through the torrent itself (the certificate that guards it is inside), so each
agent serves it: `GET /peat/v1/metadata/{infohash}` (zstd, resumable by Range; in short form for those who accept that)
and `GET /peat/v1/manifest/{digest}`. `GET /peat/v1/held/{infohash}` tells which chunks a fetch has so far (`holdings`).
Rule: only nodes of the formation are asked and answered. Which of them answers does not matter: what comes names
itself (infohash, signature) and the caller checks that; here it is only bounded in size. Must not
know what a transfer is.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import zstandard
from aiohttp import web

from peat_p2p.content.index import ChunkRef
from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import InvalidInputError, NotFoundError, PeatError, TooLargeError, UnavailableError
from peat_p2p.swarm.asks import NotHeldError
from peat_p2p.swarm.chunkserver import AHEAD_HEADER, INDEX_HEADER, PACED_HEADER, bytes_told, chunk_handler
from peat_p2p.swarm.direct import DirectLine, Put
from peat_p2p.swarm.directserver import DirectServer, shared_port
from peat_p2p.swarm.holdmap import pack_map, unpack_map
from peat_p2p.swarm.infopack import SHORT_FORM, WHOLE_FORM, etag_of, pack_info, unpack, unpack_info
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.throttle import Throttle
from peat_p2p.swarm.torrent import MAX_INFO_BYTES, ParsedInfo
from peat_p2p.trust.credentials import NodeCredentials

_MAX_MANIFEST_BYTES = 64 << 10
_PIECE = 64 << 10
_READ_BUFFER = 256 << 10
_KEEP_ALIVE_S = 60.0  # a handshake is a round trip, and across a thin link a second
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Giver(Protocol):
    """What a node gives, as its metadata face needs it (`seeds.Seeds`)."""

    async def info(self, infohash: str) -> bytes | None:
        """The info dictionary of a package on offer."""
        ...

    async def envelope(self, manifest_digest: str) -> dict[str, Any] | None:
        """The signed manifest of a package on offer."""
        ...

    async def join(self, infohash: str) -> int | None:
        """Be ready for a connection; how many chunks are here, None when unknown."""
        ...

    def came(self, infohash: str, caller: ssl.SSLObject, host: str) -> None:
        """Who is at the other end of `caller` is about to connect from the IP address `host`."""
        ...

    async def assist(self, infohash: str, envelope: dict[str, Any], info: bytes) -> int:
        """Be ready to give shared chunks of a package; how many are here."""
        ...

    async def suspect(self, digest: str) -> bool:
        """Check a chunk that somebody got damaged; whether it is good."""
        ...

    async def chunks(self, infohash: str) -> Sequence[ChunkRef] | None:
        """The chunks of a package on offer."""
        ...

    def read(self, chunk: ChunkRef) -> bytes | None:
        """One chunk, None when it is not here. Blocks."""
        ...


class MetadataServer:
    """The HTTPS face of one node."""

    def __init__(
        self,
        giver: Giver,
        throttle: Throttle,
        uncounted: Callable[[], bool],
        fetched: Callable[[str], Sequence[bool] | None],
    ) -> None:
        self._giver = giver
        self._throttle = throttle
        self._uncounted = uncounted
        self._fetched = fetched

    @asynccontextmanager
    async def serve(self, listen: HostPort, credentials: NodeCredentials) -> AsyncIterator[HostPort]:
        """Listen until the context ends; yields the real address. Raises UnavailableError."""
        app = web.Application(client_max_size=MAX_INFO_BYTES, middlewares=[_say_why])
        app.router.add_get("/peat/v1/metadata/{infohash:[0-9a-f]{64}}", self._metadata)
        app.router.add_get("/peat/v1/manifest/{digest}", self._manifest)
        app.router.add_post("/peat/v1/join/{infohash:[0-9a-f]{64}}", self._join)
        app.router.add_post("/peat/v1/assist/{infohash:[0-9a-f]{64}}", self._assist)
        app.router.add_post("/peat/v1/suspect/{digest:[0-9a-f]{64}}", self._suspect)
        app.router.add_post("/peat/v1/chunks/{infohash:[0-9a-f]{64}}", chunk_handler(self._giver, self._throttle))
        app.router.add_get("/peat/v1/held/{infohash:[0-9a-f]{64}}", self._held)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        context, loop = credentials.server_context(), asyncio.get_running_loop()

        async def secure(sock: socket.socket) -> None:
            assert runner.server is not None
            await loop.connect_accepted_socket(runner.server, sock, ssl=context)

        try:
            direct = DirectServer(self._giver, context, self._uncounted)
            async with shared_port(listen, secure, direct) as address:
                yield address
        finally:
            await runner.cleanup()

    async def _metadata(self, request: web.Request) -> web.Response:
        infohash = request.match_info["infohash"]
        info = await self._giver.info(infohash)
        if info is None:
            raise web.HTTPNotFound(text="not held here")
        short = SHORT_FORM in request.headers.get("Accept", "")
        form = SHORT_FORM if short else WHOLE_FORM
        body = await asyncio.to_thread(pack_info, info, short=short)
        etag = etag_of(body)
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "X-Peat-Size": str(len(info))}
        start = 0
        if request.headers.get("If-Range") == etag:
            try:
                start = request.http_range.start or 0
            except ValueError:
                start = 0
        if not 0 < start < len(body):
            return web.Response(body=body, headers=headers, content_type=form)
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return web.Response(status=206, body=body[start:], headers=headers, content_type=form)

    async def _manifest(self, request: web.Request) -> web.Response:
        envelope = await self._giver.envelope(request.match_info["digest"])
        if envelope is None:
            raise web.HTTPNotFound(text="not held here")
        return web.json_response(envelope)

    async def _join(self, request: web.Request) -> web.Response:
        infohash = request.match_info["infohash"]
        have = await self._giver.join(infohash)
        if have is None:
            raise web.HTTPNotFound(text="not held here")
        caller = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        if caller is not None and request.remote:
            self._giver.came(infohash, caller, request.remote)
        return web.json_response({"have": have})

    async def _assist(self, request: web.Request) -> web.Response:
        envelope, info = await asyncio.to_thread(_unframe, await request.read())
        return web.json_response({"have": await self._giver.assist(request.match_info["infohash"], envelope, info)})

    async def _held(self, request: web.Request) -> web.Response:
        held = self._fetched(request.match_info["infohash"])
        if held is None:
            raise web.HTTPNotFound(text="not told here")
        return web.Response(body=pack_map(held), content_type="application/octet-stream")

    async def _suspect(self, request: web.Request) -> web.Response:
        return web.json_response({"good": await self._giver.suspect(request.match_info["digest"])})


@web.middleware
async def _say_why(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer an error of ours with its text; the other side is of the formation."""
    try:
        return await handler(request)
    except NotFoundError as error:
        raise web.HTTPNotFound(text=str(error)) from error
    except PeatError as error:
        raise web.HTTPBadRequest(text=str(error)) from error


@dataclass(slots=True)
class Partial:
    """What came of an answer before it broke off, kept so that another try goes on from there."""

    etag: str = ""
    body: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class ChunkAnswer:
    """An answer that is a stream of chunks. `paced`: the peer's TCP does not take loss for a full link.

    Before them come `index` bytes of the packed index, of this `etag`.
    """

    content: aiohttp.StreamReader
    paced: bool
    index: int = 0
    etag: str = ""

    def untaken(self) -> int:
        """Take what has come; how many bytes that was."""
        return len(self.content.read_nowait(-1)) if self.content.exception() is None else 0


class NoIndexError(UnavailableError):
    """A peer knows no streams that begin with the index."""


class MetadataClient:
    """Asks other agents. One per engine; use as a context."""

    def __init__(
        self,
        credentials: NodeCredentials,
        routes: Routes | None = None,
        *,
        idle_timeout: float = 30.0,
        connect_timeout: float = 5.0,
        bearer_connect_timeout: float = 15.0,
    ) -> None:
        self._routes = routes or Routes()
        self._credentials = credentials
        self._context = credentials.client_context()
        self._connect_timeout, self._idle_timeout = connect_timeout, idle_timeout
        # Through a bearer, which itself breaks a connection that nobody answers. The rest is TLS, over what may be a
        # slow and lossy link.
        self._bearer_connect_timeout = bearer_connect_timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> MetadataClient:
        self._session = self._new_session()
        return self

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._context, limit=64, keepalive_timeout=_KEEP_ALIVE_S)
        return aiohttp.ClientSession(connector=connector, read_bufsize=_READ_BUFFER)

    async def renew(self) -> None:
        """End all connections; what is asked now fails, what is asked from now on is asked by new ones."""
        if self._session is not None:
            old, self._session = self._session, self._new_session()
            await old.close()

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._session is not None
        await self._session.close()
        self._session = None

    async def info(self, peer: PeerCandidate, infohash: str, partial: Partial) -> ParsedInfo:
        """The torrent metadata of this infohash as `peer` gives it. Raises PeatError."""
        headers = {"Accept": f"{SHORT_FORM}, {WHOLE_FORM}"}
        if partial.etag and partial.body:
            headers |= {"Range": f"bytes={len(partial.body)}-", "If-Range": partial.etag}
        async with self._ask("GET", peer, f"/peat/v1/metadata/{infohash}", headers) as response:
            etag = response.headers.get("ETag", "")
            short = response.content_type == SHORT_FORM
            if response.status != 206 or etag != partial.etag:
                partial.body.clear()
            partial.etag = etag
            async for piece in response.content.iter_chunked(_PIECE):
                partial.body += piece
                if len(partial.body) > MAX_INFO_BYTES:
                    partial.body.clear()
                    raise TooLargeError(f"{peer.agent_id} sends more than {MAX_INFO_BYTES} bytes of torrent metadata")
        return await self._unpack(peer, infohash, partial, short=short)

    async def index(self, peer: PeerCandidate, infohash: str, answer: ChunkAnswer, partial: Partial) -> ParsedInfo:
        """The torrent metadata that comes before the chunks of an answer, as by `info`. Raises NoIndexError."""
        if not answer.index:
            raise NoIndexError(f"{peer.agent_id} sends no index before its chunks")
        if answer.index > MAX_INFO_BYTES:
            raise TooLargeError(f"{peer.agent_id} would send more than {MAX_INFO_BYTES} bytes of torrent metadata")
        partial.etag = answer.etag
        try:
            while len(partial.body) < answer.index:
                async with asyncio.timeout(self._idle_timeout):
                    piece = await answer.content.read(min(_PIECE, answer.index - len(partial.body)))
                if not piece:
                    raise UnavailableError(f"{peer.agent_id} broke off")
                partial.body += piece
        except TimeoutError:
            raise UnavailableError(f"{peer.agent_id} has gone silent") from None
        return await self._unpack(peer, infohash, partial, short=True)

    async def _unpack(self, peer: PeerCandidate, infohash: str, partial: Partial, *, short: bool) -> ParsedInfo:
        packed, ca_pem = bytes(partial.body), self._credentials.ca_pem
        partial.body.clear()
        return await asyncio.to_thread(unpack_info, packed, peer.agent_id, infohash, ca_pem, short=short)

    async def join(self, peer: PeerCandidate, infohash: str) -> int | None:
        """Tell `peer` that this node will connect; how many chunks it has, None when it does not know the package."""
        try:
            return _count(await self._post(peer, f"/peat/v1/join/{infohash}", b""), peer)
        except NotHeldError:
            return None

    async def assist(self, peer: PeerCandidate, infohash: str, envelope: dict[str, Any], info: bytes) -> int:
        """Ask `peer` to give what it has of a package it may not know; how many chunks it has."""
        body = await asyncio.to_thread(_frame, envelope, info)
        return _count(await self._post(peer, f"/peat/v1/assist/{infohash}", body), peer)

    async def suspect(self, peer: PeerCandidate, digest: str) -> bool:
        """Tell `peer` that a chunk it gave was damaged, so that it looks. Whether it found it good."""
        return (await self._post(peer, f"/peat/v1/suspect/{digest}", b"")).get("good") is not False

    async def holdings(self, peer: PeerCandidate, infohash: str, chunks: int) -> list[bool]:
        """Which of so many chunks a peer that fetches them has by now; empty while that is not known there.

        Raises NotHeldError when it does not tell, InvalidInputError, UnavailableError.
        """
        async with self._ask("GET", peer, f"/peat/v1/held/{infohash}", {}) as response:
            body = await _whole(response, chunks, f"{peer.agent_id}'s map")
        return unpack_map(body, chunks) if body else []

    @asynccontextmanager
    async def chunks(
        self,
        peer: PeerCandidate,
        infohash: str,
        asks: AsyncIterator[bytes],
        *,
        straight: bool,
        ahead: int | None = None,
    ) -> AsyncIterator[ChunkAnswer]:
        """Ask for chunks as long as `asks` yields; see `chunkserver`. Raises UnavailableError, also while in use.

        With `ahead` the index comes first, then, whatever the first ask is, so many bytes of the first chunks.
        """
        idle = None if ahead is None else self._idle_timeout
        headers = {} if ahead is None else {AHEAD_HEADER: str(ahead)}
        asking = self._ask("POST", peer, f"/peat/v1/chunks/{infohash}", headers, asks, endless=True, straight=straight)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(idle):
                    response = await stack.enter_async_context(asking)
            except TimeoutError:
                raise UnavailableError(f"{peer.agent_id} does not answer") from None
            told = response.headers
            paced, index = told.get(PACED_HEADER) == "1", bytes_told(told, INDEX_HEADER)
            yield ChunkAnswer(response.content, paced, index, told.get("ETag", ""))

    async def direct(self, peer: PeerCandidate, infohash: str, chunks: Sequence[ChunkRef], put: Put) -> DirectLine:
        """A line to a peer on a short path, to ask for a package's chunks; see there. Raises UnavailableError."""
        address = await self._routes.metadata(peer, straight=True)
        return DirectLine(address, self._context, infohash, chunks, put, peer.agent_id)

    async def _post(self, peer: PeerCandidate, path: str, body: bytes) -> dict[str, Any]:
        async with self._ask("POST", peer, path, {}, body) as response:
            return _object(await response.content.read(_MAX_MANIFEST_BYTES), f"{peer.agent_id}'s answer")

    async def manifest(self, peer: PeerCandidate, manifest_digest: str) -> dict[str, Any]:
        """The envelope of a manifest as `peer` gives it, unchecked. Raises UnavailableError."""
        what = f"{peer.agent_id}'s manifest"
        async with self._ask("GET", peer, f"/peat/v1/manifest/{manifest_digest}", {}) as response:
            body = await _whole(response, _MAX_MANIFEST_BYTES, what)
        return _object(body, what)

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        peer: PeerCandidate,
        path: str,
        headers: dict[str, str],
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        endless: bool = False,
        straight: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "MetadataClient is used as a context"
        address = await self._routes.metadata(peer, straight=straight)
        patience = self._bearer_connect_timeout if self._routes.by_bearer(address) else self._connect_timeout
        idle = None if endless else self._idle_timeout
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=patience, sock_read=idle)
        try:
            async with self._session.request(
                method, f"https://{address}{path}", headers=headers, data=body, timeout=timeout
            ) as response:
                if response.status == 404:
                    raise NotHeldError(f"{peer.agent_id} does not hold it")
                if response.status not in (200, 206):
                    raise UnavailableError(f"{peer.agent_id} answered with status {response.status}")
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = str(error) or type(error).__name__
            raise UnavailableError(f"{peer.agent_id} at {peer.metadata}: {what}") from error


async def _whole(response: aiohttp.ClientResponse, most: int, what: str) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_chunked(_PIECE):
        body += piece
        if len(body) > most:
            raise TooLargeError(f"{what} is longer than {most} bytes")
    return bytes(body)


def _frame(envelope: dict[str, Any], info: bytes) -> bytes:
    head = json.dumps(envelope).encode()
    return zstandard.ZstdCompressor(level=3).compress(len(head).to_bytes(4, "big") + head + info)


def _unframe(body: bytes) -> tuple[dict[str, Any], bytes]:
    data = unpack(body, "a peer")
    length = int.from_bytes(data[:4], "big")
    if length > _MAX_MANIFEST_BYTES:
        raise TooLargeError(f"a manifest of {length} bytes is over the limit of {_MAX_MANIFEST_BYTES}")
    return _object(data[4 : 4 + length], "the manifest"), data[4 + length :]


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{what} is no JSON") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what} is no JSON object")
    return value


def _count(answer: dict[str, Any], peer: PeerCandidate) -> int:
    have = answer.get("have")
    if type(have) is not int or have < 0:
        raise InvalidInputError(f"{peer.agent_id} did not say how many chunks it has")
    return have
