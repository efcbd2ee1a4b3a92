"""Noticing that this machine's network changed.

Owns the rtnetlink socket on which the kernel tells of links, addresses and routes, and the judgement which of its
messages are news: it also repeats itself (router advertisements, wireless scans). Changes that come together are told
once, and no more than once in a while on machines where containers come and go. Must not know who wants to know.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import psutil

_LOG = logging.getLogger(__name__)

SETTLE_S = 0.3
AT_MOST_EVERY_S = 10.0

# linux/rtnetlink.h
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 17, 20, 21, 24, 25
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 addresses and routes, IPv6 addresses and routes
_UP = 0x1 | 0x40 | 0x10000  # IFF_UP, IFF_RUNNING, IFF_LOWER_UP
_CLONED = 0x200
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_IFA_ADDRESS = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_LOCAL_TABLE = 255


class OwnAddresses:
    """The IP addresses of this machine, loopback ones with them, and which of them it loses."""

    def __init__(self) -> None:
        self._known = _own_addresses()

    def lost(self) -> frozenset[str]:
        """Those that were there at the last call (or at the start) and are not now."""
        before, self._known = self._known, _own_addresses()
        return before - self._known


def _own_addresses() -> frozenset[str]:
    return frozenset(
        address.address for addresses in psutil.net_if_addrs().values() for address in addresses if address.netmask
    )


class Changes:
    """Says of each message whether it is news. What was there at the start is learned as it is first mentioned."""

    def __init__(self) -> None:
        self._links: dict[int, int] = {}
        self._known: set[tuple[object, ...]] = set()

    def take(self, datagram: bytes) -> bool:
        """Whether anything in a datagram of the kernel's is news. What cannot be read is not."""
        news = False
        for kind, body in _messages(datagram):
            try:
                news = self._message(kind, body) or news
            except struct.error:
                continue
        return news

    def _message(self, kind: int, body: bytes) -> bool:
        if kind in (NEWLINK, DELLINK):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            if kind == DELLINK:
                return self._links.pop(index, None) is not None
            before, state = self._links.get(index), int(flags & _UP)
            self._links[index] = state
            return before != state
        if kind in (NEWADDR, DELADDR):
            family, prefix, _, _, index = _ADDRESS.unpack_from(body)
            address = _attributes(body[_ADDRESS.size :]).get(_IFA_ADDRESS, b"")
            return self._there(kind == NEWADDR, ("address", family, prefix, index, address))
        if kind in (NEWROUTE, DELROUTE):
            family, bits, _, _, table, _, _, _, flags = _ROUTE.unpack_from(body)
            if flags & _CLONED or table == _LOCAL_TABLE:
                return False
            found = _attributes(body[_ROUTE.size :])
            way = (found.get(_RTA_DST, b""), found.get(_RTA_OIF, b""), found.get(_RTA_GATEWAY, b""))
            return self._there(kind == NEWROUTE, ("route", family, bits, table, *way))
        return False

    def _there(self, now: bool, thing: tuple[object, ...]) -> bool:
        if now:
            news = thing not in self._known
            self._known.add(thing)
            return news
        self._known.discard(thing)
        return True  # what went away was there, whether it was ever mentioned or not


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size or at + length > len(datagram):
            return
        yield kind, datagram[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            break
        found[kind] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


@asynccontextmanager
async def watch_network(changed: Callable[[], None], at_most_every: float = AT_MOST_EVERY_S) -> AsyncIterator[None]:
    """Call `changed` after each change of links, addresses or routes until the context ends.

    Where the kernel does not tell (no netlink), it only logs that.
    """
    try:
        channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    except (OSError, AttributeError) as error:
        _LOG.info("changes of the network are not noticed at once: %s", error)
        yield
        return
    loop = asyncio.get_running_loop()
    changes = Changes()
    told_at = float("-inf")
    timer: asyncio.TimerHandle | None = None

    def tell() -> None:
        nonlocal timer, told_at
        timer, told_at = None, loop.time()
        changed()

    def readable() -> None:
        nonlocal timer
        try:
            news = changes.take(channel.recv(65536))
        except BlockingIOError:
            return
        except OSError:  # the kernel had more to say than fits: something did change
            news = True
        if news and timer is None:
            timer = loop.call_at(max(loop.time() + SETTLE_S, told_at + at_most_every), tell)

    try:
        with channel:
            try:
                channel.bind((0, _GROUPS))
            except OSError as error:
                _LOG.info("changes of the network are not noticed at once: %s", error)
                yield
                return
            loop.add_reader(channel, readable)
            try:
                yield
            finally:
                loop.remove_reader(channel)
    finally:
        if timer is not None:
            timer.cancel()
