"""Opening a connection so that both sides know who the other is.

Owns the way from a socket to an authenticated stream, in both directions, and the TLS sessions that make the way back
cheap. Keeps the rules that only valid, unrevoked certificates of the formation come through, that who is called must be
who answers, and that who is refused is told why. Any role of the formation may link, as every node replicates; what a
node may write is checked document by document. Must not know what links are for.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from aiohappyeyeballs import start_connection

from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import PeatError, UntrustedError
from peat_p2p.mesh.frames import Goodbye, Reason, encode_frame
from peat_p2p.mesh.tls import RefusedError, TlsStream, contexts
from peat_p2p.mesh.types import MeshConfig
from peat_p2p.trust.credentials import NodeCredentials, peer_identity
from peat_p2p.trust.errors import RevokedError
from peat_p2p.trust.identity import Identity
from peat_p2p.trust.revocation import RevocationSet

_LOG = logging.getLogger(__name__)


class NoRoleError(UntrustedError):
    """The certificate is of the formation and gives its node nothing to do there."""


class Door:
    """Calls peers and answers them."""

    def __init__(
        self,
        credentials: NodeCredentials,
        config: MeshConfig,
        clock: Clock,
        revoked: Callable[[], RevocationSet],
    ) -> None:
        self._anchor = credentials.anchor
        self._config = config
        self._clock = clock
        self._revoked = revoked
        self._server_context, self._client_context = contexts(credentials)
        self._sessions: dict[str, ssl.SSLSession] = {}
        self.opening: set[str] = set()
        """Peers that took a call from here and with whom TLS is being spoken."""

    async def call(
        self,
        address: HostPort,
        endpoint_id: str,
        connect_timeout: float | None = None,
        second_packet: float | None = None,
    ) -> tuple[TlsStream, Identity]:
        """Connect to the node `endpoint_id` at `address`, after `second_packet` seconds by a second attempt too.

        Raises UntrustedError if it is another, or not to be trusted; UnavailableError, OSError, TimeoutError if it
        cannot be reached.
        """
        async with asyncio.timeout(min(connect_timeout or 3600.0, self._config.connect_timeout)):
            if second_packet is None:
                reader, writer = await asyncio.open_connection(address.host, address.port)
            else:
                reader, writer = await _connect_often(address, second_packet)
        session = self._sessions.get(endpoint_id)
        stream = TlsStream(reader, writer, self._client_context, server_side=False, session=session)
        self.opening.add(endpoint_id)
        try:
            identity = await self._greet(stream)
            if identity.endpoint_id != endpoint_id:
                raise RefusedError(
                    f"the node there is {identity.node_id} with endpoint id {identity.endpoint_id}, not {endpoint_id}"
                )
        except BaseException:
            stream.abort()
            raise
        finally:
            self.opening.discard(endpoint_id)
        return stream, identity

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[TlsStream, Identity] | None:
        """Find out who calls; None if it was refused."""
        stream = TlsStream(reader, writer, self._server_context, server_side=True)
        try:
            return stream, await self._greet(stream)
        except (TimeoutError, OSError, PeatError) as error:
            _LOG.info("refused a connection from %s: %s", writer.get_extra_info("peername"), error)
            if isinstance(
                error, RevokedError | NoRoleError
            ):  # TLS was content with it: so tell the other side in our own words
                stream.send(encode_frame(Goodbye(Reason.REFUSED, str(error))))
            # closing at once could destroy the alert that tells the other side why
            await stream.close()
            return None
        except BaseException:
            stream.abort()
            raise

    def keep(self, endpoint_id: str, stream: TlsStream) -> None:
        """A connection to the peer that was called ends: the next one may resume it."""
        if (session := stream.session) is not None:
            self._sessions[endpoint_id] = session

    async def _greet(self, stream: TlsStream) -> Identity:
        async with asyncio.timeout(self._config.handshake_timeout):
            await stream.handshake()
        identity = peer_identity(stream.ssl_object, self._anchor, self._clock.wall())
        self._revoked().check_identity(identity)
        if not identity.roles:
            raise NoRoleError(f"the certificate of {identity.node_id} gives it no role in the formation")
        return identity


async def _connect_often(address: HostPort, second_packet: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect where packets were lost lately: two attempts side by side, so that with what the kernel repeats a packet
    goes out every half second, and the end of an outage is not missed for a second."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return await asyncio.open_connection(sock=await start_connection(found[:1] * 2, happy_eyeballs_delay=second_packet))
