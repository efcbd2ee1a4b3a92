"""Holders of another version give the chunks they share; offers cost nothing until somebody joins."""

from __future__ import annotations

import asyncio

import pytest

from peat_p2p.core.clock import ManualClock
from peat_p2p.core.errors import InvalidInputError, NotFoundError, UntrustedError
from peat_p2p.swarm import seeds as seeds_module
from peat_p2p.swarm.metadata import MetadataClient, Partial
from peat_p2p.swarm.peers import StaticPeers
from peat_p2p.swarm.seeds import Seeds
from peat_p2p.swarm.status import TransferState


def two_versions(one, content):
    source = content(size=3_000_000, files=4)
    first = one.publish(source, "1.0")
    (source / "file-0").write_bytes(b"changed" * 1000)
    return first, one.publish(source, "2.0")


async def test_a_holder_of_the_old_version_gives_the_shared_chunks_of_the_new(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    first, second = two_versions(ann, content)
    engine = await ann.start()
    await engine.seed(first)
    await engine.seed(second)
    shared = set(first.index.unique_chunks) & set(second.index.unique_chunks)
    async with asyncio.timeout(30):
        await (await cat.start()).fetch(first.envelope, StaticPeers([ann.candidate()])).wait()
        engine.set_limits(0, 400_000)
        transfer = (await bob.start()).fetch(
            second.envelope, StaticPeers([ann.candidate(), cat.candidate(kin=True, complete=False)])
        )
        await transfer.wait()
    by = {source.agent_id: source.bytes for source in transfer.status().sources}
    assert by["cat"] > sum(chunk.size for chunk in shared) * 0.6
    assert cat.store.package(second.manifest_digest) is None
    assert cat.store.missing(second.index) == {c.hex for c in set(second.index.unique_chunks) - shared}


async def test_an_assist_is_refused_for_what_no_publisher_signed_and_is_nothing_where_nothing_is_shared(
    node, content
) -> None:
    ann, bob, mal = node("ann"), node("bob"), node("mal")
    package = ann.publish(content(size=200_000))
    forged = mal.publish(content(name="forged", size=200_000))
    await bob.start()
    async with MetadataClient(ann.credentials) as client:
        peer, infohash = bob.candidate(), package.manifest.infohash
        assert await client.join(peer, infohash) is None
        assert await client.assist(peer, infohash, package.envelope, package.info) == 0
        assert await client.join(peer, infohash) is None
        with pytest.raises(Exception, match="400"):
            await client.assist(peer, forged.manifest.infohash, forged.envelope, forged.info)
        with pytest.raises(Exception, match="400"):
            await client.assist(peer, "ab" * 32, package.envelope, package.info)


class Torrents:
    """Stands in for the session: remembers what was added."""

    def __init__(self) -> None:
        self.active: dict[str, Torrent] = {}

    def get(self, infohash):
        return self.active.get(infohash)

    def add(self, parsed, have):
        torrent = Torrent(parsed, have)
        self.active[parsed.meta.infohash] = torrent
        return torrent

    def remove(self, torrent) -> None:
        del self.active[torrent.parsed.meta.infohash]


class Torrent:
    def __init__(self, parsed, have) -> None:
        self.parsed, self.have, self.peers, self.unwanted = parsed, have, 0, set()

    def count(self) -> int:
        return sum(self.have)

    def connected(self) -> bool:
        return self.peers > 0

    def want(self, pieces, priority) -> None:
        assert priority == 0
        self.unwanted |= set(pieces)


@pytest.fixture
def seeds(node, content):
    ann, clock, torrents = node("ann"), ManualClock(), Torrents()
    ann.clock = clock
    made = Seeds(ann.store, torrents, ann.credentials.anchor, ann.credentials.ca_pem, ann_clock(ann, clock))
    return ann, made, torrents, clock


def ann_clock(ann, clock):
    clock.now = ann.credentials.identity.not_before + 3600
    return clock


async def test_a_torrent_is_there_only_while_it_is_used(seeds, content, monkeypatch) -> None:
    ann, made, torrents, clock = seeds
    package = ann.publish(content(size=200_000))
    infohash = package.manifest.infohash
    assert await made.join(infohash) is None
    made.offer(package.manifest_digest, infohash)
    assert torrents.active == {}
    assert await made.info(infohash) == package.info
    assert await made.join(infohash) == len(package.index.unique_chunks)
    monkeypatch.setattr(seeds_module, "_LOOK_S", 0.001)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tending = tasks.create_task(made.tend())
        torrents.active[infohash].peers = 1
        clock.advance(seeds_module.IDLE_S + 1)
        await asyncio.sleep(0.05)
        assert infohash in torrents.active
        torrents.active[infohash].peers = 0
        await asyncio.sleep(0.05)
        assert infohash in torrents.active
        clock.advance(seeds_module.IDLE_S + 1)
        while torrents.active:
            await asyncio.sleep(0.005)
        tending.cancel()
    assert await made.join(infohash) == len(package.index.unique_chunks)
    made.withdraw(package.manifest_digest)
    assert torrents.active == {}
    assert await made.join(infohash) is None


async def test_a_rotten_chunk_is_not_promised_again(seeds, content) -> None:
    ann, made, torrents, _clock = seeds
    package = ann.publish(content(size=200_000))
    infohash = package.manifest.infohash
    made.offer(package.manifest_digest, infohash)
    await made.join(infohash)
    chunk = package.index.unique_chunks[2]
    assert await made.suspect(chunk.hex)
    assert all(torrents.active[infohash].have)
    path = ann.store.chunk_path(chunk.hex)
    path.chmod(0o644)
    path.write_bytes(bytes(chunk.size))
    assert not await made.suspect(chunk.hex)
    assert [n for n, have in enumerate(torrents.active[infohash].have) if not have] == [2]
    assert torrents.active[infohash].unwanted == {2}
    with pytest.raises(NotFoundError):
        await made.suspect("00" * 32)


async def test_bad_assists_are_named(seeds, node, content) -> None:
    _ann, made, _torrents, _clock = seeds
    package = node("bob").publish(content(size=200_000))
    forged = node("mal").publish(content(name="forged", size=200_000))
    with pytest.raises(UntrustedError):
        await made.assist(forged.manifest.infohash, forged.envelope, forged.info)
    with pytest.raises(InvalidInputError, match="another infohash"):
        await made.assist("ab" * 32, package.envelope, package.info)
    with pytest.raises(UntrustedError):
        await made.assist(package.manifest.infohash, package.envelope, package.info[:-1])


async def test_metadata_of_an_offer_is_given_without_a_torrent(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=200_000))
    engine = await ann.start()
    await engine.seed(package)
    async with MetadataClient(bob.credentials) as client:
        assert (await client.info(ann.candidate(), package.manifest.infohash, Partial())).meta.info == package.info
        assert await client.join(ann.candidate(), package.manifest.infohash) == len(package.index.unique_chunks)


async def test_a_lesser_transfer_yields_and_goes_on_and_wastes_nothing(node, content) -> None:
    from peat_p2p.swarm.status import Priority

    ann, bob = node("ann"), node("bob")
    large = ann.publish(content(name="large", size=4_000_000), "1.0")
    urgent = ann.publish(content(name="urgent", size=500_000, seed=2), "2.0")
    # Slow, because what is asked for before (up to three seconds of the link) still comes.
    engine = await ann.start(upload_limit=700_000)
    await engine.seed(large)
    await engine.seed(urgent)
    source = StaticPeers([ann.candidate()])
    bobs = await bob.start()
    async with asyncio.timeout(60):
        background = bobs.fetch(large.envelope, source, priority=Priority.BACKGROUND)
        async for status in background.updates():
            if status.state is TransferState.FETCHING and status.verified > 300_000:
                break
        critical = bobs.fetch(urgent.envelope, source, priority=Priority.MISSION_CRITICAL)
        seen = set()
        while not critical.ended:
            held = background.status()
            seen.add((held.state, held.reason))
            await asyncio.sleep(0.02)
        await critical.wait()
        assert (TransferState.WAITING, "yields to app:2.0, which matters more") in seen
        assert held.verified < held.total
        await background.wait()
    assert background.status().wasted + critical.status().wasted <= 40_000
