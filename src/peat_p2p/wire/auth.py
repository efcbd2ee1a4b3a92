"""Bearer tokens on a service's calls.

Owns the check of the `authorization` header before a request's body is read. Must not know where tokens come from.
"""

from __future__ import annotations

import hmac
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext


class BearerInterceptor:
    """Lets a call through only with the token. Stands after the ErrorInterceptor, before everything that reads."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def on_start(self, ctx: RequestContext[Any, Any]) -> None:
        """Check the header. Raises ConnectError `unauthenticated`."""
        scheme, _, given = ctx.request_headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise ConnectError(Code.UNAUTHENTICATED, "this service wants a token: send `authorization: Bearer TOKEN`")
        if not hmac.compare_digest(given.strip().encode(errors="surrogateescape"), self._token):
            raise ConnectError(Code.UNAUTHENTICATED, "the bearer token is not the one this service was given")

    async def on_end(self, token: None, ctx: RequestContext[Any, Any], error: Exception | None, /) -> None:
        """Nothing to undo."""
