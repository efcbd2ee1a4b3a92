"""Which way to a peer: straight, or through a bearer. Decided per peer from what the link has shown.

Rule: a short path (a LAN) is taken straight, TCP fills it with the least work; a long one by the bearer, on which loss
does not matter. A peer never dealt with is hoped to have a bearer, and its first connection goes that way without
asking, which saves a round trip; if nothing answers that connection breaks soon, and for a while everything is taken
straight (the peer is older, or its UDP is filtered). What is decided holds for new connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from dataclasses import dataclass

from peat_p2p.core.address import HostPort
from peat_p2p.swarm.bearers.relay import Bearers, Service

LONG_RTT_S = 0.008
_SURELY_LONG_S = 0.05
_PROBES = 3
_PROBE_PATIENCE_S = 1.0
_TCP_INFO_BYTES, _MIN_RTT_AT = 152, 148
PATIENCE_S = 4.0
_ASK_AGAIN_S = 60.0


@dataclass(slots=True)
class _Asked:
    """What the kernels said of a path, and when to ask them again if they call it long."""

    long: bool = True
    again_at: float = 0.0
    pause: float = 2.0


class Paths:
    """Turns a peer's address into the one to connect to."""

    def __init__(self, bearers: Bearers) -> None:
        self._bearers = bearers
        self._hoped: dict[HostPort, float] = {}  # bearers never heard, and when they were tried last
        self._local: dict[HostPort, HostPort] = {}
        self._long: dict[HostPort, _Asked] = {}

    async def to(self, direct: HostPort, bearer: HostPort, service: Service) -> HostPort:
        """Where to connect for a service of a peer: `direct`, or a local port that leads there.

        `bearer` is the UDP address of the peer's bearers.
        """
        if not _by_bearer(bearer):
            return direct
        shown = self._bearers.reading(bearer)
        if shown is not None:
            self._hoped.pop(bearer, None)
            if not await self._is_long(direct, bearer, shown.min_rtt):
                return direct
        else:
            now = asyncio.get_running_loop().time()
            if not self._hopeful(bearer, now):
                return direct
            tried = self._hoped.get(bearer)
            if tried is None or now - tried >= _ASK_AGAIN_S:
                self._hoped[bearer] = now
        local = await self._bearers.port_to(bearer, service, PATIENCE_S)
        self._local[local] = direct
        return local

    def far(self, bearer: HostPort) -> bool:
        """Whether what is known of a peer's bearer says that the way leads through it."""
        if not _by_bearer(bearer):
            return False
        shown = self._bearers.reading(bearer)
        asked = self._long.get(bearer)
        return shown is not None and shown.min_rtt >= LONG_RTT_S and (asked is None or asked.long)

    def perhaps_far(self, bearer: HostPort) -> bool:
        """Whether the way to a peer leads through its bearer, or would be tried there as nothing is known of it."""
        if self._bearers.reading(bearer) is not None:
            return self.far(bearer)
        return _by_bearer(bearer) and self._hopeful(bearer, asyncio.get_running_loop().time())

    def short(self, bearer: HostPort) -> bool:
        """Whether a peer's bearer has shown that the way to it is short."""
        return _by_bearer(bearer) and self._bearers.reading(bearer) is not None and not self.far(bearer)

    async def _is_long(self, direct: HostPort, bearer: HostPort, shown: float) -> bool:
        """Whether a path is long. A bearer answers when its process gets to it: a busy one looks farther than it is.

        So where that is in doubt the kernels are asked: they set up a connection without the processes. They may have
        been busy, too, and are asked again later, ever more seldom.
        """
        if not LONG_RTT_S <= shown < _SURELY_LONG_S:
            return shown >= LONG_RTT_S
        now, asked = asyncio.get_running_loop().time(), self._long.setdefault(bearer, _Asked())
        if asked.long and now >= asked.again_at:
            asked.again_at, asked.pause = now + asked.pause, 2 * asked.pause
            for _ in range(_PROBES):
                if await kernel_round_trip(direct, _PROBE_PATIENCE_S) < LONG_RTT_S:
                    asked.long = False
                    break
        return asked.long

    def behind(self, address: HostPort) -> HostPort:
        """The direct address for which a local port stands; any other address is returned as it is."""
        return self._local.get(address, address)

    def _hopeful(self, bearer: HostPort, now: float) -> bool:
        """Whether a bearer that was never heard is worth a try."""
        tried = self._hoped.get(bearer)
        return tried is None or not PATIENCE_S / 2 < now - tried < _ASK_AGAIN_S


def _by_bearer(address: HostPort) -> bool:
    """Bearers reach IP addresses of other machines."""
    try:
        return not ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


async def kernel_round_trip(address: HostPort, patience: float) -> float:
    """Seconds that setting up a TCP connection took, as the kernel measured it; infinity when there was none."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(patience):
                await asyncio.get_running_loop().sock_connect(sock, (address.host, address.port))
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            if len(info) == _TCP_INFO_BYTES:
                return float(struct.unpack_from("=I", info, _MIN_RTT_AT)[0]) / 1e6
    return float("inf")
