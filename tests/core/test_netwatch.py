"""Noticing a changed network: what is news, and the kernel's own word in a namespace."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.netwatch import DELADDR, DELLINK, NEWADDR, NEWLINK, NEWROUTE, Changes

UP, DOWN = 0x1 | 0x40 | 0x10000, 0x1


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def link(index: int, flags: int, kind: int = NEWLINK) -> bytes:
    return message(kind, struct.pack("=BxHiII", 0, 1, index, flags, 0))


def address(text: str, kind: int = NEWADDR) -> bytes:
    packed = socket.inet_aton(text)
    return message(kind, struct.pack("=BBBBi", socket.AF_INET, 24, 0, 0, 2) + struct.pack("=HH", 8, 1) + packed)


def route(gateway: str, table: int = 254, flags: int = 0) -> bytes:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, table, 0, 0, 1, flags)
    return message(NEWROUTE, body + struct.pack("=HH", 8, 5) + socket.inet_aton(gateway))


def test_what_is_repeated_is_no_news() -> None:
    changes = Changes()
    for first in (link(2, UP), address("10.0.0.2"), route("10.0.0.1")):
        assert changes.take(first)
        assert not changes.take(first)
    assert changes.take(link(2, DOWN))
    assert changes.take(link(2, UP))
    assert not changes.take(link(2, UP | 0x1000))
    assert changes.take(link(2, UP, DELLINK))
    assert changes.take(address("10.0.0.2", DELADDR))
    assert changes.take(address("10.0.0.2"))
    assert not changes.take(route("10.0.0.9", table=255))
    assert not changes.take(route("10.0.0.9", flags=0x200))
    assert changes.take(link(2, UP) + route("10.0.0.9"))


@given(st.binary(max_size=200))
def test_whatever_comes_is_taken(data: bytes) -> None:
    Changes().take(data)
    Changes().take(message(NEWADDR, data))
    Changes().take(message(NEWROUTE, data))
    Changes().take(message(NEWLINK, data))


_PROGRAM = """
import asyncio, subprocess
from peat_p2p.core.netwatch import watch_network

async def main():
    told = asyncio.Event()
    async with watch_network(told.set, at_most_every=0.0):
        for line in ("link set lo up", "address add 192.0.2.7/32 dev lo", "route add 198.51.100.0/24 dev lo"):
            await asyncio.sleep(0.5)
            told.clear()
            subprocess.run(["ip", *line.split()], check=True)
            async with asyncio.timeout(5):
                await told.wait()
    print("noticed")

asyncio.run(main())
"""


def _may_unshare() -> bool:
    return os.geteuid() == 0 and sys.platform == "linux" and hasattr(ctypes.CDLL(None), "unshare")


@pytest.mark.skipif(not _may_unshare(), reason="a network of its own needs root")
def test_the_kernel_tells() -> None:
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", _PROGRAM], capture_output=True, timeout=60)
    assert done.stdout.decode().strip() == "noticed", done.stderr.decode()
