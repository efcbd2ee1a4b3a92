import asyncio
import contextlib

import pytest

from peat_p2p.client import Gap, SidecarClient, SnapshotComplete
from peat_p2p.core.address import HostPort, PeerAddress


@pytest.fixture(autouse=True)
async def limit():
    async with asyncio.timeout(40):
        yield


async def until(check):
    while not await check():
        await asyncio.sleep(0.02)


@pytest.fixture
async def pair(run):
    async with run("n1") as a, run("n2") as b, SidecarClient(a.api) as one, SidecarClient(b.api) as two:
        yield (a, one), (b, two)


async def test_two_sidecars_meet_by_connect_peer_and_share_documents(pair):
    (a, one), (b, two) = pair
    await one.put_document("things", "before", {"n": 1})
    await one.connect_peer(b.endpoint_id, [b.mesh])
    await until(lambda: _connected(one))
    (peer,) = await one.list_peers()
    assert (peer.endpoint_id, peer.connected) == (b.endpoint_id, True)
    assert b.mesh in peer.addresses
    await until(lambda: _has(two, "before"))
    await two.put_document("things", "after", {"n": 2})
    await until(lambda: _has(one, "after"))
    await two.delete_document("things", "before")
    await until(lambda: _lacks(one, "before"))
    (link,) = await two.list_links()
    assert (link.endpoint_id, link.node_id, link.state) == (a.endpoint_id, "n1", "connected")
    stats = await one.get_sync_stats()
    assert stats.connected_peers == 1
    assert stats.bytes_sent > 0
    assert stats.bytes_received > 0


async def test_changes_of_others_reach_subscribers(pair):
    (_, one), (b, two) = pair
    await one.connect_peer(b.endpoint_id, [b.mesh])
    await until(lambda: _connected(one))
    async with contextlib.aclosing(one.subscribe(["things"])) as events:
        while not isinstance(await anext(events), SnapshotComplete):
            pass
        await two.put_document("things", "a", {"n": 1})
        event = await anext(events)
        assert not isinstance(event, Gap)
        assert (event.doc_id, event.document) == ("a", {"n": 1})


async def test_stop_sync_really_stops_and_start_sync_catches_up(pair):
    (_, one), (b, two) = pair
    await one.connect_peer(b.endpoint_id, [b.mesh])
    await until(lambda: _connected(one))
    await one.stop_sync()
    assert not (await one.get_status()).sync_active
    await until(lambda: _alone(two))
    await two.put_document("things", "meanwhile", {"n": 1})
    await asyncio.sleep(0.3)
    assert await one.get_document("things", "meanwhile") is None
    await one.start_sync()
    await until(lambda: _has(one, "meanwhile"))


async def test_a_disconnected_peer_stays_away(pair):
    (_, one), (b, two) = pair
    await one.connect_peer(b.endpoint_id, [b.mesh])
    await until(lambda: _connected(one))
    await one.disconnect_peer(b.endpoint_id)
    await until(lambda: _alone(two))
    await two.put_document("things", "x", {"n": 1})
    await asyncio.sleep(0.3)
    assert await one.get_document("things", "x") is None


async def test_a_configured_peer_is_called_until_it_answers(run, node_config, formation):
    node_config("n2")
    ids = {node.node_id: node.endpoint_id for node in formation.nodes()}
    async with run("n2") as b, SidecarClient(b.api) as two:
        await two.put_document("things", "a", {"n": 1})
        peers = (PeerAddress(ids["n2"], HostPort.parse(b.mesh)),)
        async with run("n1", node={"peers": peers}) as a, SidecarClient(a.api) as one:
            await until(lambda: _has(one, "a"))


async def _connected(client):
    return (await client.get_status()).connected_peers == 1


async def _alone(client):
    return (await client.get_status()).connected_peers == 0


async def _has(client, doc_id):
    return await client.get_document("things", doc_id) is not None


async def _lacks(client, doc_id):
    return await client.get_document("things", doc_id) is None
