"""One server as the SDK sees it: calls with a time limit, retries where they are safe, errors that name the address.

Owns how a single call is made. Rules: a call never outlives its time limit; only calls that change nothing are tried
again; cancellation stays cancellation. Must not know what the calls are about.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from connectrpc.client import ConnectClient
from connectrpc.errors import ConnectError
from pyqwest import Client as HttpClient

from peat_p2p.core.errors import UnavailableError
from peat_p2p.wire.errors import cancellation_in, from_connect
from peat_p2p.wire.transport import AiohttpTransport

T = TypeVar("T")
C = TypeVar("C", bound=ConnectClient)

DEFAULT_TIMEOUT = 10.0
ATTEMPTS = 3
FIRST_DELAY = 0.1


def backoff(attempt: int, jitter: Callable[[], float], *, first: float, most: float) -> float:
    """Seconds to wait before try `attempt` + 1: doubled each time up to `most`, of which a random half is taken off."""
    return min(most, first * 2.0 ** min(attempt, 30)) * (0.5 + 0.5 * jitter())


class Channel:
    """The services of one address behind one transport. Use as an async context manager.

    `what` names the server in errors: "sidecar", "agent".
    """

    def __init__(
        self, what: str, address: str, *, token: str | None, tls: ssl.SSLContext | None, timeout: float
    ) -> None:
        self.address = address
        self.where = f"{what} at {address}"
        self._timeout = timeout
        self._transport = AiohttpTransport(address, token=token, tls=tls)
        self._http = HttpClient(self._transport)

    def client(self, kind: type[C]) -> C:
        """A generated client whose requests go through this channel."""
        # The server is next door as a rule: compressing would cost more than it saves.
        return kind(self._transport.base_url, http_client=self._http, send_compression=None, accept_compression=())

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def write(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that changes something: once. Raises PeatError."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._once(call)
        except TimeoutError:
            raise self._late() from None

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that changes nothing; while the server is out of reach, try again. Raises PeatError."""
        try:
            async with asyncio.timeout(self._timeout):
                for attempt in range(ATTEMPTS - 1):
                    try:
                        return await self._once(call)
                    except UnavailableError:
                        await asyncio.sleep(backoff(attempt, random.random, first=FIRST_DELAY, most=1.0))
                return await self._once(call)
        except TimeoutError:
            raise self._late() from None

    async def stream(self, call: Callable[[], AsyncIterator[T]]) -> AsyncGenerator[T, None]:
        """Read a server stream; it may stay open for ever. Raises PeatError."""
        messages = call()
        try:
            async for message in messages:
                yield message
        except ConnectError as error:
            raise self._translate(error) from None
        finally:
            # connectrpc's stream is a generator: left unclosed it would hold the connection until collected.
            await messages.aclose()  # type: ignore[attr-defined]

    async def _once(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except ConnectError as error:
            raise self._translate(error) from None

    def _translate(self, error: ConnectError) -> BaseException:
        # connectrpc's client turns cancellation into an error of its own, which would defeat asyncio.timeout and
        # TaskGroup.
        return cancellation_in(error) or from_connect(error, self.where)

    def _late(self) -> UnavailableError:
        return UnavailableError(f"{self.where} did not answer within {self._timeout:g} s")


class ChannelClient:
    """What the clients of one server have alike. Use as an async context manager; every call raises PeatError.

    `address` is `http://HOST:PORT`, `https://HOST:PORT` or `unix:///PATH`. `token` is the bearer token of a server
    that asks for one, `tls` the context for https. No call that answers at once takes longer than `timeout` seconds.
    """

    _WHAT = "server"

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.address = address
        self._channel = Channel(self._WHAT, address, token=token, tls=tls, timeout=timeout)

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.__aexit__(kind, error, trace)
