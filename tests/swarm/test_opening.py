"""Fetches from nothing over a long path: the first chunks come behind the index."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.errors import UnavailableError
from peat_p2p.swarm import chunkserver, feeds, opening
from peat_p2p.swarm.asks import Asks, opening_ask
from peat_p2p.swarm.chunkserver import bytes_told
from peat_p2p.swarm.infopack import etag_of, pack_info
from peat_p2p.swarm.metadata import MetadataClient, Partial
from peat_p2p.swarm.opening import AHEAD, Opening
from peat_p2p.swarm.peers import PeerCandidate, StaticPeers
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.torrent import ParsedInfo


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Everybody is far, and no link so fast that TCP would take over; how often which kind of request was made."""
    counted: Counter[str] = Counter()
    monkeypatch.setattr(Routes, "far", lambda *_: True)
    monkeypatch.setattr(Routes, "perhaps_far", lambda *_: True)
    monkeypatch.setattr(feeds, "FAST", float("inf"))
    for name in ("info", "index", "chunks"):
        real = getattr(MetadataClient, name)
        monkeypatch.setattr(
            MetadataClient, name, lambda *a, _real=real, _name=name, **k: (counted.update([_name]), _real(*a, **k))[1]
        )
    return counted


async def test_the_index_and_all_chunks_come_by_one_request(node, content, asked) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content())
    await (await ann.start(site="a")).seed(package)
    async with asyncio.timeout(20):
        source = StaticPeers([ann.candidate(site="a")])
        transfer = (await bob.start(site="b")).fetch(package.envelope, source)
        await transfer.wait()
    status = transfer.status()
    assert (status.received, status.wasted) == (status.total, 0)
    assert bob.store.verify_many(package.index.unique_chunks) == set()
    assert asked == {"index": 1, "chunks": 1}


async def test_a_small_package_comes_whole_behind_its_index(node, content, asked) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=AHEAD // 2))
    await (await ann.start()).seed(package)
    async with asyncio.timeout(20):
        await (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()])).wait()
    assert bob.store.verify_many(package.index.unique_chunks) == set()
    assert asked == {"index": 1, "chunks": 1}


async def test_where_another_version_is_here_the_index_comes_alone(node, content, asked) -> None:
    ann, bob = node("ann"), node("bob")
    engine = await ann.start()
    first, second = ann.publish(content(), "1.0"), ann.publish(content("other", seed=2), "2.0")
    for package in (first, second):
        await engine.seed(package)
    taker = await bob.start()
    async with asyncio.timeout(40):
        for package in (first, second):
            await taker.fetch(package.envelope, StaticPeers([ann.candidate()])).wait()
    assert asked == {"index": 1, "info": 1, "chunks": 2}


async def test_where_a_site_is_shared_the_index_comes_alone(node, content, asked) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content())
    await (await ann.start(site="a")).seed(package)
    await cat.start(site="b")
    async with asyncio.timeout(40):
        source = StaticPeers([ann.candidate(site="a")], shared_sites=["b"])
        await (await bob.start(site="b")).fetch(package.envelope, source).wait()
    assert (asked["info"], asked["index"]) == (1, 0)


async def test_what_is_here_by_another_name_is_not_taken_twice(node, content, asked) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content())
    await (await ann.start()).seed(package)
    for chunk in package.index.unique_chunks[::3]:
        bob.store.lay(chunk, memoryview(ann.store.read_chunk(chunk)))
    bob.store.enter(package.index.unique_chunks[::3])
    async with asyncio.timeout(20):
        transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
        await transfer.wait()
    status = transfer.status()
    assert bob.store.verify_many(package.index.unique_chunks) == set()
    assert status.received == status.total - status.reused + status.wasted
    assert status.reused > 0
    assert 0 <= status.wasted <= AHEAD + 1024
    assert asked == {"index": 1, "chunks": 2}


async def test_on_a_path_that_turns_out_short_it_is_left_and_counted(node, content, asked, monkeypatch) -> None:
    monkeypatch.setattr(Routes, "far", lambda *_: False)
    left: list[int] = []
    real = Opening.close

    async def close(self: Opening) -> int:
        if self._answer is not None:
            await asyncio.sleep(0.3)
            left.append(await real(self))
            return left[-1]
        return await real(self)

    monkeypatch.setattr(Opening, "close", close)
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content())
    await (await ann.start()).seed(package)
    async with asyncio.timeout(20):
        transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
        await transfer.wait()
    status = transfer.status()
    assert asked["index"] == 1
    assert bob.store.verify_many(package.index.unique_chunks) == set()
    assert left == [status.wasted]
    assert 0 < status.wasted <= AHEAD + 1024
    assert status.received == status.total + status.wasted


async def test_a_giver_that_sends_no_index_first_is_asked_for_it(node, content, asked, monkeypatch) -> None:
    monkeypatch.setattr(chunkserver, "AHEAD_HEADER", "X-Not-Known")
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=500_000))
    await (await ann.start()).seed(package)
    async with asyncio.timeout(20):
        await (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()])).wait()
    assert asked == {"index": 1, "info": 1, "chunks": 2}


async def test_an_index_that_broke_off_goes_on_by_itself(node, content, monkeypatch) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=2_000_000))
    await (await ann.start()).seed(package)
    kept: list[int] = []
    real = MetadataClient.index

    async def broken(self: MetadataClient, peer: PeerCandidate, *rest: Any) -> ParsedInfo:
        if kept:
            return await real(self, peer, *rest)
        _, answer, partial = rest
        partial.etag, partial.body = answer.etag, bytearray(await answer.content.readexactly(answer.index // 2))
        kept.append(len(partial.body))
        raise UnavailableError("the connection broke")

    monkeypatch.setattr(MetadataClient, "index", broken)
    seen: list[tuple[str, int]] = []
    info = MetadataClient.info

    async def told(self: MetadataClient, peer: PeerCandidate, infohash: str, partial: Partial) -> ParsedInfo:
        seen.append((partial.etag, len(partial.body)))
        return await info(self, peer, infohash, partial)

    monkeypatch.setattr(MetadataClient, "info", told)
    async with asyncio.timeout(20):
        await (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()])).wait()
    assert seen == [(etag_of(pack_info(package.info, short=True)), kept[0])]
    assert bob.store.verify_many(package.index.unique_chunks) == set()


async def test_an_index_longer_than_any_is_not_read(node, content, asked, monkeypatch) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=100_000, files=1))
    await (await ann.start()).seed(package)
    monkeypatch.setattr("peat_p2p.swarm.metadata.MAX_INFO_BYTES", 10)
    transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
    async with asyncio.timeout(10):
        while not transfer.status().bad_peers:
            await asyncio.sleep(0.02)
    transfer.cancel()


async def test_a_fetch_that_is_cancelled_leaves_no_stream_open(node, content, monkeypatch) -> None:
    closed: list[Opening] = []
    real = Opening.close

    async def close(self: Opening) -> None:
        closed.append(self)
        await real(self)

    monkeypatch.setattr(Opening, "close", close)
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=2_000_000))
    await (await ann.start(upload_limit=100_000)).seed(package)
    transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
    async with asyncio.timeout(20):
        while not transfer.status().received:
            await asyncio.sleep(0.02)
        transfer.cancel()
        while not transfer.ended:
            await asyncio.sleep(0.02)
    assert closed
    with pytest.raises(UnavailableError, match="closed"):
        closed[0].go_on(opening.Opening._later(closed[0]))


@pytest.mark.parametrize(
    ("told", "count"), [("262144", 262_144), ("9" * 5000, 0), ("-1", 0), ("\u00b2", 0), ("", 0), ("ten", 0)]
)
def test_a_header_that_tells_no_number_tells_nothing(told: str, count: int) -> None:
    assert bytes_told({"X": told}, "X") == count


async def test_a_peer_that_tells_a_nonsensical_length_is_asked_for_the_index_alone(
    node, content, asked, monkeypatch
) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=500_000))
    await (await ann.start()).seed(package)
    real = MetadataClient._ask

    @asynccontextmanager
    async def lying(self: MetadataClient, *args: Any, **rest: Any) -> AsyncIterator[Any]:
        async with real(self, *args, **rest) as response:
            lies = chunkserver.INDEX_HEADER in response.headers
            headers = {chunkserver.INDEX_HEADER: "9" * 5000}
            yield SimpleNamespace(content=response.content, headers=headers) if lies else response

    monkeypatch.setattr(MetadataClient, "_ask", lying)
    async with asyncio.timeout(20):
        await (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()])).wait()
    assert asked == {"index": 1, "info": 1, "chunks": 2}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20), st.integers(0, 1000))
def test_as_many_first_chunks_as_fit(sizes: list[int], most: int) -> None:
    ask = opening_ask(sizes, most)
    assert ask.first == ask.offset == 0
    assert ask.count == 1 or sum(sizes[: ask.count]) <= most
    assert ask.count == len(sizes) or sum(sizes[: ask.count + 1]) > most


def test_what_a_stream_gives_unasked_is_asked_of_nobody() -> None:
    asks = Asks([10] * 6)
    asks.want(range(6))
    asks.open("a")
    asks.open("b")
    assert asks.waits(range(4))
    asks.begin("a", range(4))
    assert not asks.waits([3])
    assert asks.next("b", 0.0) == [4, 5]
    assert asks.owes("a") == 40
    assert asks.close("a") == [3, 2, 1, 0]
    assert asks.waits(range(4))
