"""The hub's HTTP API.

Owns routes, the reading of requests, and the one table from errors to HTTP status. Every answer is JSON, errors too.
Keeps out what a web page of another origin could send: bodies must say that they are JSON, and on loopback the Host
header must name this machine. Must not decide anything about the fleet.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from peat_p2p.core.errors import (
    ConflictError,
    CorruptError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PeatError,
    TooLargeError,
    UnavailableError,
)
from peat_p2p.hub.service import HubService

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

DEFAULT_LIMIT = 200
MAX_LIMIT = 5000
_STATUS: tuple[tuple[type[PeatError], int, str], ...] = (
    (TooLargeError, 413, "too_large"),
    (InvalidInputError, 400, "invalid_argument"),
    (NotFoundError, 404, "not_found"),
    (ConflictError, 409, "conflict"),
    (DeniedError, 403, "denied"),
    (UnavailableError, 503, "unavailable"),
    (ExhaustedError, 507, "exhausted"),
    (CorruptError, 500, "corrupt"),
)
_respond = partial(web.json_response, dumps=partial(json.dumps, separators=(",", ":")))


def make_app(
    service: HubService, *, node_id: str, token: str | None = None, loopback: bool = True, max_body_bytes: int = 262144
) -> web.Application:
    """The application. With `token`, callers must show it; `loopback` says that only this machine is to call."""
    app = web.Application(client_max_size=max_body_bytes, middlewares=[_errors, _guard(token, loopback=loopback)])

    async def healthz(_: web.Request) -> web.Response:
        return _respond({"status": "ok", "node_id": node_id, "current": service.complete})

    async def fleet(_: web.Request) -> web.Response:
        return _respond(service.fleet())

    async def packages(_: web.Request) -> web.Response:
        return _respond(service.packages())

    async def commands(request: web.Request) -> web.Response:
        return _respond(await service.commands(_limit(request)))

    async def command(request: web.Request) -> web.Response:
        return _respond(await service.command(request.match_info["id"]))

    async def order(request: web.Request) -> web.Response:
        return _respond(await service.order(await _body(request, max_body_bytes)), status=201)

    async def withdraw(request: web.Request) -> web.Response:
        await service.withdraw(request.match_info["id"])
        return web.Response(status=204)

    async def revocations(_: web.Request) -> web.Response:
        return _respond(service.revocations())

    async def revoke(request: web.Request) -> web.Response:
        return _respond(await service.revoke(await _body(request, max_body_bytes)), status=201)

    async def history(request: web.Request) -> web.Response:
        before = _number(request, "before") if "before" in request.query else None
        return _respond(await service.history(_limit(request), before, request.query.get("collection")))

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/api/fleet", fleet)
    app.router.add_get("/api/packages", packages)
    app.router.add_get("/api/commands", commands)
    app.router.add_post("/api/commands", order)
    app.router.add_get("/api/commands/{id}", command)
    app.router.add_delete("/api/commands/{id}", withdraw)
    app.router.add_get("/api/revocations", revocations)
    app.router.add_post("/api/revocations", revoke)
    app.router.add_get("/api/history", history)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except PeatError as error:
        for kind, status, code in _STATUS:
            if isinstance(error, kind):
                return _error(status, code, str(error))
        log.exception("%s %s failed", request.method, request.path)
        return _error(500, "internal", "the hub failed; its log says more")
    except web.HTTPException as error:
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status, "invalid_argument")
        answer = _error(error.status, code, f"{request.method} {request.path}: {error.reason}")
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _error(500, "internal", "the hub failed; its log says more")


def _guard(token: str | None, *, loopback: bool) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        # A page that made its own name resolve to 127.0.0.1 would otherwise be this API's same origin.
        if loopback and not _names_this_machine(request.host):
            raise DeniedError(f"this API answers on this machine's own names only, not on {request.host[:80]!r}")
        if token is not None and request.path != "/healthz":
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token.encode())
            if scheme.lower() != "bearer" or not right:
                answer = _error(401, "unauthenticated", "this API wants a token: send `Authorization: Bearer TOKEN`")
                answer.headers["WWW-Authenticate"] = "Bearer"
                return answer
        return await handler(request)

    return guard


def _names_this_machine(host: str) -> bool:
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _body(request: web.Request, most: int) -> bytes:
    if request.content_type != "application/json":
        raise InvalidInputError("send JSON, with the header `Content-Type: application/json`")
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise TooLargeError(f"the body is over the limit of {most} bytes") from None


def _limit(request: web.Request) -> int:
    return min(MAX_LIMIT, _number(request, "limit", DEFAULT_LIMIT))


def _number(request: web.Request, name: str, default: int = 0) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 19 and int(text) > 0):
        raise InvalidInputError(f"{name!r} must be a number over 0")
    return int(text)


def _error(status: int, code: str, message: str) -> web.Response:
    return _respond({"error": {"code": code, "message": message}}, status=status)
