"""TLS over a plain asyncio stream.

Owns the handshake and the exact count of bytes that cross the wire, TLS included. Keeps the rule that nothing is read
or written in clear. TLS runs on memory buffers because asyncio's own transports neither count what they send nor say
why the other side refused. Must not know what is said over the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from peat_p2p.core.errors import UnavailableError, UntrustedError
from peat_p2p.trust.credentials import NodeCredentials

ALPN = ("peat-mesh/1",)
_CHUNK = 64 * 1024
_TCP_THIN_LINEAR_TIMEOUTS = 16
_TCP_NOTSENT_LOWAT = 25
_CONGESTION = b"bbr"
_UNSENT = 512  # bytes that the kernel may hold beyond what is on its way: what is in there cannot be overtaken

_ALERTS = (
    ("UNKNOWN_CA", "the other side does not accept our certificate: it belongs to another formation"),
    ("CERTIFICATE_EXPIRED", "the other side refused our certificate: it has expired"),
    ("certificate has expired", "its certificate has expired"),
    ("not yet valid", "its certificate is not valid yet (is a clock wrong?)"),
    ("CERTIFICATE_REQUIRED", "the other side asked for a certificate and got none"),
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "it gave no certificate"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate was not issued by this formation"),
    ("BAD_CERTIFICATE", "the other side refused our certificate"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS 1.3"),
    ("UNSUPPORTED_PROTOCOL", "it does not speak TLS 1.3"),
)


_OP_TLSEXT_PADDING = 0x10


def contexts(credentials: NodeCredentials) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of the accepting and of the calling side.

    A link that comes back resumes its TLS session, which costs a third of a handshake with certificates. The peer's
    certificate is part of the session and its validity and revocation are checked on every connection, resumed or not,
    so nothing lives on in a session. Sessions are kept in memory and not in tickets, which would carry the certificate.
    """
    server = credentials.server_context(ALPN)
    server.num_tickets = 1
    server.options |= ssl.OP_NO_TICKET
    client = credentials.client_context(ALPN)
    # Fills the hello up to 517 bytes for the sake of broken middleboxes of 2014.
    client.options &= ~_OP_TLSEXT_PADDING
    return server, client


class RefusedError(UntrustedError):
    """The TLS handshake failed over a certificate, on either side."""


class TlsStream:
    """One TLS connection. After `handshake`, `send`, `drain` and `receive` carry the application's bytes."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        # `drain` is to return when the kernel has taken everything.
        writer.transport.set_write_buffer_limits(high=0)
        with contextlib.suppress(OSError, AttributeError):
            # Where few packets are on their way, waiting twice as long for each one lost again holds up commands.
            tcp = writer.get_extra_info("socket")
            tcp.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
            tcp.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT)
            # Where the kernel allows it: at 5 % loss the default leaves two packets a round trip, and commands wait.
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, session=session)
        self.bytes_sent = 0
        self.bytes_received = 0

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """The TLS connection, for reading the peer's certificate."""
        return self._tls

    @property
    def own_host(self) -> str:
        """The address of this end."""
        return str(self._writer.get_extra_info("sockname")[0])

    @property
    def peer_host(self) -> str:
        """The address of the other end."""
        return str(self._writer.get_extra_info("peername")[0])

    @property
    def session(self) -> ssl.SSLSession | None:
        """What lets the calling side resume; complete once something was received."""
        return self._tls.session

    @property
    def resumed(self) -> bool:
        """Whether the handshake went without certificates."""
        return bool(self._tls.session_reused)

    async def handshake(self) -> None:
        """Finish the TLS handshake; what this side still has to say goes with its first `send`.

        Raises RefusedError or UnavailableError.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                await self._fill()
            except ssl.SSLError as error:
                self._flush()
                raise _refusal(error) from error
            else:
                return

    def send(self, data: bytes) -> None:
        """Encrypt `data` and hand it to the socket. Never blocks; see `drain`."""
        for start in range(0, len(data), _CHUNK):
            self._tls.write(data[start : start + _CHUNK])
        self._flush()

    async def drain(self) -> None:
        """Wait until the kernel has taken all that was sent."""
        await self._writer.drain()

    def backlog(self) -> int:
        """Bytes handed over that the kernel has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    async def receive(self) -> bytes:
        """The next bytes; empty at the end of the stream. Raises RefusedError or UnavailableError."""
        while True:
            try:
                data = self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                self._flush()
                if not await self._fill(may_end=True):
                    return b""
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise _refusal(error) from error
            else:
                return data

    def abort(self) -> None:
        """Drop the connection at once. Its TLS session stays good for a resumption."""
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        self._writer.transport.abort()

    async def close(self, timeout: float = 1.0) -> None:
        """Send what is pending, say goodbye in TLS, and close. Gives up waiting after `timeout` seconds."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        try:
            self._flush()
            async with asyncio.timeout(timeout):
                await self._writer.drain()
                self._writer.close()
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self.bytes_sent += len(data)
            self._writer.write(data)

    async def _fill(self, *, may_end: bool = False) -> bool:
        try:
            data = await self._reader.read(_CHUNK)
        except OSError as error:
            raise UnavailableError(f"connection lost: {error.strerror or error}") from error
        if not data:
            if may_end:
                return False
            raise UnavailableError("the other side closed the connection during the TLS handshake")
        self.bytes_received += len(data)
        self._incoming.write(data)
        return True


def _refusal(error: ssl.SSLError) -> RefusedError:
    text = f"{error.reason or ''} {error}"
    for sign, meaning in _ALERTS:
        if sign in text:
            return RefusedError(meaning)
    return RefusedError(f"TLS failed: {error.reason or error}")
