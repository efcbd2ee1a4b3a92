"""Fetches by streams of chunks: holders that count as far, though they are on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import UnavailableError
from peat_p2p.swarm import chunkserver, feeds
from peat_p2p.swarm.asks import Ask
from peat_p2p.swarm.peers import StaticPeers
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.status import TransferState
from peat_p2p.swarm.torrents import Torrent


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everybody is far; the addresses that torrents dialled."""
    dialled: list[str] = []
    monkeypatch.setattr(Routes, "far", lambda *_: True)
    real = Torrent.dial
    monkeypatch.setattr(Torrent, "dial", lambda self, to: (dialled.append(str(to)), real(self, to))[1])
    return dialled


async def test_a_package_comes_by_a_stream_and_no_torrent_connects(node, content, far) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content())
    await (await ann.start()).seed(package)
    async with asyncio.timeout(20):
        transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
        await transfer.wait()
        status = transfer.status()
        assert (status.received, status.wasted, status.reused) == (status.total, 0, 0)
        assert [(source.agent_id, source.bytes) for source in status.sources] == [("ann", status.total)]
        assert bob.store.missing(package.index) == set()
        assert far == []
        await ann.stop()
        await (await cat.start()).fetch(package.envelope, StaticPeers([bob.candidate()])).wait()
    assert cat.store.missing(package.index) == set()


async def test_two_holders_share_the_work(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=6_000_000))
    await (await ann.start(upload_limit=3_000_000)).seed(package)
    async with asyncio.timeout(40):
        source = StaticPeers([ann.candidate()])
        await (await bob.start(upload_limit=3_000_000)).fetch(package.envelope, source).wait()
        transfer = (await cat.start()).fetch(package.envelope, StaticPeers([ann.candidate(), bob.candidate()]))
        await transfer.wait()
    by = {one.agent_id: one.bytes for one in transfer.status().sources}
    assert set(by) == {"ann", "bob"}
    assert min(by.values()) > package.index.unique_bytes // 10
    assert transfer.status().received == package.index.unique_bytes


async def test_a_holder_that_comes_back_loses_no_byte_of_a_chunk(node, content, monkeypatch) -> None:
    monkeypatch.setattr(chunkserver, "_PART", 1024)
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=1_500_000))
    await (await ann.start(upload_limit=500_000)).seed(package)
    asked: list[Ask] = []
    real = feeds.Feeds._resuming
    monkeypatch.setattr(
        feeds.Feeds, "_resuming", lambda self, pieces: asked.extend(found := real(self, pieces)) or found
    )
    async with asyncio.timeout(30), cable(ann.candidate().metadata) as (address, cut):
        transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate(metadata=address)]))
        for quarter in (1, 2, 3):
            async for status in transfer.updates():
                if status.verified > status.total * quarter // 4:
                    break
            cut()
        await transfer.wait()
    assert transfer.status().received <= transfer.status().total + 3 * 1024
    assert any(ask.offset for ask in asked)


@asynccontextmanager
async def cable(to: HostPort) -> AsyncIterator[tuple[HostPort, Callable[[], None]]]:
    """An address that leads to another one, and a function that breaks what passes there."""
    ends: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(to.host, to.port)
        ends.extend((writer, far_writer))
        async with asyncio.TaskGroup() as both:
            both.create_task(pump(reader, far_writer))
            both.create_task(pump(far_reader, writer))

    def cut() -> None:
        for end in ends:
            end.transport.abort()
        ends.clear()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield HostPort(*server.sockets[0].getsockname()[:2]), cut
    finally:
        server.close()
        cut()


async def test_a_rotten_chunk_is_blamed_mended_and_not_entered(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=2_000_000))
    chunk = package.index.unique_chunks[3]
    await (await ann.start()).seed(package)
    async with asyncio.timeout(30):
        await (await cat.start()).fetch(package.envelope, StaticPeers([ann.candidate()])).wait()
        path = ann.store.chunk_path(chunk.hex)
        times = path.stat()
        path.write_bytes(bytes(chunk.size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        source = StaticPeers([ann.candidate()])
        transfer = (await bob.start()).fetch(package.envelope, source)
        while not transfer.status().bad_peers:
            await asyncio.sleep(0.05)
        while ann.store.has(chunk.hex):  # it was told, looked, and dropped it
            await asyncio.sleep(0.05)
        source.set([ann.candidate(), cat.candidate()])
        await transfer.wait()
    assert transfer.status().bad_peers == ("ann",)
    assert bob.store.missing(package.index) == set()


async def test_a_holder_that_is_not_complete_is_left_to_the_torrent(node, content, far) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=1_000_000))
    await (await ann.start()).seed(package)
    gone = package.index.unique_chunks[2]
    ann.store.chunk_path(gone.hex).unlink()
    ann.store.verify(gone.hex, gone.size)
    transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
    async with asyncio.timeout(20):
        while not far:
            await asyncio.sleep(0.05)
        while len(bob.store.missing(package.index)) > 1:
            await asyncio.sleep(0.05)
    assert transfer.status().state is not TransferState.FAILED
    transfer.cancel()


async def test_caps_hold_on_both_sides(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=1_500_000))
    loop = asyncio.get_running_loop()
    for caps in ({"ann": 1_000_000, "bob": 0}, {"ann": 0, "bob": 1_000_000}):
        await (await ann.start(upload_limit=caps["ann"])).seed(package)
        engine = await bob.start(download_limit=caps["bob"])
        began = loop.time()
        async with asyncio.timeout(20):
            await engine.fetch(package.envelope, StaticPeers([ann.candidate()])).wait()
        assert loop.time() - began >= package.index.unique_bytes / 1_000_000 - 0.5
        await ann.stop()
        await bob.stop()
        bob.lose(package)


@pytest.mark.parametrize("asks", [Ask(0, 60_000), Ask(10**6, 1)])
async def test_asks_for_what_there_is_not_end_the_stream(node, content, asks: Ask) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=100_000, files=1))
    await (await ann.start()).seed(package)
    engine = await bob.start()

    async def body():
        yield asks.encode()
        await asyncio.sleep(5)

    async with asyncio.timeout(10):
        with pytest.raises((UnavailableError, asyncio.IncompleteReadError, aiohttp.ClientError)):
            client = engine._around.client
            async with client.chunks(ann.candidate(), package.manifest.infohash, body(), straight=True) as answer:
                await answer.content.readexactly(1)
