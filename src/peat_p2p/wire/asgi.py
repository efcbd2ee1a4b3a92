"""Connect services inside an aiohttp application.

Owns the mount of connectrpc's ASGI applications in aiohttp. Three things the plain adapter gets wrong are kept right
here: a request's body is decompressed once (`make_runner`), a response header may have several values, and after the
body `receive` stays silent until the client goes away, where the adapter would report an empty body for ever and make
each open stream spin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp_asgi.resource import ASGIContext, ASGIResource
from connectrpc.code import Code
from connectrpc.server import ConnectASGIApplication

from peat_p2p.core.errors import PeatError
from peat_p2p.wire.errors import to_connect

Guard: TypeAlias = Callable[[web.Request], None]

# How long open calls may go on once the server stops.
SHUTDOWN_SECONDS = 1.0
# How long the rest of a body that was refused is still read, so that its sender gets to see the answer.
LINGERING_SECONDS = 2.0


class _Context(ASGIContext):
    _body_ended = False

    async def on_receive(self) -> dict[str, Any]:
        if self._body_ended:
            # The runner cancels the handler when the client disconnects, and this wait with it.
            await asyncio.Event().wait()
        try:
            message: dict[str, Any] = await super().on_receive()
        except (ConnectionError, EOFError, web.PayloadAccessError, HttpProcessingError):
            self._body_ended = True
            return {"type": "http.disconnect"}
        if not message["more_body"]:
            self._body_ended = True
        return message

    async def on_send_response_start(self, payload: dict[str, Any]) -> None:
        response = web.StreamResponse(status=payload["status"])
        for name, value in payload.get("headers", ()):
            # Added, where the plain adapter would let the last of several values win.
            response.headers.add(name.decode("latin-1"), value.decode())
        if "content-length" not in response.headers:
            response.enable_chunked_encoding()
        self.response = response
        self.writer = await response.prepare(self.request)
        self.start_response_event.set()


class _Resource(ASGIResource):
    guard: Guard | None = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.guard is not None:
            try:
                self.guard(request)
            except PeatError as error:
                return _refusal(error)
        context = _Context(self._asgi_app, request, "")
        try:
            return await context.get_response()
        except ClientConnectionResetError:
            # The caller left while it was being answered: nobody is there to be told, and nothing is wrong here.
            return context.response or web.Response(status=499)


def mount(app: web.Application, service: ConnectASGIApplication[Any], *, guard: Guard | None = None) -> None:
    """Serve `service` in `app` under its own path.

    `guard` sees each request first and raises PeatError to refuse it.
    """
    # The trailing slash keeps a service from answering for another whose name begins alike.
    resource = _Resource(service, root_path=f"{service.path}/")
    resource.guard = guard
    app.router.register_resource(resource)


def _refusal(error: PeatError) -> web.Response:
    refused = to_connect(error)
    status = 403 if refused.code is Code.PERMISSION_DENIED else 401
    return web.json_response({"code": refused.code.value, "message": refused.message}, status=status)


def make_runner(app: web.Application) -> web.AppRunner:
    """The runner an application with mounted services needs."""
    return web.AppRunner(
        app,
        # connectrpc decompresses bodies itself, by the rules of its protocols.
        auto_decompress=False,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_SECONDS,
        lingering_time=LINGERING_SECONDS,
        access_log=None,
    )
