"""One table between the project's errors and Connect codes.

Owns the translation in both directions and the server interceptor that applies it, so that a handler only ever raises
PeatError. Rule: what a caller sees is a sentence meant for it; an error nobody foresaw is logged here with its
traceback and reaches the caller as `internal` with no detail. Must not know any service.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import ClientConnectionResetError
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext

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
    UntrustedError,
)

log = logging.getLogger(__name__)


class UnsupportedCallError(PeatError):
    """The other side does not know this call: it is older, or not a sidecar of this project."""


class RemoteError(PeatError):
    """The other side failed in a way it did not foresee; its log says more."""


# First match wins in both directions: an error's class is looked up by isinstance, a code by equality.
_TABLE: tuple[tuple[type[PeatError], Code], ...] = (
    (TooLargeError, Code.RESOURCE_EXHAUSTED),
    (InvalidInputError, Code.INVALID_ARGUMENT),
    (NotFoundError, Code.NOT_FOUND),
    (ConflictError, Code.FAILED_PRECONDITION),
    (UntrustedError, Code.PERMISSION_DENIED),
    (DeniedError, Code.PERMISSION_DENIED),
    (DeniedError, Code.UNAUTHENTICATED),
    (UnavailableError, Code.UNAVAILABLE),
    (UnavailableError, Code.DEADLINE_EXCEEDED),
    (UnavailableError, Code.CANCELED),
    (ExhaustedError, Code.RESOURCE_EXHAUSTED),
    (CorruptError, Code.DATA_LOSS),
    (UnsupportedCallError, Code.UNIMPLEMENTED),
    (InvalidInputError, Code.OUT_OF_RANGE),
    (ConflictError, Code.ALREADY_EXISTS),
    (ConflictError, Code.ABORTED),
    (RemoteError, Code.INTERNAL),
    (RemoteError, Code.UNKNOWN),
)

# A code stands for the widest class it can mean: the caller must not be told more than the wire said.
_WIDEST: dict[Code, type[PeatError]] = {
    Code.RESOURCE_EXHAUSTED: ExhaustedError,
    Code.PERMISSION_DENIED: DeniedError,
}


def code_for(error: PeatError) -> Code:
    """The Connect code of `error`."""
    return next((code for kind, code in _TABLE if isinstance(error, kind)), Code.INTERNAL)


def to_connect(error: PeatError) -> ConnectError:
    """`error` as it goes over the wire."""
    return ConnectError(code_for(error), str(error))


def from_connect(error: ConnectError, where: str) -> PeatError:
    """What a client raises for `error`, which came from (or on the way to) the address `where`."""
    kind = _WIDEST.get(error.code) or next((kind for kind, code in _TABLE if code is error.code), RemoteError)
    message = error.message or error.code.value.replace("_", " ")
    if issubclass(kind, UnavailableError | RemoteError | UnsupportedCallError):
        # These are about the other side rather than about the request, so they must say which other side.
        message = f"{where}: {message}"
    return kind(message)


def cancellation_in(error: ConnectError) -> asyncio.CancelledError | None:
    """The cancellation that connectrpc's client turned into `error`, if that is what happened.

    Only the direct cause counts: a deadline that passed has a cancellation further down, which was the library's own.
    """
    return error.__cause__ if isinstance(error.__cause__, asyncio.CancelledError) else None


class ErrorInterceptor:
    """Turns what a handler raised into a ConnectError. The first interceptor of every service."""

    def __init__(self, *, read_limit_hint: str = "") -> None:
        """`read_limit_hint` tells the caller of a message over the size limit which setting raises it."""
        self._read_limit_hint = read_limit_hint

    async def on_start(self, ctx: RequestContext[Any, Any]) -> None:
        """Nothing to prepare."""

    async def on_end(self, token: None, ctx: RequestContext[Any, Any], error: Exception | None, /) -> None:
        """Replace a foreign error by its translation."""
        if error is None:
            return
        if isinstance(error, PeatError):
            raise to_connect(error) from error
        if isinstance(error, ConnectError):
            if error.code is Code.RESOURCE_EXHAUSTED and self._read_limit_hint and "message is larger" in error.message:
                raise ConnectError(error.code, f"{error.message} bytes; {self._read_limit_hint}") from error
            return
        if isinstance(error, ClientConnectionResetError):
            # The caller left before the answer: nobody is there to be told, and nothing went wrong here.
            return
        log.error("%s failed", ctx.method.name, exc_info=error)
        raise ConnectError(Code.INTERNAL, f"{ctx.method.name} failed; the log of the service says why") from error
