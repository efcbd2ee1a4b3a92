"""The HTTP server of the sidecar's API.

Owns which service answers on which socket, and who may call there: on TCP the token or the certificate that the
configuration asks for, on a Unix socket whoever the file mode lets in.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web
from connectrpc.interceptor import Interceptor

from peat_p2p.core.address import HostPort, ListenAddress
from peat_p2p.core.errors import ConfigError, DeniedError, UnavailableError
from peat_p2p.sidecar.listen import listening
from peat_p2p.wire.asgi import Guard, make_runner, mount
from peat_p2p.wire.auth import BearerInterceptor
from peat_p2p.wire.errors import ErrorInterceptor
from peat_p2p.wire.gen.peat.node.v1.node_connect import PeatNode, PeatNodeASGIApplication
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_connect import PeatSidecar, PeatSidecarASGIApplication

SIZE_HINT = "a larger document needs --max-document-bytes on the sidecar"


@asynccontextmanager
async def serving(
    addresses: Iterable[ListenAddress],
    sidecar: PeatSidecar,
    node: PeatNode,
    *,
    token: str | None,
    tls: ssl.SSLContext | None,
    admit: Callable[[ssl.SSLObject], object],
    max_message_bytes: int,
    on_stop: Callable[[], None],
) -> AsyncIterator[tuple[str, ...]]:
    """Answer on all `addresses`; gives their URLs.

    With `tls`, `admit` is asked about each caller and raises PeatError to refuse it. `on_stop` is called before open
    calls are ended.
    """
    errors = ErrorInterceptor(read_limit_hint=SIZE_HINT)

    def certified(request: web.Request) -> None:
        secured = None if request.transport is None else request.transport.get_extra_info("ssl_object")
        if secured is None:
            raise UnavailableError("the connection is gone")
        admit(secured)

    def runner(interceptors: list[Interceptor], guard: Guard | None) -> web.AppRunner:
        app = web.Application()
        limit = max_message_bytes
        services = (
            PeatSidecarASGIApplication(sidecar, interceptors=interceptors, read_max_bytes=limit),
            PeatNodeASGIApplication(node, interceptors=interceptors, read_max_bytes=limit),
        )
        for service in services:
            mount(app, service, guard=guard)
        return make_runner(app)

    async with AsyncExitStack() as stack:
        # The sockets are opened first and closed last: the loop must let go of one before it is closed.
        listeners = [stack.enter_context(listening(address)) for address in addresses]
        local = runner([errors], None)
        if token is not None:
            remote = runner([errors, BearerInterceptor(token)], certified if tls is not None else None)
        else:
            remote = runner([errors], certified if tls is not None else refuse_rebinding)
        for made in (local, remote):
            await made.setup()
            stack.push_async_callback(made.cleanup)
        stack.callback(on_stop)
        urls = []
        for listener in listeners:
            tcp = listener.address.host_port is not None
            site = web.SockSite(remote if tcp else local, listener.socket, ssl_context=tls if tcp else None)
            await site.start()
            urls.append(listener.url(tls=tcp and tls is not None))
        yield tuple(urls)


def refuse_rebinding(request: web.Request) -> None:
    """Refuse what a web page may have sent by having its own name resolve to this machine. Raises DeniedError.

    Where callers need not prove anything, the name they called is all that tells a page in a browser from a program.
    """
    sockname = None if request.transport is None else request.transport.get_extra_info("sockname")
    if not sockname or not HostPort(sockname[0], 0).is_loopback:
        return
    host = request.url.host or ""
    if host != "localhost" and not _is_ip(host):
        raise DeniedError(f"this API was called as {host!r}: call it as 127.0.0.1, [::1] or localhost")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def read_token(path: Path) -> str:
    """The token in a file. Raises ConfigError."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read: {error}") from None
    if len(token) < 16 or not token.isascii() or any(character.isspace() for character in token):
        raise ConfigError(f"the token file {path} must hold one token of at least 16 characters, no spaces")
    return token
