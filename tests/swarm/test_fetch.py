"""Fetches on loopback with real libtorrent: the ways a package comes to be, and the ways it does not."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from peat_p2p.content.materialize import materialize
from peat_p2p.content.tree import verify_tree
from peat_p2p.core.errors import ExhaustedError, PeatError, UnavailableError, UntrustedError
from peat_p2p.swarm.peers import StaticPeers
from peat_p2p.swarm.status import TransferCancelledError, TransferState


async def test_one_seed_to_one_agent(node, content, tmp_path: Path) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content())
    await (await ann.start()).seed(package)
    engine = await bob.start()
    async with asyncio.timeout(20):
        transfer = engine.fetch(package.envelope, StaticPeers([ann.candidate(), bob.candidate()]), name="app")
        seen = [status async for status in transfer.updates()]
        got = await transfer.wait()
    assert seen[-1].state is TransferState.COMPLETE
    assert all(0 <= status.verified <= status.total for status in seen)
    assert engine.health(ann.credentials.identity.endpoint_id).failures == 0
    assert engine.health("nobody") is None
    status = transfer.status()
    assert status.verified == status.total == package.index.unique_bytes
    assert (status.received, status.wasted, status.reused) == (status.total, 0, 0)
    assert [(source.agent_id, source.bytes) for source in status.sources] == [("ann", status.total)]
    assert bob.store.missing(got.index) == set()
    materialize(bob.store, got.index, tmp_path / "out")
    assert verify_tree(package.index, tmp_path / "out") == []
    assert bob.store.package(package.manifest_digest) == package


async def test_what_was_fetched_is_seeded_on(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content())
    await (await ann.start()).seed(package)
    source = StaticPeers([ann.candidate()])
    async with asyncio.timeout(20):
        await (await bob.start()).fetch(package.envelope, source).wait()
        await ann.stop()
        transfer = (await cat.start()).fetch(package.envelope, StaticPeers([bob.candidate()]))
        await transfer.wait()
    assert [source.agent_id for source in transfer.status().sources] == ["bob"]
    assert cat.store.missing(package.index) == set()


async def test_two_agents_share_what_a_slow_seed_gives(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=4_000_000))
    await (await ann.start(upload_limit=1_500_000)).seed(package)
    await bob.start()
    await cat.start()
    everyone = StaticPeers([ann.candidate(), bob.candidate(), cat.candidate()])
    async with asyncio.timeout(30):
        transfers = [one.engine.fetch(package.envelope, everyone) for one in (bob, cat)]
        for transfer in transfers:
            await transfer.wait()
    between = sum(
        source.bytes
        for transfer in transfers
        for source in transfer.status().sources
        if source.agent_id in ("bob", "cat")
    )
    assert between > package.index.unique_bytes // 4
    # libtorrent asks for the last blocks twice; of so small a package, all that is in flight at first are last blocks.
    assert sum(transfer.status().wasted for transfer in transfers) <= package.index.unique_bytes // 2


async def test_no_holder_waits_and_goes_on_when_one_appears(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=500_000))
    await (await ann.start()).seed(package)
    engine = await bob.start()
    source = StaticPeers()
    transfer = engine.fetch(package.envelope, source)
    async with asyncio.timeout(20):
        async for status in transfer.updates():
            if status.state is TransferState.WAITING:
                assert status.reason == "no agent known here holds it; waiting for one to appear"
                break
        source.set([ann.candidate()])
        await transfer.wait()


async def test_a_dead_holder_is_named_and_does_not_keep_others_waiting(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=500_000))
    await (await ann.start()).seed(package)
    await cat.start()
    dead = cat.candidate()
    await cat.stop()
    engine = await bob.start()
    source = StaticPeers([dead])
    transfer = engine.fetch(package.envelope, source)
    async with asyncio.timeout(20):
        async for status in transfer.updates():
            if "none of 1 known holders answers" in status.reason:
                break
        source.set([dead, ann.candidate()])
        await transfer.wait()


async def test_the_seed_dies_half_way_and_another_goes_on(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    source = content(size=4_000_000)
    package = ann.publish(source)
    await (await ann.start(upload_limit=1_500_000)).seed(package)
    everyone = StaticPeers([ann.candidate()])
    transfer = (await bob.start()).fetch(package.envelope, everyone)
    async with asyncio.timeout(30):
        async for status in transfer.updates():
            if status.verified > status.total // 4 and status.state is TransferState.FETCHING:
                break
        await ann.stop()
        async for status in transfer.updates():
            if status.state is TransferState.WAITING:
                break
        verified = transfer.status().verified
        cat_engine = await cat.start()
        await cat_engine.fetch(package.envelope, StaticPeers([await _restarted(ann, package)])).wait()
        await ann.stop()
        everyone.set([cat.candidate()])
        await transfer.wait()
    by = {one.agent_id: one.bytes for one in transfer.status().sources}
    assert by["cat"] <= package.index.unique_bytes - verified + 300_000
    assert set(by) == {"ann", "cat"}


async def _restarted(one, package):
    await (await one.start()).seed(package)
    return one.candidate()


async def test_a_restarted_agent_keeps_what_it_had(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=4_000_000))
    await (await ann.start(upload_limit=2_000_000)).seed(package)
    source = StaticPeers([ann.candidate()])
    async with asyncio.timeout(30):
        transfer = (await bob.start()).fetch(package.envelope, source)
        async for status in transfer.updates():
            if status.state is TransferState.FETCHING and status.verified > status.total // 3:
                break
        await bob.stop()
        with pytest.raises(TransferCancelledError):
            await transfer.wait()
        before = transfer.status()
        again = (await bob.start()).fetch(package.envelope, source)
        await again.wait()
    status = again.status()
    assert before.verified >= status.total // 3
    assert status.received <= status.total + 8 * 65536
    assert status.received >= status.total
    assert status.wasted == status.received - status.total
    assert status.reused == 0


async def test_chunks_shared_with_another_version_are_not_fetched(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    source = content(size=3_000_000, files=4)
    first = ann.publish(source, "1.0")
    (source / "file-0").write_bytes(b"changed" * 1000)
    second = ann.publish(source, "2.0")
    engine = await ann.start()
    await engine.seed(first)
    await engine.seed(second)
    peers = StaticPeers([ann.candidate()])
    shared = set(second.index.unique_chunks) & set(first.index.unique_chunks)
    async with asyncio.timeout(20):
        bobs = await bob.start()
        await bobs.fetch(first.envelope, peers).wait()
        transfer = bobs.fetch(second.envelope, peers)
        await transfer.wait()
    assert transfer.status().reused == sum(chunk.size for chunk in shared) > 2_000_000
    assert transfer.status().received == second.index.unique_bytes - transfer.status().reused


async def test_two_packages_fetched_at_once_share_the_work(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    source = content(size=3_000_000, files=4)
    first = ann.publish(source, "1.0")
    (source / "file-0").write_bytes(b"changed" * 1000)
    second = ann.publish(source, "2.0")
    engine = await ann.start(upload_limit=4_000_000)
    await engine.seed(first)
    await engine.seed(second)
    peers = StaticPeers([ann.candidate()])
    async with asyncio.timeout(20):
        bobs = await bob.start()
        transfers = [bobs.fetch(one.envelope, peers) for one in (first, second)]
        for transfer in transfers:
            await transfer.wait()
    distinct = {*first.index.unique_chunks, *second.index.unique_chunks}
    assert sum(one.status().received for one in transfers) == sum(chunk.size for chunk in distinct)


async def test_a_foreign_formation_gives_and_gets_nothing(node, content) -> None:
    ann, bob, mal = node("ann"), node("bob"), node("mal")
    package = ann.publish(content(size=300_000))
    await (await ann.start()).seed(package)
    engine = await bob.start()
    malengine = await mal.start()
    with pytest.raises(UntrustedError):
        malengine.fetch(package.envelope, StaticPeers([ann.candidate()]))
    forged = mal.publish(content(name="forged", size=300_000))
    with pytest.raises(UntrustedError):
        engine.fetch(forged.envelope, StaticPeers([mal.candidate()]))
    transfer = engine.fetch(package.envelope, StaticPeers([mal.candidate()]))
    async with asyncio.timeout(20):
        async for status in transfer.updates():
            if "none of 1 known holders answers" in status.reason:
                break
    assert transfer.status().received == 0


async def test_a_manifest_about_something_else_is_refused(node, content) -> None:
    ann = node("ann")
    package = ann.publish(content(size=100_000))
    engine = await ann.start()
    with pytest.raises(UntrustedError, match="version"):
        engine.fetch(package.envelope, StaticPeers(), name="app", version="2.0")


async def test_a_rotten_chunk_of_the_seed_is_found_named_and_dropped_by_the_seed(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=1_000_000))
    await (await cat.start()).fetch(package.envelope, StaticPeers([await _restarted(ann, package)])).wait()
    chunk = package.index.unique_chunks[3]
    _rot(ann.store.chunk_path(chunk.hex))
    source = StaticPeers([ann.candidate()])
    transfer = (await bob.start()).fetch(package.envelope, source)
    async with asyncio.timeout(60):
        async for status in transfer.updates():
            if status.verified == status.total - chunk.size and status.bad_peers:
                break
        assert transfer.status().bad_peers == ("ann",)
        while ann.store.has(chunk.hex):  # it was told, looked, and dropped it
            await asyncio.sleep(0.05)
        assert not bob.store.has(chunk.hex)
        source.set([ann.candidate(), cat.candidate()])
        await transfer.wait()
    assert transfer.status().wasted < 200_000
    assert bob.store.missing(package.index) == set()


def _rot(path: Path) -> None:
    """Change a file behind the back of whoever looks at its size and time alone."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


async def test_a_full_disk_is_told_before_the_transfer(node, content, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=300_000))
    await (await ann.start()).seed(package)
    engine = await bob.start()
    monkeypatch.setattr("peat_p2p.content.store.free_bytes", lambda path: 1 << 20)
    transfer = engine.fetch(package.envelope, StaticPeers([ann.candidate()]))
    with pytest.raises(ExhaustedError, match=r"app:1\.0"):
        async with asyncio.timeout(10):
            await transfer.wait()
    assert transfer.status().state is TransferState.FAILED
    assert transfer.status().received == 0


async def test_a_disk_that_fills_on_the_way_ends_the_transfer_with_the_way_out(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=3_000_000))
    await (await ann.start(upload_limit=1_000_000)).seed(package)
    transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
    async with asyncio.timeout(20):
        async for status in transfer.updates():
            if status.state is TransferState.FETCHING:
                break
        transfer.torrent.failure = (errno.ENOSPC, "No space left on device")
        with pytest.raises(ExhaustedError, match=r"app:1\.0 stopped: No space left on device; free space under"):
            await transfer.wait()
    assert transfer.status().state is TransferState.FAILED


async def test_cancel_keeps_verified_chunks_and_unseed_stops_serving(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=3_000_000))
    engine = await ann.start(upload_limit=1_500_000)
    await engine.seed(package)
    bobs = await bob.start()
    transfer = bobs.fetch(package.envelope, StaticPeers([ann.candidate()]))
    async with asyncio.timeout(20):
        async for status in transfer.updates():
            if status.state is TransferState.FETCHING and status.verified > 300_000:
                break
        transfer.cancel()
        with pytest.raises(TransferCancelledError):
            await transfer.wait()
    held = package.index.unique_bytes - sum(
        chunk.size for chunk in package.index.unique_chunks if chunk.hex in bob.store.missing(package.index)
    )
    assert held == transfer.status().verified > 300_000
    await engine.unseed(package.manifest_digest)
    late = (await cat.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
    async with asyncio.timeout(20):
        async for status in late.updates():
            if "does not hold it" in status.reason:
                break


async def test_a_package_without_content_needs_no_torrent(node, tmp_path: Path) -> None:
    ann, bob = node("ann"), node("bob")
    (tmp_path / "empty" / "dir").mkdir(parents=True)
    package = ann.publish(tmp_path / "empty")
    await (await ann.start()).seed(package)
    async with asyncio.timeout(10):
        got = await (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()])).wait()
    assert got.index == package.index


async def test_a_port_in_use_is_said(node) -> None:
    ann, bob = node("ann"), node("bob")
    engine = await ann.start()
    with pytest.raises(UnavailableError, match="swarm cannot listen"):
        await bob.start(listen=engine.swarm_address)
    with pytest.raises(UnavailableError, match="metadata cannot be served"):
        await bob.start(metadata_listen=engine.metadata_address)


async def test_stopping_takes_less_than_five_seconds(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content())
    await (await ann.start(upload_limit=500_000)).seed(package)
    transfer = (await bob.start()).fetch(package.envelope, StaticPeers([ann.candidate()]))
    async with asyncio.timeout(20):
        async for status in transfer.updates():
            if status.received:
                break
    async with asyncio.timeout(5):
        await bob.stop()
        await ann.stop()
    with pytest.raises(PeatError):
        await transfer.wait()
