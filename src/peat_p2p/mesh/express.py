"""Datagrams beside the links: a copy of each urgent batch, which no lost packet of the stream holds up.

On a long lossy way a stream stands still for round trips whenever a packet is lost, and a command stands with it. A
copy goes ahead, twice, sealed with a key that the receiver gave over the link. Owns the UDP socket (of the same port
number as the mesh's) and the seals. Keeps the rules that only what opens with a live link's key is looked at, and each
copy once. Nothing depends on a copy: the link's own batch follows. Must not know what a record says.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from peat_p2p.core.address import HostPort
from peat_p2p.mesh.frames import EXPRESS_ID, EXPRESS_KEY, Express

_LOG = logging.getLogger(__name__)
_COUNTER = struct.Struct("!Q")
_NONCE_PAD = bytes(4)
_SEAL = 16
_HEADERS = 28
_MOST = 2048
COPIES = 2
_APART_S = 0.08  # so that one burst of loss does not take both
_SEEN = 256


class Inlet:
    """Where one link's copies come in. `offer` is what the peer is told."""

    def __init__(self, port: int, take: Callable[[bytes], None]) -> None:
        self.offer = Express(port, os.urandom(EXPRESS_ID), os.urandom(EXPRESS_KEY))
        self._cipher = AESGCM(self.offer.key)
        self._seen: deque[int] = deque(maxlen=_SEEN)
        self._take = take

    def open(self, datagram: bytes) -> None:
        """Take what opens and is new."""
        counter = datagram[EXPRESS_ID : EXPRESS_ID + _COUNTER.size]
        (number,) = _COUNTER.unpack(counter)
        if number in self._seen or (self._seen and number < max(self._seen) - _SEEN):
            return
        try:
            record = self._cipher.decrypt(
                _NONCE_PAD + counter, datagram[EXPRESS_ID + _COUNTER.size :], datagram[:EXPRESS_ID]
            )
        except InvalidTag:
            return
        self._seen.append(number)
        self._take(record)


class Outlet:
    """Where copies go out to one peer."""

    def __init__(self, transport: asyncio.DatagramTransport, host: str, offer: Express) -> None:
        self._transport = transport
        self._to = (host, offer.port)
        self._id = offer.id
        self._cipher = AESGCM(offer.key)
        self._number = 0

    def send(self, record: bytes) -> int:
        """Send a record now and once more a moment later; returns the bytes that takes on the wire."""
        self._number += 1
        counter = _COUNTER.pack(self._number)
        datagram = self._id + counter + self._cipher.encrypt(_NONCE_PAD + counter, record, self._id)
        loop = asyncio.get_running_loop()
        for number in range(COPIES):
            loop.call_later(number * _APART_S, self._put, datagram)
        return COPIES * (len(datagram) + _HEADERS)

    def _put(self, datagram: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(datagram, self._to)


class ExpressSocket(asyncio.DatagramProtocol):
    """The socket and its inlets. Made by `open`."""

    def __init__(self) -> None:
        self._inlets: dict[bytes, Inlet] = {}
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(cls, address: HostPort) -> ExpressSocket:
        """Listen at the address; where that cannot be, there are no copies, and links do without."""
        loop = asyncio.get_running_loop()
        self = cls()
        try:
            await loop.create_datagram_endpoint(lambda: self, (address.host, address.port))
        except OSError as error:
            _LOG.info("no copies of urgent batches: UDP port %s: %s", address, error.strerror or error)
        return self

    @property
    def works(self) -> bool:
        """Whether it listens."""
        return self._transport is not None

    def inlet(self, take: Callable[[bytes], None]) -> Inlet | None:
        """A new way in, of which each record is given to `take`."""
        if self._transport is None:
            return None
        inlet = Inlet(self._transport.get_extra_info("sockname")[1], take)
        self._inlets[inlet.offer.id] = inlet
        return inlet

    def shut(self, inlet: Inlet | None) -> None:
        """Nothing comes in there any more."""
        if inlet is not None:
            self._inlets.pop(inlet.offer.id, None)

    def outlet(self, host: str, offer: Express) -> Outlet | None:
        """The way to a peer that is at `host` and made this offer."""
        return Outlet(self._transport, host, offer) if self._transport is not None else None

    def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: Any) -> None:
        """See asyncio.DatagramProtocol."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.DatagramProtocol."""
        self._transport = None

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """See asyncio.DatagramProtocol."""
        if EXPRESS_ID + _COUNTER.size + _SEAL < len(data) <= _MOST:
            inlet = self._inlets.get(data[:EXPRESS_ID])
            if inlet is not None:
                inlet.open(data)
