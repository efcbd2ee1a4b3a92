"""Fetches by direct lines: holders on a short path, which here are neighbours of one site."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peat_p2p.content.store import ChunkStore
from peat_p2p.core.errors import ExhaustedError, UnavailableError
from peat_p2p.swarm import direct, directserver
from peat_p2p.swarm.asks import ANSWER, Ask, NotHeldError
from peat_p2p.swarm.direct import HELLO, DirectLine, Whole, exactly
from peat_p2p.swarm.directserver import DirectServer
from peat_p2p.swarm.engine import SwarmConfig, SwarmEngine
from peat_p2p.swarm.peers import StaticPeers
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.seeds import Seeds
from peat_p2p.swarm.torrents import Torrent
from peat_p2p.trust.credentials import NodeCredentials


@pytest.fixture(autouse=True)
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that torrents dialled."""
    found: list[str] = []
    real = Torrent.dial
    monkeypatch.setattr(Torrent, "dial", lambda self, to: (found.append(str(to)), real(self, to))[1])
    return found


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Givers take a while for each chunk."""
    real = Seeds.read
    monkeypatch.setattr(Seeds, "read", lambda self, chunk: (time.sleep(0.05), real(self, chunk))[1])


async def test_a_neighbour_gives_a_package_by_a_line_and_the_taker_seeds_it(node, content, dialled) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content())
    await (await ann.start(site="s")).seed(package)
    async with asyncio.timeout(20):
        transfer = (await bob.start(site="s")).fetch(package.envelope, StaticPeers([ann.candidate(site="s")]))
        await transfer.wait()
        status = transfer.status()
        assert (status.received, status.wasted, status.reused) == (status.total, 0, 0)
        assert [(source.agent_id, source.bytes) for source in status.sources] == [("ann", status.total)]
        assert bob.store.verify_many(package.index.unique_chunks) == set()
        assert dialled == []
        await ann.stop()
        # From another site, so by the torrent: it is made anew with all that came.
        await (await cat.start(site="t")).fetch(package.envelope, StaticPeers([bob.candidate(site="s")])).wait()
    assert cat.store.missing(package.index) == set()
    assert dialled


async def test_several_neighbours_share_the_work(node, content, slow_reads) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=6_000_000))
    await (await ann.start(site="s")).seed(package)
    async with asyncio.timeout(40):
        await (await bob.start(site="s")).fetch(package.envelope, StaticPeers([ann.candidate(site="s")])).wait()
        both = StaticPeers([ann.candidate(site="s"), bob.candidate(site="s")])
        transfer = (await cat.start(site="s")).fetch(package.envelope, both)
        await transfer.wait()
    by = {one.agent_id: one.bytes for one in transfer.status().sources}
    assert set(by) == {"ann", "bob"}
    assert min(by.values()) > package.index.unique_bytes // 10
    assert transfer.status().received == package.index.unique_bytes


@pytest.mark.parametrize("breaking", [1, 2], ids=["one of two lines", "both, so that the torrent is made anew"])
async def test_a_line_that_breaks_is_made_anew_and_loses_no_byte(
    node, content, slow_reads, monkeypatch, breaking
) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=4_000_000))
    await (await ann.start(site="s")).seed(package)
    lines: list[DirectLine] = []
    real = DirectLine.__init__
    monkeypatch.setattr(DirectLine, "__init__", lambda self, *a: (lines.append(self), real(self, *a))[1])
    monkeypatch.setattr("peat_p2p.swarm.ways._NO_TCP_S", 0.2)
    # While no line is up the torrent would be asked for blocks, some of them of a chunk that a line had begun.
    monkeypatch.setattr(Torrent, "dial", lambda *_: None)
    async with asyncio.timeout(40):
        transfer = (await bob.start(site="s")).fetch(package.envelope, StaticPeers([ann.candidate(site="s")]))
        async for status in transfer.updates():
            if status.verified:
                for line in lines[:breaking]:
                    assert line._socket is not None
                    socket.socket.shutdown(line._socket, socket.SHUT_RDWR)
                break
        await transfer.wait()
    assert len(lines) > 2
    status = transfer.status()
    assert bob.store.verify_many(package.index.unique_chunks) == set()
    assert status.received == status.total


async def test_a_path_that_turns_out_to_be_short_gets_a_line(node, content, dialled, slow_reads, monkeypatch) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=6_000_000))
    await (await ann.start(site="h")).seed(package)
    known = threading.Event()
    for name in ("far", "perhaps_far"):
        monkeypatch.setattr(Routes, name, lambda *_: not known.is_set())
    monkeypatch.setattr(Routes, "near", lambda *_: known.is_set())
    lines: list[DirectLine] = []
    real = DirectLine.__init__
    monkeypatch.setattr(DirectLine, "__init__", lambda self, *a: (lines.append(self), real(self, *a))[1])
    async with asyncio.timeout(30):
        transfer = (await bob.start(site="s")).fetch(package.envelope, StaticPeers([ann.candidate(site="h")]))
        while not transfer.status().verified:
            await asyncio.sleep(0.02)
        assert not lines
        known.set()
        await transfer.wait()
    assert lines
    assert not dialled
    status = transfer.status()
    assert status.received == status.total
    assert bob.store.verify_many(package.index.unique_chunks) == set()


async def test_where_bytes_are_counted_the_torrent_carries_them(node, content, dialled) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=500_000))
    for mine, theirs in (({"upload_limit": 5_000_000}, {}), ({}, {"outside_download_limit": 5_000_000})):
        dialled.clear()
        await (await ann.start(site="s", **mine)).seed(package)
        engine = await bob.start(site="s", **theirs)
        async with asyncio.timeout(20):
            await engine.fetch(package.envelope, StaticPeers([ann.candidate(site="s")])).wait()
        assert dialled
        await ann.stop()
        await bob.stop()
        bob.lose(package)


async def test_a_giver_that_knows_no_lines_gives_by_torrent(node, content, dialled, monkeypatch) -> None:
    monkeypatch.setattr(direct, "HELLO", b"y" * len(HELLO))
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=500_000))
    await (await ann.start(site="s")).seed(package)
    async with asyncio.timeout(20):
        await (await bob.start(site="s")).fetch(package.envelope, StaticPeers([ann.candidate(site="s")])).wait()
    assert dialled


async def test_when_others_come_the_torrent_goes_on_with_all_there_is(node, content, dialled, slow_reads) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=6_000_000))
    await (await ann.start(site="s")).seed(package)
    from_ann = StaticPeers([ann.candidate(site="s")])
    async with asyncio.timeout(40):
        first = (await bob.start(site="s")).fetch(package.envelope, from_ann)
        while not first.status().verified:
            await asyncio.sleep(0.02)
        assert not dialled
        await cat.start(site="t")
        everybody = StaticPeers(
            [ann.candidate(site="s"), bob.candidate(site="s", complete=False), cat.candidate(site="t", complete=False)]
        )
        from_ann.set(everybody.candidates(""))
        second = cat.engine.fetch(package.envelope, everybody)
        await first.wait()
        await second.wait()
    assert dialled
    for one in (bob, cat):
        assert one.store.verify_many(package.index.unique_chunks) == set()
    assert first.status().received <= first.status().total * 1.02


async def test_in_a_crowd_each_asks_for_its_share_and_the_rest_comes_from_the_others(
    node, content, dialled, slow_reads, monkeypatch
) -> None:
    monkeypatch.setattr(Routes, "near", lambda self, peer: peer.metadata is not None)
    ann, *others = node("ann"), node("bob"), node("cat"), node("dan")
    package = ann.publish(content(size=12_000_000))
    await (await ann.start(site="s")).seed(package)
    for one in others:
        await one.start(site=one.name)
    fetching = [one.candidate(site=one.name, complete=False) for one in others]
    async with asyncio.timeout(60):
        transfers = [
            one.engine.fetch(package.envelope, StaticPeers([ann.candidate(site="s"), *fetching])) for one in others
        ]
        for transfer in transfers:
            await transfer.wait()
    assert str(ann.candidate().swarm) not in dialled
    for one in others:
        assert one.store.verify_many(package.index.unique_chunks) == set()
    gave = sum(source.bytes for t in transfers for source in t.status().sources if source.agent_id == "ann")
    assert gave < package.index.unique_bytes * 1.5
    assert all(transfer.status().wasted < package.index.unique_bytes * 0.03 for transfer in transfers)


@pytest.fixture
async def site(node, content, monkeypatch):
    """A holder on a short path from another site, its package, three agents of one site, and how to have all fetch."""
    monkeypatch.setattr(Routes, "near", lambda self, peer: peer.metadata is not None)
    monkeypatch.setattr(Routes, "perhaps_far", lambda self, peer: False)
    ann, *three = node("ann"), node("bob"), node("cat"), node("dan")
    package = ann.publish(content(size=12_000_000))
    await (await ann.start(site="h")).seed(package)
    for one in three:
        await one.start(site="s")
    known = StaticPeers([ann.candidate(site="h"), *(one.candidate(site="s", complete=False) for one in three)])

    def fetch(who=tuple(three)):
        return [one.engine.fetch(package.envelope, known) for one in who]

    return ann, package, three, known, fetch


async def test_neighbours_bring_each_other_what_each_fetched_without_the_torrent(site, dialled, slow_reads) -> None:
    _, package, three, _, fetch = site
    async with asyncio.timeout(60):
        transfers = fetch()
        for transfer in transfers:
            await transfer.wait()
    assert dialled == []
    total = package.index.unique_bytes
    for one, transfer in zip(three, transfers, strict=True):
        assert one.store.verify_many(package.index.unique_chunks) == set()
        assert transfer.status().received == total
    from_ann = [sum(s.bytes for s in t.status().sources if s.agent_id == "ann") for t in transfers]
    assert sum(from_ann) < total * 1.1
    assert min(from_ann) > total / 6


async def test_a_neighbour_whose_bytes_are_counted_is_dealt_with_by_torrent(site, dialled, slow_reads) -> None:
    _, package, three, _, fetch = site
    three[0].engine.set_limits(50_000_000, 50_000_000)
    async with asyncio.timeout(60):
        for transfer in fetch():
            await transfer.wait()
    assert {str(one.candidate().swarm) for one in three} & set(dialled)
    for one in three:
        assert one.store.verify_many(package.index.unique_chunks) == set()


async def test_what_a_neighbour_that_is_gone_should_have_fetched_is_fetched_by_the_others(
    site, dialled, slow_reads
) -> None:
    _, package, three, _, fetch = site
    async with asyncio.timeout(60):
        first, *others = fetch()
        while first.status().verified < package.index.unique_bytes // 5:
            await asyncio.sleep(0.02)
        await three[0].stop()
        for transfer in others:
            await transfer.wait()
    for one, transfer in zip(three[1:], others, strict=True):
        assert one.store.verify_many(package.index.unique_chunks) == set()
        assert transfer.status().received <= package.index.unique_bytes * 1.05


@pytest.mark.parametrize("silent", [False, True], ids=["says at the line that it has not", "says nothing there"])
async def test_a_neighbour_that_claims_what_it_does_not_give_holds_nobody_up(site, monkeypatch, silent) -> None:
    _, package, three, _, fetch = site
    chunks = len(package.index.unique_chunks)
    with monkeypatch.context() as lying:
        lying.setattr(SwarmEngine, "_fetched_so_far", lambda *_: [True] * chunks)
        await _start_again(site, three[0])
    liar, real_give, over = three[0].engine, DirectServer._give, threading.Event()

    def give(self: DirectServer, tls: ssl.SSLSocket) -> None:
        if silent and self._source is liar._seeds:
            over.wait(60)
        else:
            real_give(self, tls)

    monkeypatch.setattr(DirectServer, "_give", give)
    monkeypatch.setattr("peat_p2p.swarm.feeds._TCP_STALL_S", 0.5)
    try:
        async with asyncio.timeout(60):
            for transfer in fetch(three[1:]):
                await transfer.wait()
    finally:
        over.set()
    for one in three[1:]:
        assert one.store.verify_many(package.index.unique_chunks) == set()


async def _start_again(site, one) -> None:
    _, _, three, known, _ = site
    await one.stop()
    await one.start(site="s")
    known.set([*known.candidates("")[:1], *(each.candidate(site="s", complete=False) for each in three)])


async def test_a_neighbour_that_was_away_for_a_moment_gives_again(site, dialled, slow_reads) -> None:
    _, package, three, _, fetch = site
    async with asyncio.timeout(60):
        first, *others = fetch()
        while first.status().verified < package.index.unique_bytes // 5:
            await asyncio.sleep(0.02)
        await _start_again(site, three[0])
        (again,) = fetch(three[:1])
        for transfer in (again, *others):
            await transfer.wait()
    assert again.status().reused + again.status().received <= package.index.unique_bytes * 1.1
    assert dialled == []


async def test_a_holder_afar_that_was_away_is_asked_again_though_neighbours_give(site, slow_reads, monkeypatch) -> None:
    ann, package, three, known, fetch = site
    for name in ("far", "perhaps_far"):
        monkeypatch.setattr(Routes, name, lambda _, peer: peer.site == "h")
    monkeypatch.setattr(Routes, "near", lambda _, peer: peer.site == "s")
    # Nor does the torrent help.
    monkeypatch.setattr(Torrent, "dial", lambda *_: None)
    async with asyncio.timeout(60):
        transfers = fetch()
        while transfers[0].status().verified < package.index.unique_bytes // 5:
            await asyncio.sleep(0.02)
        await ann.stop()
        await asyncio.sleep(1.0)
        await (await ann.start(site="h")).seed(package)
        known.set([ann.candidate(site="h"), *known.candidates("")[1:]])
        for transfer in transfers:
            await transfer.wait()
    for one in three:
        assert one.store.verify_many(package.index.unique_chunks) == set()
    assert all(transfer.status().received <= package.index.unique_bytes * 1.1 for transfer in transfers)


async def test_when_one_comes_who_needs_the_torrent_it_is_made_anew_with_all_there_is(
    site, node, dialled, slow_reads
) -> None:
    _, package, three, known, fetch = site
    eve = node("eve")
    async with asyncio.timeout(60):
        transfers = fetch()
        while transfers[0].status().verified < package.index.unique_bytes // 5:
            await asyncio.sleep(0.02)
        assert dialled == []
        await eve.start(site="e")
        known.set([*known.candidates(""), eve.candidate(site="e", complete=False)])
        for transfer in (*transfers, eve.engine.fetch(package.envelope, known)):
            await transfer.wait()
    assert dialled
    for one in (*three, eve):
        assert one.store.verify_many(package.index.unique_chunks) == set()
    assert all(transfer.status().received <= package.index.unique_bytes * 1.1 for transfer in transfers)


async def test_a_rotten_chunk_is_blamed_and_not_entered(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=2_000_000))
    chunk = package.index.unique_chunks[3]
    await (await ann.start(site="s")).seed(package)
    async with asyncio.timeout(30):
        await (await cat.start(site="s")).fetch(package.envelope, StaticPeers([ann.candidate(site="s")])).wait()
        path = ann.store.chunk_path(chunk.hex)
        times = path.stat()
        path.write_bytes(bytes(chunk.size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        source = StaticPeers([ann.candidate(site="s")])
        transfer = (await bob.start(site="s")).fetch(package.envelope, source)
        while not transfer.status().bad_peers:
            await asyncio.sleep(0.05)
        assert not bob.store.has(chunk.hex)
        source.set([ann.candidate(site="s"), cat.candidate(site="s")])
        await transfer.wait()
    assert transfer.status().bad_peers == ("ann",)
    assert bob.store.verify_many(package.index.unique_chunks) == set()


async def test_a_full_disk_ends_the_fetch_and_says_so(node, content, monkeypatch) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=500_000))
    await (await ann.start(site="s")).seed(package)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ChunkStore, "lay", full)
    async with asyncio.timeout(20):
        with pytest.raises(ExhaustedError, match="No space left"):
            await (await bob.start(site="s")).fetch(package.envelope, StaticPeers([ann.candidate(site="s")])).wait()


async def test_a_foreign_node_gets_nothing(node, content, formation_dir) -> None:
    ann = node("ann")
    package = ann.publish(content(size=100_000, files=1))
    await (await ann.start()).seed(package)
    line = _line(ann, NodeCredentials.load(formation_dir / "mal"), package)
    line.ask(Ask(0, 1).encode(), 1, {})
    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError):
            await line.next()
    line.close()


async def test_a_package_that_is_not_given_is_refused(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=100_000, files=1))
    await ann.start()
    line = _line(ann, bob.credentials, package)
    async with asyncio.timeout(10):
        with pytest.raises(NotHeldError):
            await line.next()
    line.close()


async def test_asks_for_what_there_is_not_end_the_line_and_no_thread_stays(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=100_000, files=1))
    await (await ann.start()).seed(package)
    for asks in (Ask(0, 60_000), Ask(10**6, 1), Ask(0, 1, 10**6)):
        line = _line(ann, bob.credentials, package)
        line.ask(asks.encode(), asks.count, {})
        async with asyncio.timeout(10):
            with pytest.raises(UnavailableError):
                await line.next()
        line.close()
    idle = _line(ann, bob.credentials, package)
    await asyncio.sleep(0.1)
    idle.close()
    async with asyncio.timeout(5):
        while any(thread.name.startswith(("give chunks", "chunks from")) for thread in threading.enumerate()):
            await asyncio.sleep(0.02)


async def test_a_giver_that_sends_another_chunk_than_asked_for_is_left(node, content, monkeypatch) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=2_000_000))
    await (await ann.start(site="s")).seed(package)
    monkeypatch.setattr(directserver, "ANSWER", _Next(len(package.index.unique_chunks)))
    async with asyncio.timeout(20):
        # By the line every chunk is another's, which is taken for damage; the torrent gives it all.
        transfer = (await bob.start(site="s")).fetch(package.envelope, StaticPeers([ann.candidate(site="s")]))
        await transfer.wait()
    assert bob.store.verify_many(package.index.unique_chunks) == set()


class _Next:
    """Packs an answer with the number of the chunk after."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks

    def pack(self, number: int, length: int) -> bytes:
        return ANSWER.pack((number + 1) % self._chunks, length)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=st.sampled_from([b"", HELLO, HELLO[:5], b"\x16\x03\x01"]), noise=st.binary(max_size=200))
def test_noise_at_the_port_is_survived(noisy, head: bytes, noise: bytes) -> None:
    with socket.create_connection(noisy, 5) as sock:
        sock.settimeout(10)
        try:
            sock.sendall(head + noise)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        except OSError as error:
            assert error.errno in {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}  # the giver has closed at once


@pytest.fixture
def noisy(formation_dir, tmp_path):
    """The port of a giver that runs in another thread, and works still at the end."""
    credentials = NodeCredentials.load(formation_dir / "ann")
    ready: list[tuple[str, int]] = []
    stop, up = threading.Event(), threading.Event()

    async def serve() -> None:
        with ChunkStore.open(tmp_path / "noisy") as store:
            async with SwarmEngine.open(store, credentials, SwarmConfig()) as engine:
                ready.append((engine.metadata_address.host, engine.metadata_address.port))
                up.set()
                while not stop.is_set():
                    await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert up.wait(10)
    yield ready[0]
    context = NodeCredentials.load(formation_dir / "bob").client_context()
    with socket.create_connection(ready[0], 5) as plain:
        plain.sendall(HELLO)
        with context.wrap_socket(plain) as tls:
            tls.sendall(bytes(32))
            assert bytes(exactly(tls, 1)) == direct.REFUSED
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def _line(giver, taker: NodeCredentials, package, put: direct.Put = lambda *_: None) -> DirectLine:
    address, context = giver.engine.metadata_address, taker.client_context()
    return DirectLine(address, context, package.manifest.infohash, package.index.unique_chunks, put, giver.name)


async def test_a_chunk_goes_on_where_it_broke_off(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=300_000, files=1))
    await (await ann.start()).seed(package)
    chunk = package.index.unique_chunks[1]
    half = bytearray(ann.store.read_chunk(chunk)[: chunk.size // 2])
    got: list[bytes] = []
    line = _line(ann, bob.credentials, package, lambda _piece, data: got.append(bytes(data)))
    line.ask(Ask(1, 1, len(half)).encode(), 1, {1: half})
    async with asyncio.timeout(10):
        while not isinstance(event := await line.next(), Whole):
            assert event.count == chunk.size - len(half)
    assert event == Whole(1, good=True, resumed=True)
    assert got == [ann.store.read_chunk(chunk)]
    line.close()
