"""Bearers in real processes' terms: local ports, real sockets, a middle that rebinds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import UnavailableError
from peat_p2p.swarm.bearers import paths as paths_module
from peat_p2p.swarm.bearers.endpoint import Endpoint, Link
from peat_p2p.swarm.bearers.paths import Paths
from peat_p2p.swarm.bearers.relay import Bearers, Service, open_bearers

ANY = HostPort("127.0.0.1", 0)


@asynccontextmanager
async def echo() -> AsyncIterator[HostPort]:
    """A TCP service that says everything twice in capital letters' manner: it echoes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield HostPort(*server.sockets[0].getsockname()[:2])


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Bearers, Bearers]]:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(echo())
        far = await stack.enter_async_context(open_bearers(ANY, {Service.SWARM: service}))
        near = await stack.enter_async_context(open_bearers(ANY, {}))
        yield near, far


async def through(port: HostPort, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(port.host, port.port)
    got = bytearray()

    async def read() -> None:
        while piece := await reader.read(1 << 16):
            got.extend(piece)

    async with asyncio.TaskGroup() as both:
        both.create_task(read())
        writer.write(data)
        await writer.drain()
        writer.write_eof()
    writer.close()
    return bytes(got)


async def test_bytes_go_there_and_back() -> None:
    async with two() as (near, far):
        port = await near.port_to(far.address, Service.SWARM)
        assert port == await near.port_to(far.address, Service.SWARM)
        data = os.urandom(3_000_000)
        async with asyncio.timeout(60):
            assert await through(port, data) == data
        reading = near.reading(far.address)
        assert reading is not None
        assert reading.sent_bytes > 3_000_000


async def test_many_streams_share_one_association() -> None:
    async with two() as (near, far):
        port = await near.port_to(far.address, Service.SWARM)
        pieces = [os.urandom(20_000 + number) for number in range(20)]
        results: dict[int, bytes] = {}

        async def one(number: int) -> None:
            results[number] = await through(port, pieces[number])

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(one(number))
        assert [results[number] for number in range(20)] == pieces


async def test_a_service_that_is_not_there_closes_the_connection() -> None:
    async with two() as (near, far):
        port = await near.port_to(far.address, Service.METADATA)
        reader, writer = await asyncio.open_connection(port.host, port.port)
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionResetError):
                writer.write(b"hello")
                while await reader.read(100):
                    pass
                raise ConnectionResetError
        writer.close()


async def test_a_port_that_is_taken_is_said_so() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UnavailableError, match="UDP"):
            async with open_bearers(HostPort(*taken.getsockname()), {}):
                pass


async def test_strangers_noise_is_ignored() -> None:
    async with two() as (near, far):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for size in (0, 1, 20, 1400):
                stranger.sendto(os.urandom(size), (far.address.host, far.address.port))
                stranger.sendto(b"\xb7\x01" + os.urandom(size), (far.address.host, far.address.port))
        port = await near.port_to(far.address, Service.SWARM)
        async with asyncio.timeout(20):
            assert await through(port, b"still here") == b"still here"


class Rebinding(asyncio.DatagramProtocol):
    """A NAT between the two: it forwards, and from time to time sends from another port."""

    def __init__(self, target: HostPort) -> None:
        self.target = (target.host, target.port)
        self.client: tuple[str, int] | None = None
        self.sockets: list[asyncio.DatagramTransport] = []
        self.count = 0
        self.inside: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.inside = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.client = addr
        self.count += 1
        self.sockets[self.count // 100 % len(self.sockets)].sendto(data, self.target)


class Back(asyncio.DatagramProtocol):
    """The outer side of the NAT."""

    def __init__(self, nat: Rebinding) -> None:
        self.nat = nat

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.nat.client is not None:
            self.nat.inside.sendto(data, self.nat.client)


async def test_a_rebinding_nat_goes_unnoticed() -> None:
    loop = asyncio.get_running_loop()
    async with two() as (near, far):
        inside, nat = await loop.create_datagram_endpoint(lambda: Rebinding(far.address), local_addr=("127.0.0.1", 0))
        for _ in range(3):
            outside, _ = await loop.create_datagram_endpoint(lambda: Back(nat), local_addr=("127.0.0.1", 0))
            nat.sockets.append(outside)
        port = await near.port_to(HostPort(*inside.get_extra_info("sockname")), Service.SWARM)
        data = os.urandom(1_000_000)
        async with asyncio.timeout(60):
            assert await through(port, data) == data
        assert nat.count > 300
        for transport in (inside, *nat.sockets):
            transport.close()


async def test_who_rings_is_called_once_when_there_is_an_answer() -> None:
    async with two() as (near, far):
        answered, again = asyncio.Event(), asyncio.Event()
        near.ring(far.address, answered.set)
        near.ring(far.address, again.set)
        near.ring(far.address)
        async with asyncio.timeout(10):
            await answered.wait()
            await again.wait()
        assert near.heard(far.address) > 0
        answered.clear()
        near.ring(far.address, again.set)
        async with asyncio.timeout(10):
            while near.reading(far.address) is None or not again.is_set():
                await asyncio.sleep(0.01)
        assert not answered.is_set()


async def test_a_near_peer_and_one_without_bearers_are_taken_straight() -> None:
    async with two() as (near, far):
        paths = Paths(near)
        direct = HostPort("192.0.2.7", 7000)
        assert await paths.to(direct, far.address, Service.SWARM) == direct  # loopback
        assert paths.behind(direct) == direct


async def test_a_bearer_that_is_not_there_is_hoped_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_module, "_by_bearer", lambda _: True)
    monkeypatch.setattr(paths_module, "PATIENCE_S", 0.3)
    direct = HostPort("192.0.2.7", 7000)
    async with two() as (near, _far):
        paths = Paths(near)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind(("127.0.0.1", 0))
            silent = HostPort(*deaf.getsockname())
            assert paths.perhaps_far(silent)
            local = await paths.to(direct, silent, Service.SWARM)
            assert local != direct
            assert paths.behind(local) == direct
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    await through(local, b"is anybody there")
            assert near.reading(silent) is None
            assert await paths.to(direct, silent, Service.SWARM) == direct
            assert not paths.perhaps_far(silent)


async def test_a_short_path_is_taken_straight_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_module, "_by_bearer", lambda _: True)
    direct = HostPort("192.0.2.7", 7000)
    async with two() as (near, far):
        paths = Paths(near)
        local = await paths.to(direct, far.address, Service.SWARM)
        assert local != direct
        async with asyncio.timeout(10):
            assert await through(local, b"first") == b"first"
        monkeypatch.setattr(paths_module, "LONG_RTT_S", 1000.0)
        assert await paths.to(direct, far.address, Service.SWARM) == direct
        assert not paths.far(far.address)
        assert not paths.perhaps_far(far.address)
        monkeypatch.setattr(paths_module, "LONG_RTT_S", 0.0)
        assert await paths.to(direct, far.address, Service.SWARM) == local
        assert paths.far(far.address)


async def test_the_associations_of_a_bearer_share_its_limit() -> None:
    links: list[Link] = []
    near = Endpoint.open(ANY, lambda link, one: None, lambda link: None, limit=90_000)
    try:
        for port in (9, 10, 11):  # nobody is there
            link = near.link_to(HostPort("127.0.0.1", port))
            stream = near.open_stream(link)
            link.association.write(stream.number, bytes(50_000))
            near.flush(link)
            links.append(link)
        assert [link.association.pacer.ceiling for link in links] == [30_000] * 3
        assert all(link.association.pacer.rate <= 30_000 for link in links)
        near._drop(links[0])
        assert [link.association.pacer.ceiling for link in links[1:]] == [45_000] * 2
    finally:
        near.close()
