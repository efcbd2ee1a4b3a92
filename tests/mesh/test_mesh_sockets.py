"""Whole nodes over real TLS sockets on loopback."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from peat_p2p.core.address import HostPort, PeerAddress
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.errors import ConfigError, ExhaustedError, InvalidInputError, UnavailableError
from peat_p2p.mesh.service import Mesh
from peat_p2p.mesh.types import MeshConfig
from peat_p2p.trust.credentials import peer_identity
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.revocation import Revocation, seal_revocation


def connected(node: Any, count: int = 1) -> bool:
    return node.mesh.stats.connected_peers >= count


async def test_two_nodes_replicate_both_ways_and_deletes_cross(fleet: Any, until: Any) -> None:
    async with fleet.node("a", topology=False) as a, fleet.node("b", a.peer, topology=False) as b:
        await a.put("commands", "one", '{"n": 1}')
        await b.put("platforms", "b", '{"n": 12345678901234567890}')
        await until(lambda: b.text("commands", "one") and a.text("platforms", "b"))
        assert "12345678901234567890" in a.text("platforms", "b")
        await b.replica.delete("commands", "one")
        await until(lambda: a.text("commands", "one") is None)
        state = b.mesh.peers()[0]
        assert state.connected
        assert state.node_id == "a"
        assert state.learned == ("configured",)
        assert state.bytes_sent > 0
        assert a.mesh.peers()[0].learned == ("incoming",)


async def test_a_chain_of_four_relays(fleet: Any, until: Any) -> None:
    async with (
        fleet.node("a", topology=False) as a,
        fleet.node("b", a.peer, topology=False) as b,
        fleet.node("c", b.peer, topology=False) as c,
        fleet.node("d", c.peer, topology=False) as d,
    ):
        await a.put("commands", "from-a", '{"n": 1}')
        await d.put("deployments", "from-d", '{"x": "y"}')
        await until(lambda: d.text("commands", "from-a") and a.text("deployments", "from-d"))
        assert [peer.node_id for peer in a.mesh.peers()] == ["b"]


async def test_a_restarted_node_catches_up_and_keeps_what_it_had(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a:
        async with fleet.node("b", a.peer) as b:
            await a.put("packages", "p", '{"v": 1}')
            await until(lambda: b.text("packages", "p"))
            epoch = b.replica.epoch
        await a.put("packages", "p", '{"v": 2}')
        await a.put("packages", "q", '{"v": 1}')
        async with fleet.node("b", a.peer) as b:
            assert b.replica.epoch == epoch
            assert b.text("packages", "p") is not None
            await until(lambda: b.text("packages", "q") and "2" in b.text("packages", "p"))


async def test_a_peer_that_listens_later_is_reached(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a:
        address = a.mesh.address
    peer = PeerAddress(a.endpoint_id, address)
    async with fleet.node("b", peer) as b:
        await until(lambda: b.mesh.peers()[0].reason)
        assert not b.mesh.peers()[0].connected
        async with fleet.node("a", listen=address):
            await until(lambda: connected(b))


async def test_another_formation_is_refused_with_a_reason(fleet: Any, until: Any, tmp_path: Any) -> None:
    foreign = Formation.init(tmp_path / "foreign", "other")
    async with fleet.node("a") as a, fleet.node("x", a.peer, formation=foreign) as x:
        await a.put("commands", "secret", '{"n": 1}')
        await until(lambda: x.mesh.peers()[0].reason)
        assert "formation" in x.mesh.peers()[0].reason
        await asyncio.sleep(0.3)
        assert not x.mesh.peers()[0].connected
        assert a.mesh.stats.connected_peers == 0
        assert x.text("commands", "secret") is None


async def test_a_peer_with_another_endpoint_id_is_refused(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a, fleet.node("b") as b, fleet.node("c") as c:
        c.mesh.connect_peer(a.endpoint_id, [str(b.mesh.address)])
        await until(lambda: c.mesh.peers()[0].reason)
        reason = c.mesh.peers()[0].reason
        assert "the node there is b" in reason
        assert a.endpoint_id in reason
        assert not c.mesh.peers()[0].connected
        c.mesh.connect_peer(a.endpoint_id, [str(a.mesh.address)])
        await until(lambda: connected(c))


async def test_stop_sync_really_stops_and_start_catches_up(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a, fleet.node("b", a.peer) as b:
        await until(lambda: connected(b))
        await a.mesh.stop_sync()
        assert not a.mesh.sync_active
        await until(lambda: b.mesh.stats.connected_peers == 0)
        await a.put("commands", "while-stopped", '{"n": 1}')
        await asyncio.sleep(1.2)
        assert b.text("commands", "while-stopped") is None
        assert "stopped" in b.mesh.peers()[0].reason
        await a.mesh.start_sync()
        await until(lambda: b.text("commands", "while-stopped"))


async def test_disconnect_keeps_a_peer_away_until_connect(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a, fleet.node("b", a.peer) as b:
        await until(lambda: connected(a) and connected(b))
        assert a.mesh.disconnect_peer(b.endpoint_id)
        await until(lambda: not a.mesh.peers() and not connected(b))
        await asyncio.sleep(1.0)
        assert not connected(a)
        a.mesh.connect_peer(b.endpoint_id, [str(b.mesh.address)])
        await until(lambda: connected(a) and connected(b))


async def test_two_nodes_that_dial_each_other_keep_one_link(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a, fleet.node("b") as b:
        a.mesh.connect_peer(b.endpoint_id, [str(b.mesh.address)])
        b.mesh.connect_peer(a.endpoint_id, [str(a.mesh.address)])
        await until(lambda: connected(a) and connected(b))
        await asyncio.sleep(1.0)
        assert len(a.mesh._speaking) == len(b.mesh._speaking) == 1
        smaller = a if a.endpoint_id < b.endpoint_id else b
        assert next(iter(smaller.mesh._speaking)).dialled
        await a.put("commands", "x", '{"n": 1}')
        await until(lambda: b.text("commands", "x"))


async def test_a_connection_killed_in_the_midst_of_a_transfer(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a, fleet.node("b", a.peer) as b:
        await until(lambda: connected(b))
        async with asyncio.TaskGroup() as group:
            for number in range(150):
                group.create_task(a.put("deployments", f"d{number}", '{"text": "%s"}' % ("x" * 500)))
        for _ in range(5):
            await asyncio.sleep(0.05)
            for link in list(b.mesh._speaking):
                link.stream.abort()
        await until(lambda: len(b.replica.ids("deployments")) == 150, 20)


async def test_a_black_holed_peer_times_out(fleet: Any, until: Any) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with fleet.node("a") as a, fleet.node("b", handshake_timeout=0.3) as b:
        b.mesh.connect_peer(a.endpoint_id, [f"127.0.0.1:{port}"])
        await until(lambda: b.mesh.peers()[0].reason)
        assert "no answer" in b.mesh.peers()[0].reason
    server.close()


async def test_garbage_on_the_port_harms_nobody(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a:
        for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100)):
            reader, writer = await asyncio.open_connection(a.mesh.address.host, a.mesh.address.port)
            writer.write(garbage)
            writer.write_eof()
            async with asyncio.timeout(5):
                await reader.read()
            writer.close()
        async with fleet.node("b", a.peer) as b:
            await until(lambda: connected(b))


async def test_bad_input_is_named(fleet: Any) -> None:
    async with fleet.node("a") as a:
        with pytest.raises(ConfigError, match="64 lower-case hex"):
            a.mesh.connect_peer("nonsense", ["127.0.0.1:1"])
        with pytest.raises(ConfigError, match="HOST:PORT"):
            a.mesh.connect_peer("0" * 64, ["127.0.0.1"])
        with pytest.raises(InvalidInputError, match="at least one address"):
            a.mesh.connect_peer("0" * 64, [])
        with pytest.raises(InvalidInputError, match="itself"):
            a.mesh.connect_peer(a.endpoint_id, ["127.0.0.1:1"])
        with pytest.raises(UnavailableError, match="cannot listen"):
            async with Mesh.open(a.replica, a.credentials, MeshConfig(a.mesh.address, mdns=False), SystemClock()):
                pass


async def test_nodes_find_each_other_by_multicast_on_loopback(fleet: Any, until: Any, tmp_path: Any) -> None:
    foreign = Formation.init(tmp_path / "foreign", "other")
    async with (
        fleet.node("a", mdns=True) as a,
        fleet.node("b", mdns=True) as b,
        fleet.node("x", mdns=True, formation=foreign) as x,
    ):
        await until(lambda: connected(a) and connected(b), 15)
        assert a.mesh.peers()[0].endpoint_id == b.endpoint_id
        assert "mdns" in a.mesh.peers()[0].learned + b.mesh.peers()[0].learned
        assert not x.mesh.peers()


async def test_listening_on_every_address_advertises_none_of_loopback(fleet: Any) -> None:
    async with fleet.node("a", listen=HostPort("0.0.0.0", 0)) as a:
        assert a.mesh.endpoint_addr.startswith(a.endpoint_id + "@")
        assert "0.0.0.0" not in a.mesh.endpoint_addr


async def test_nodes_that_only_knew_a_dead_hub_find_each_other(fleet: Any, until: Any) -> None:
    async with AsyncExitStack() as edges:
        async with fleet.node("hub", site="base") as hub:
            one = await edges.enter_async_context(fleet.node("one", hub.peer, site="x"))
            two = await edges.enter_async_context(fleet.node("two", hub.peer, site="y"))
            await until(lambda: len(two.replica.read_reserved("_sidecars")) == 3)
            await until(lambda: len(one.replica.read_reserved("_sidecars")) == 3)
        await until(lambda: any(p.node_id == "two" and p.connected for p in one.mesh.peers()))
        await one.put("commands", "x", '{"n": 1}')
        await until(lambda: two.text("commands", "x"))
        assert "topology" in {name for node in (one, two) for p in node.mesh.peers() for name in p.learned}


async def test_a_revoked_node_loses_its_links_and_gets_none(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a, fleet.node("b", a.peer) as b, fleet.node("c", a.peer) as c:
        await until(lambda: connected(b) and connected(c) and connected(a, 2))
        revocation = Revocation.of_endpoint(b.endpoint_id, reason="stolen", created_at=int(time.time()))
        await c.put("revocations", revocation.doc_id, json.dumps(seal_revocation(c.credentials, revocation)))
        await until(lambda: b.mesh.stats.connected_peers == 0)
        await asyncio.sleep(1.5)
        assert b.mesh.stats.connected_peers == 0
        assert "revoked" in next(p.reason for p in b.mesh.peers() if p.endpoint_id == a.endpoint_id)
        assert connected(a) and connected(c)


async def test_an_optional_link_is_refused_by_a_node_with_enough(fleet: Any, until: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("peat_p2p.mesh.service.MAX_LINKS", 1)
    async with (
        fleet.node("a") as a,
        fleet.node("b", a.peer) as b,
        fleet.node("c", a.peer) as c,
    ):
        await until(lambda: connected(a, 2) and connected(b) and connected(c))
        await asyncio.sleep(1.5)
        assert b.mesh.stats.connected_peers == c.mesh.stats.connected_peers == 1, "a dialled peer is not refused"


async def test_a_node_that_cannot_write_pauses_instead_of_linking_again_and_again(
    fleet: Any, until: Any, monkeypatch: Any
) -> None:
    async with fleet.node("a") as a, fleet.node("b", a.peer) as b:
        await until(lambda: connected(a) and connected(b))
        began: list[float] = []

        async def full(updates: Any, source: str, cursors: Any = ()) -> list[Any]:
            if updates:
                began.append(time.monotonic())
                raise ExhaustedError("no space left to write documents")
            return []

        monkeypatch.setattr(b.mesh._sink, "apply", full)
        await a.put("commands", "x", '{"n": 1}')
        await until(lambda: began)
        await asyncio.sleep(2.5)
        assert len(began) == 1
        assert any("no space left" in peer.reason for peer in b.mesh.peers())


async def test_a_change_of_the_network_ends_every_wait(fleet: Any, until: Any) -> None:
    async with fleet.node("a") as a:
        address = a.mesh.address
        gone = a.peer
    async with fleet.node("b", gone) as b:
        await until(lambda: b.mesh.peers()[0].reason)
        target = b.mesh._dialer.get(gone.endpoint_id)
        target.failures, target.next_attempt = 20, time.monotonic() + 1000.0
        async with fleet.node("a", listen=address) as a:
            await asyncio.sleep(1.0)
            assert not connected(b)
            b.mesh.network_changed()
            await until(lambda: connected(b) and connected(a), 3)


async def test_a_certificate_of_no_role_gets_no_link(fleet: Any, until: Any, monkeypatch: Any) -> None:
    """A formation of this version issues none, and a role that is not known here counts as none."""

    def as_seen(*seen: Any) -> Any:
        identity = peer_identity(*seen)
        return dataclasses.replace(identity, roles=frozenset()) if identity.node_id == "idler" else identity

    monkeypatch.setattr("peat_p2p.mesh.door.peer_identity", as_seen)
    async with fleet.node("a") as a, fleet.node("idler", a.peer) as idler:
        await until(lambda: idler.mesh.peers()[0].reason)
        assert "no role" in idler.mesh.peers()[0].reason
        assert not connected(a)
