"""The agent's copy of the fleet's documents, and the candidates it gives the swarm."""

from __future__ import annotations

import asyncio
import ipaddress
from types import SimpleNamespace
from typing import Any

import pytest

from peat_p2p.agent.documents import announcement
from peat_p2p.agent.facts import Facts
from peat_p2p.agent.peers import FleetPeers, advertised, choose_address, own_networks
from peat_p2p.agent.reports import Put, ReportBook
from peat_p2p.agent.view import FleetView
from peat_p2p.content.manifest import Manifest, seal_manifest
from peat_p2p.content.store import PackageSummary
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import ManualClock, SystemClock
from peat_p2p.core.errors import NotFoundError, UntrustedError
from peat_p2p.fleet.heartbeat import Heartbeat
from peat_p2p.fleet.holdings import Holding, PullStatus
from peat_p2p.swarm.status import TransferState
from peat_p2p.trust.identity import Role


def manifest(version: str, arch: str = "any", created: int = 1, name: str = "app") -> Manifest:
    return Manifest(
        name=name,
        version=version,
        arch=arch,
        digest=f"blake3:{1:064x}",
        total_bytes=10,
        files=1,
        chunks=1,
        infohash=f"{2:064x}",
        created=created,
    )


class World:
    def __init__(self, fleet: Any) -> None:
        self.credentials = fleet.credentials("a1")
        self.plain = fleet.credentials("p1", Role.AGENT)
        self.view = FleetView("a1", self.credentials.anchor, SystemClock())

    def announce(self, what: Manifest, by: Any = None, **changes: Any) -> str:
        envelope, digest = seal_manifest(what, by or self.credentials)
        key, fields = announcement(what, digest, envelope)
        self.view.apply(key.collection, key.doc_id, {**fields, **changes})
        return digest

    def hold(self, agent: str, digest: str, status: int = PullStatus.COMPLETE, version: str = "1") -> str:
        holding = Holding(
            agent_id=agent, package="app", version=version, arch="any", manifest=digest, pull_status=status
        )
        self.view.apply("packages", holding.doc_id, holding.to_fields())
        return holding.doc_id

    def beat(self, agent: str, **more: Any) -> None:
        beat = Heartbeat(
            **{
                "agent_id": agent,
                "endpoint_id": "ab" * 32,
                "swarm": ("10.0.0.7:7000",),
                "metadata": ("10.0.0.7:7001",),
                "site": "s1",
                "last_seen": 5,
                **more,
            }
        )
        self.view.apply("platforms", agent, beat.to_fields())


@pytest.fixture
def world(fleet: Any) -> World:
    return World(fleet)


def test_the_newest_version_is_meant_when_none_is_said(world: World) -> None:
    world.announce(manifest("1.10"))
    world.announce(manifest("1.9"))
    again = world.announce(manifest("1.10", created=9))
    assert world.view.resolve("app", "", "", "amd64").digest == again
    assert world.view.resolve("app", "1.9", "", "amd64").manifest.version == "1.9"


def test_own_architecture_by_either_name_then_any(world: World) -> None:
    world.announce(manifest("1", "x86_64"))
    world.announce(manifest("1", "arm64"))
    assert world.view.resolve("app", "1", "", "amd64").manifest.arch == "x86_64"
    assert world.view.resolve("app", "1", "arm64", "amd64").manifest.arch == "arm64"
    with pytest.raises(NotFoundError, match="published for arm64, x86_64, not for riscv64"):
        world.view.resolve("app", "1", "", "riscv64")


def test_what_a_document_claims_leads_nowhere_by_itself(world: World) -> None:
    world.announce(manifest("1", name="other"), name="app")  # claims to be app, is signed as other
    with pytest.raises(NotFoundError):
        world.view.resolve("app", "", "", "amd64")
    with pytest.raises(UntrustedError, match="publisher"):
        world.announce(manifest("2"), by=world.plain)
        world.view.resolve("app", "2", "", "amd64")
    digest = world.announce(manifest("3"))
    world.view.apply("manifests", "f" * 64, dict(world.view.get("manifests", digest[7:]) or {}))
    with pytest.raises(UntrustedError, match="holds another manifest"):
        world.view.manifest("f" * 64)
    assert [known.digest for known in world.view.manifests() if known.manifest.name == "app"] == [digest]


def test_a_manifest_that_is_mended_counts(world: World) -> None:
    digest = world.announce(manifest("1"), envelope={"payload": 3})
    with pytest.raises(UntrustedError):
        world.view.manifest(digest)
    world.announce(manifest("1"))
    assert world.view.manifest(digest).publisher == "a1"


def test_candidates_join_holdings_with_heartbeats(world: World) -> None:
    digest = world.announce(manifest("1"))
    for agent in ("a1", "a2", "a3", "a4", "a5"):
        world.hold(agent, digest)
    world.hold("a6", digest, PullStatus.PULLING)
    world.hold("a7", digest, PullStatus.FAILED)
    world.hold("a8", "blake3:" + "0" * 64)
    for agent in ("a1", "a2", "a6", "a7", "a8"):
        world.beat(agent)
    world.beat("a3", swarm=("nonsense", "10.0.0.8:1"), metadata=())
    world.beat("a4", swarm=())
    world.beat("a5", endpoint_id="short")
    found = {peer.agent_id: peer for peer in FleetPeers(world.view).candidates(digest)}
    assert found.pop("a8").kin
    assert set(found) == {"a2", "a3", "a6"}  # not itself, not those without address or identity, not who failed
    assert found["a2"].swarm == HostPort("10.0.0.7", 7000)
    assert found["a2"].metadata == HostPort("10.0.0.7", 7001)
    assert (found["a2"].site, found["a2"].complete, found["a2"].last_seen) == ("s1", True, 5.0)
    assert found["a3"].swarm == HostPort("10.0.0.8", 1)
    assert found["a3"].metadata is None
    assert not found["a6"].complete


def test_holders_of_another_version_come_after_as_kin(world: World) -> None:
    old, new = world.announce(manifest("1")), world.announce(manifest("2"))
    other = world.announce(manifest("3", arch="arm64"))
    world.hold("a2", old)
    world.hold("a3", new, version="2")
    world.hold("a3", old)
    holding = Holding(agent_id="a4", package="app", version="3", arch="arm64", manifest=other, pull_status=3)
    world.view.apply("packages", holding.doc_id, holding.to_fields())
    for agent in ("a2", "a3", "a4"):
        world.beat(agent)
    found = FleetPeers(world.view).candidates(new)
    assert [(peer.agent_id, peer.kin, peer.complete) for peer in found] == [("a3", False, True), ("a2", True, False)]


def test_a_site_is_shared_when_another_agent_has_told_its_heartbeat_from_there(world: World) -> None:
    peers, me = FleetPeers(world.view), "cd" * 32
    assert not peers.shared("s1", me)
    world.beat("a1", endpoint_id=me)
    assert not peers.shared("s1", me)
    world.beat("a2")
    assert peers.shared("s1", me)
    assert not peers.shared("s2", me)


async def test_waiting_for_a_change_ends_with_one(world: World) -> None:
    peers = FleetPeers(world.view)
    async with asyncio.TaskGroup() as group, asyncio.timeout(5):
        waiting = group.create_task(peers.wait_change())
        await asyncio.sleep(0)
        assert not waiting.done()
        world.beat("a2")


def test_a_snapshot_removes_what_it_does_not_show_and_not_before_its_end(world: World) -> None:
    digest = world.announce(manifest("1"))
    kept, gone = world.hold("a2", digest), world.hold("a3", digest)
    world.view.begin_snapshot()
    assert not world.view.synced
    assert len(world.view.holders(digest)) == 2  # still what was last known
    world.view.apply("packages", kept, dict(world.view.get("packages", kept) or {}))
    assert set(world.view.end_snapshot()) == {("packages", gone), ("manifests", digest[7:])}
    assert [holding.agent_id for holding in world.view.holders(digest)] == ["a2"]
    with pytest.raises(NotFoundError):
        world.view.resolve("app", "", "", "amd64")
    assert world.view.synced


def test_a_holding_that_changes_its_manifest_moves(world: World) -> None:
    one, two = world.announce(manifest("1")), world.announce(manifest("1", created=2))
    world.hold("a2", one)
    world.hold("a2", two)
    assert world.view.holders(one) == []
    assert [holding.agent_id for holding in world.view.holders(two)] == ["a2"]


def test_the_address_on_a_shared_network_comes_first() -> None:
    here = [ipaddress.ip_network("192.168.5.0/24")]
    addresses = [HostPort("127.0.0.1", 1), HostPort("10.0.0.1", 1), HostPort("192.168.5.9", 1), HostPort("name", 1)]
    assert choose_address(addresses, here) == HostPort("192.168.5.9", 1)
    assert choose_address(addresses, []) == HostPort("10.0.0.1", 1)
    assert choose_address(addresses[:1], here) == HostPort("127.0.0.1", 1)
    assert choose_address([], here) is None


def test_a_wildcard_is_advertised_as_the_addresses_of_the_machine() -> None:
    bound = HostPort("127.0.0.1", 7)
    assert advertised(bound) == [bound]
    for address in advertised(HostPort("0.0.0.0", 7)):
        assert address.port == 7
        assert address.host != "0.0.0.0"
    assert all(not network.is_loopback for network in own_networks())


def test_facts_are_told_once_and_suspects_are_named(fleet: Any, world: World) -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    facts = Facts(
        fleet.config("a1"),
        agent_id="a1",
        endpoint_id="ab" * 32,
        addresses=lambda: (HostPort("127.0.0.1", 1), HostPort("127.0.0.1", 2)),
        book=book,
        view=world.view,
        clock=ManualClock(),
        stopped=lambda: stopped,
    )
    stopped = ""

    def told() -> dict[str, Any]:
        writes = book.take(100)
        for write in writes:
            book.wrote(write)
        return {f"{w.key.collection}/{w.key.doc_id}": w.fields if isinstance(w, Put) else None for w in writes}

    app = manifest("1")
    facts.hold(PackageSummary(app, "blake3:aa", False, 5.0, 5.0))
    facts.tell([])
    first = told()
    assert first["packages/a1:app:1-any"]["manifest"] == "blake3:aa"
    assert "suspects" not in first["platforms/a1"]
    facts.tell([])
    assert told() == {}
    # A later package of the same name takes the document; when it goes, the earlier has it again.
    facts.hold(PackageSummary(app, "blake3:bb", False, 6.0, 6.0))
    facts.tell([])
    assert told()["packages/a1:app:1-any"] == {"manifest": "blake3:bb", "last_seen": 6}
    facts.unhold("blake3:bb")
    facts.tell([])
    assert told()["packages/a1:app:1-any"] == {"manifest": "blake3:aa", "last_seen": 5}
    facts.unhold("blake3:aa")
    facts.tell([])
    assert told() == {"packages/a1:app:1-any": None}
    status = SimpleNamespace(
        bad_peers=("m1",),
        suspects=(("m2", "gives nothing"),),
        verified=1,
        total=4,
        state=TransferState.WAITING,
        reason="no holder is in reach",
    )
    ticket: Any = SimpleNamespace(
        digest="blake3:cc", status=status, manifest=app, transfer=SimpleNamespace(status=lambda: status)
    )
    facts.tell([ticket])
    now = told()
    assert now["platforms/a1"]["suspects"] == ["m1", "m2"]
    assert (now["packages/a1:app:1-any"]["pull_status"], now["packages/a1:app:1-any"]["held_bytes"]) == (2, 2)
    assert now["packages/a1:app:1-any"]["waiting"] == "no holder is in reach"
    # What stops everything is told in its lasting words, and not again while nothing differs.
    stopped = "the budget of 1 GB per day is used up until 2026-01-02 00:00 UTC"
    for _ in range(2):
        facts.tell([ticket])
        assert told().get("packages/a1:app:1-any", {"waiting": stopped})["waiting"] == stopped
    # Complete, it waits for nothing, and the document that was merged does not go on saying so.
    facts.hold(PackageSummary(app, "blake3:cc", False, 7.0, 7.0))
    facts.tell([ticket])
    assert told()["packages/a1:app:1-any"]["waiting"] == ""
    facts.unhold("blake3:cc")
    facts.tell([])
    assert told() == {"packages/a1:app:1-any": None}
