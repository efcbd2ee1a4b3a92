"""Two attempts side by side, where nobody answered lately."""

from __future__ import annotations

import asyncio
import socket

import pytest

from peat_p2p.core.address import HostPort
from peat_p2p.mesh.door import _connect_often


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose queue is full: the kernel drops what calls it, as an outage would."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    return listener, fillers


async def test_one_connection_is_enough() -> None:
    taken: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: taken.append(writer), "127.0.0.1", 0)
    async with server:
        address = HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
        _, writer = await _connect_often(address, 0.05)
        await asyncio.sleep(0.2)
        assert len(taken) == 1
        for one in (writer, *taken):
            one.close()


async def test_what_was_dropped_at_first_gets_through_when_the_way_opens() -> None:
    listener, fillers = full_listener()
    try:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            calling = group.create_task(_connect_often(HostPort(*listener.getsockname()), 0.2))
            await asyncio.sleep(0.1)
            assert not calling.done()
            for _ in range(2):
                listener.accept()[0].close()
        _, writer = calling.result()
        writer.close()
    finally:
        for one in (listener, *fillers):
            one.close()


async def test_who_refuses_is_an_error_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            async with asyncio.timeout(5):
                await _connect_often(HostPort(*closed.getsockname()), 2.0)
