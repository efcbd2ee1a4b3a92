"""How connectrpc's client reaches a server: an HTTP transport on aiohttp.

Owns one session to one address, over TCP, TLS or a Unix socket; connectrpc's own transport cannot speak over Unix
sockets. It must not know services or retry anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from pyqwest import Headers, Request, Response
from yarl import URL

from peat_p2p.core.errors import ConfigError, UnavailableError

CONNECT_SECONDS = 5.0
_MAX_SOCKET_PATH = 107
# Asked after 20 s of silence, every 5 s, and given up on after 5 times.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 5))
_HTTP_SCHEMES = ("http", "https")


@contextlib.contextmanager
def short_socket_path(path: Path) -> Iterator[Path]:
    """A name for the Unix socket `path` that the system takes, while the context is open.

    The name in a socket's address has 107 bytes at most; a deeper one is reached by way of its folder's descriptor.
    """
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        yield path
        return
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield path  # whoever uses it says that it is not there
        return
    try:
        yield Path(f"/proc/self/fd/{folder}") / path.name
    finally:
        os.close(folder)


class AiohttpTransport:
    """Carries requests to the address given. Use as an async context manager.

    `address` is `http://HOST:PORT`, `https://HOST:PORT` or `unix:///PATH`; `base_url` is what request URLs begin with.
    """

    def __init__(self, address: str, *, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.address = address.rstrip("/")
        self._path = ""
        self._tls = tls
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None
        self._stack = contextlib.ExitStack()
        if address.startswith("unix://"):
            self._path = address.removeprefix("unix://")
            if not self._path.startswith("/"):
                raise ConfigError(f"{address!r}: the path of a Unix socket must be absolute (unix:///run/peat.sock)")
            self.base_url = "http://localhost"
            return
        try:
            url = URL(self.address)
        except ValueError as error:
            raise ConfigError(f"{address!r} is not an address: {error}") from None
        if url.scheme not in _HTTP_SCHEMES or not url.host:
            raise ConfigError(f"{address!r}: an address is http://HOST:PORT, https://HOST:PORT or unix:///PATH")
        self.base_url = self.address

    async def __aenter__(self) -> Self:
        # No limit on connections: every open subscription holds one.
        connector: aiohttp.BaseConnector
        if self._path:
            path = self._stack.enter_context(short_socket_path(Path(self._path)))
            connector = aiohttp.UnixConnector(str(path), limit=0)
        else:
            connector = aiohttp.TCPConnector(
                limit=0, ssl=self._tls if self._tls is not None else True, socket_factory=_watched_socket
            )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        self._stack.close()

    async def execute(self, request: Request) -> Response:
        """Send `request`; return once the response's headers are there. Raises UnavailableError."""
        if self._session is None:
            raise UnavailableError(f"the client of {self.address} is closed; use it inside its `async with`")
        try:
            response = await self._session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=list(request.headers.items()),
                data=request.content,
                # connectrpc says what a body is; a GET has none.
                skip_auto_headers=("Content-Type",),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(_explain(error)) from error
        return Response(
            status=response.status, headers=Headers(list(response.headers.items())), content=_Body(response)
        )


class _Body:
    """A response's body, chunk by chunk; closing it early frees the connection."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._chunks = response.content.iter_any()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(f"the connection broke: {_explain(error)}") from error

    async def aclose(self) -> None:
        self._response.close() if not self._response.content.at_eof() else self._response.release()


def _watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices a dead peer: a subscription that is silent for hours would otherwise wait for ever."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


def _explain(error: Exception) -> str:
    if isinstance(error, aiohttp.ServerTimeoutError):
        return f"no connection within {CONNECT_SECONDS:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return f"TLS failed: {error.os_error if isinstance(error, aiohttp.ClientConnectorSSLError) else error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    return str(error) or type(error).__name__
