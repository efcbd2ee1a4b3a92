"""Agents with real stores and a real swarm, beside a sidecar in memory."""

from __future__ import annotations

import asyncio
import filecmp
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peat_p2p.core.errors import NotFoundError, UntrustedError
from peat_p2p.fleet.commands import CommandStatus
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role
from peat_p2p.trust.revocation import Revocation, seal_revocation


def quiet(*_: object) -> None:
    pass


def same(left: Path, right: Path) -> bool:
    compared = filecmp.dircmp(left, right)
    names = [path.name for path in left.iterdir() if path.is_file()]
    _, mismatch, errors = filecmp.cmpfiles(left, right, names, shallow=False)
    return not (compared.left_only or compared.right_only or mismatch or errors)


async def test_publish_announces_and_a_pull_command_brings_it_over(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    source = package()
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        published = await one.publish(source, "app", "1.0", "any", quiet)
        assert await one.announced(published.manifest_digest)
        await fleet.order(fleet.command("c1", "a2", package="app", version="1.0"))
        await until(lambda: fleet.sidecar.get("receipts", "c1:a2").get("status") == CommandStatus.COMPLETED)
        assert fleet.sidecar.get("commands", "c1")["status"] == CommandStatus.COMPLETED
        holding = fleet.sidecar.get("packages", "a2:app:1.0-any")
        assert holding["pull_status"] == 3
        assert holding["held_bytes"] == holding["total_bytes"] == published.manifest.total_bytes
        assert holding["manifest"] == published.manifest_digest
        assert "verified" in fleet.sidecar.get("receipts", "c1:a2")["message"]
        async with two.unpacking(fleet.root / "out") as unpacking:
            await unpacking.finish(two.store.package(published.manifest_digest))
    assert same(source, fleet.root / "out")


async def test_heartbeats_say_where_and_send_only_what_changed(fleet: Any, until: Any) -> None:
    async with fleet.agent("a1", arch="amd64") as agent:
        await until(lambda: len(fleet.sidecar.puts) >= 3)
        beat = fleet.sidecar.get("platforms", "a1")
        assert beat["agent_id"] == "a1"
        assert beat["platform_type"] == "uds-remote-agent"
        assert beat["architecture"] == "amd64"
        assert beat["site"] == "s1"
        assert beat["swarm"]["swarm"] == [str(agent.engine.swarm_address)]
        first, *later = [fields for collection, _, fields in fleet.sidecar.puts if collection == "platforms"]
        assert set(first) > {"workloads", "version", "endpoint_id"}
        # What it knows nothing about is others' to say.
        assert not set(first) & {"name", "labels", "k8s_version", "k8s_node_status", "zarf_version", "run_mode"}
        assert all(set(fields) <= {"last_seen"} for fields in later)


async def test_an_operators_word_on_an_agents_document_stands(fleet: Any, until: Any) -> None:
    async with fleet.agent("a1", run_mode="edge") as agent:
        await until(lambda: fleet.sidecar.get("platforms", "a1").get("run_mode") == "edge")
        await fleet.sidecar.put_document("platforms", "a1", {"run_mode": "drill", "name": "Alpha"})
        seen = fleet.sidecar.get("platforms", "a1")["last_seen"]
        await until(lambda: fleet.sidecar.get("platforms", "a1")["last_seen"] > seen + 1)
        assert agent.book.synced
        assert fleet.sidecar.get("platforms", "a1")["run_mode"] == "drill"
        assert fleet.sidecar.get("platforms", "a1")["name"] == "Alpha"


async def test_deploy_switches_and_reports_at_once(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1") as agent:
        for version in ("1.0", "2.0"):
            await agent.publish(package(int(version[0])), "app", version, "any", quiet)
            await fleet.order(fleet.command(f"d{version}", "a1", "deploy", package="app", version=version))
            await until(lambda v=version: fleet.sidecar.get("deployments", "a1:app").get("version") == v)
        current = agent.config.deployments_root / "app" / "current"
        assert same(package(2, 300_001).parent / "p2-300000", current)
        assert current.readlink().name.startswith("2.0-")
        await until(lambda: fleet.sidecar.get("receipts", "d2.0:a1").get("status") == CommandStatus.COMPLETED)
        await until(
            lambda: (
                fleet.sidecar.get("platforms", "a1")["workloads"]
                == [{"name": "app", "version": "2.0", "status": "deployed"}]
            )
        )


async def test_a_command_waits_for_its_package_and_goes_on(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2"):
        await fleet.order(fleet.command("c1", "a2", package="app"))
        await until(lambda: "is not known here" in fleet.sidecar.get("receipts", "c1:a2").get("message", ""))
        assert fleet.sidecar.get("commands", "c1")["status"] == CommandStatus.EXECUTING
        await one.publish(package(), "app", "1.0", "any", quiet)
        await until(lambda: fleet.sidecar.get("commands", "c1")["status"] == CommandStatus.COMPLETED)


async def test_a_command_without_a_holder_waits_and_says_so(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    source = package()
    async with fleet.agent("a1") as one:
        await one.publish(source, "app", "1.0", "any", quiet)
        await one.announced(one.facts.held()[0].manifest_digest)
    await fleet.sidecar.delete_document("packages", "a1:app:1.0-any")
    async with fleet.agent("a2"):
        await fleet.order(fleet.command("c1", "a2", package="app", version="1.0"))
        await until(lambda: "no agent known here holds it" in fleet.sidecar.get("receipts", "c1:a2").get("message", ""))
        async with fleet.agent("a1"):  # it holds the package and says so again
            await until(lambda: fleet.sidecar.get("commands", "c1")["status"] == CommandStatus.COMPLETED)


async def test_bad_commands_fail_with_their_reason(
    fleet: Any, until: Any, formation: Formation, tmp_path: Path
) -> None:
    foreign = Formation.init(tmp_path / "other", "other")
    foreign.issue("mallory", [Role.HUB], tmp_path / "mallory")
    from peat_p2p.trust.credentials import NodeCredentials

    mallory = NodeCredentials.load(tmp_path / "mallory")
    plain = fleet.credentials("edge", Role.AGENT)
    async with fleet.agent("a1"):
        await fleet.order(fleet.command("untrusted", "a1", package="app"), by=mallory)
        await fleet.order(fleet.command("norole", "a1", package="app"), by=plain)
        await fleet.order(fleet.command("unknown", "a1", "reboot"))
        await fleet.order(fleet.command("expired", "a1", package="app", expires_at=1000))
        await fleet.order(fleet.command("nothing", "a1"))
        await fleet.sidecar.put_document(
            "commands", "unsigned", {"target_id": "a1", "command_type": "pull", "payload_json": '{"package":"app"}'}
        )
        await fleet.order(fleet.command("tampered", "a2", package="app"))
        await fleet.sidecar.put_document("commands", "tampered", {"target_id": "a1"})
        for command_id, word in {
            "untrusted": "refused",
            "norole": "may not order",
            "unknown": "'reboot'",
            "expired": "expired",
            "nothing": "names no package",
            "unsigned": "envelope",
            "tampered": "signed for a2",
        }.items():
            await until(lambda i=command_id: fleet.sidecar.get("commands", i).get("status") == CommandStatus.FAILED)
            assert word in fleet.sidecar.get("receipts", f"{command_id}:a1")["message"]


async def test_a_payload_changed_in_the_document_does_not_count(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        await one.publish(package(1), "good", "1.0", "any", quiet)
        await one.publish(package(2), "evil", "1.0", "any", quiet)
        await fleet.order(fleet.command("c1", "a2", package="good"))
        await fleet.sidecar.put_document("commands", "c1", {"payload_json": '{"package":"evil"}'})
        await until(lambda: fleet.sidecar.get("receipts", "c1:a2").get("status") == CommandStatus.COMPLETED)
        assert [summary.manifest.name for summary in two.facts.held()] == ["good"]


async def test_everyone_and_a_site_are_addressed(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2", site="s2"), fleet.agent("a3", site="s3"):
        await one.publish(package(1), "app", "1.0", "any", quiet)
        await fleet.order(fleet.command("site", "site:s2", package="app"))
        await until(lambda: fleet.sidecar.get("receipts", "site:a2").get("status") == CommandStatus.COMPLETED)
        await fleet.order(fleet.command("all", "*", package="app"))
        for agent in ("a1", "a2", "a3"):
            await until(
                lambda a=agent: fleet.sidecar.get("receipts", f"all:{a}").get("status") == CommandStatus.COMPLETED
            )
        assert not fleet.sidecar.get("receipts", "site:a1")
        assert not fleet.sidecar.get("receipts", "site:a3")
        assert fleet.sidecar.get("commands", "all")["status"] == CommandStatus.PENDING  # not one agent's to say


async def test_a_command_is_done_once_across_restarts(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1") as one:
        await one.publish(package(1), "app", "1.0", "any", quiet)
        await fleet.order(fleet.command("c1", "a1", "deploy", package="app"))
        await until(lambda: fleet.sidecar.get("commands", "c1")["status"] == CommandStatus.COMPLETED)
        deployed_at = one.facts.in_force()[0].deployed_at
        receipt = fleet.sidecar.get("receipts", "c1:a1")
    fleet.sidecar.puts.clear()
    async with fleet.agent("a1") as one:
        await until(lambda: one.view.synced and one.book.synced)
        await asyncio.sleep(0.4)
        assert [r.status for r in one.runner.records()] == [CommandStatus.COMPLETED]
        assert one.facts.in_force()[0].deployed_at == deployed_at
        assert fleet.sidecar.get("receipts", "c1:a1") == receipt
        assert {(c, d) for c, d, _ in fleet.sidecar.puts} == {("platforms", "a1")}  # nothing else is news


async def test_a_withdrawn_command_stops_and_its_receipt_goes(fleet: Any, until: Any) -> None:
    async with fleet.agent("a1") as agent:
        await fleet.order(fleet.command("c1", "a1", package="app"))
        await until(lambda: fleet.sidecar.get("receipts", "c1:a1"))
        await fleet.sidecar.delete_document("commands", "c1")
        await until(lambda: not fleet.sidecar.get("receipts", "c1:a1"))
        assert agent.runner.records() == []
        await asyncio.sleep(0.1)
        assert not fleet.sidecar.get("commands", "c1")  # its status did not bring it back


async def test_without_sidecar_known_packages_are_pulled_and_told_later(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        await until(lambda: any(two.view.holders(published.manifest_digest)))
        fleet.sidecar.stop()
        await until(lambda: not two.view.synced)
        ticket = two.pull(two.resolve("app", "1.0", ""), "test")
        async with asyncio.timeout(60):
            await ticket.wait()
        assert not fleet.sidecar.get("packages", "a2:app:1.0-any")
        fleet.sidecar.documents.clear()  # and the sidecar lost its data
        fleet.sidecar.puts.clear()
        fleet.sidecar.start()
        await until(lambda: fleet.sidecar.get("packages", "a2:app:1.0-any").get("pull_status") == 3)
        await until(lambda: fleet.sidecar.get("packages", "a1:app:1.0-any"))
        await until(lambda: fleet.sidecar.get("manifests", published.manifest_digest[7:]).get("name") == "app")
        await until(lambda: fleet.sidecar.get("platforms", "a1").get("endpoint_id"))


async def test_an_agent_starts_and_seeds_with_no_sidecar_at_all(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    async with fleet.agent("a1") as one:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        assert await one.announced(published.manifest_digest)
    other = type(fleet.sidecar)()
    other.documents.update({key: fields for key, fields in fleet.sidecar.documents.items() if key[0] != "platforms"})
    fleet.sidecar.stop()
    async with fleet.agent("a1") as one, fleet.agent("a2", sidecar=other) as two:
        assert [s.manifest.reference for s in one.facts.held()] == ["app:1.0"]
        with pytest.raises(NotFoundError):
            one.resolve("other", "", "")
        assert one.resolve("app", "", "").digest == published.manifest_digest
        await other.put_document("platforms", "a1", one.facts.heartbeat())
        await until(lambda: two.view.synced)
        async with asyncio.timeout(60):
            await two.pull(two.resolve("app", "", ""), "test").wait()


async def test_a_pull_goes_on_after_a_restart_with_what_it_had(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    source = package(1, 1_500_000)
    async with fleet.agent("a1", upload_limit=2_500_000) as one:
        published = await one.publish(source, "app", "1.0", "any", quiet)
        async with fleet.agent("a2") as two:
            await fleet.order(fleet.command("c1", "a2", package="app"))
            await until(lambda: (s := two.status_of(published.manifest_digest)) is not None and s.verified > 1_500_000)
            had = two.status_of(published.manifest_digest).verified
        async with fleet.agent("a2") as two:
            await until(lambda: two.status_of(published.manifest_digest) is not None)
            await until(lambda: fleet.sidecar.get("commands", "c1")["status"] == CommandStatus.COMPLETED, 60)
            transfer = two.engine.transfers()[0].status()
            assert transfer.total == 6_000_000
            assert transfer.received < 6_000_000 + 1_500_000
            assert had > 1_500_000
        assert not list((fleet.root / "data/a2/agent/transfers").glob("*.json"))


async def test_a_manifest_from_outside_is_not_acted_on(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        await one.announced(published.manifest_digest)
        doc_id = published.manifest_digest[7:]
        envelope = dict(fleet.sidecar.get("manifests", doc_id)["envelope"])
        envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
        await fleet.sidecar.put_document("manifests", "0" * 64, {"name": "fake", "version": "9", "envelope": envelope})
        await until(lambda: two.view.get("manifests", "0" * 64) is not None)
        with pytest.raises(UntrustedError, match="fake"):
            two.resolve("fake", "", "")
        assert two.resolve("app", "", "").digest == published.manifest_digest
        # A command waits: that a bad copy is there does not prove that no good one will come.
        await fleet.order(fleet.command("c1", "a2", package="fake"))
        await until(lambda: "not to be trusted" in fleet.sidecar.get("receipts", "c1:a2").get("message", ""))
        assert fleet.sidecar.get("commands", "c1")["status"] == CommandStatus.EXECUTING
        # One that pins the manifest of another package never will be right.
        await fleet.order(fleet.command("c2", "a2", package="other", manifest=published.manifest_digest))
        await until(lambda: fleet.sidecar.get("commands", "c2")["status"] == CommandStatus.FAILED)
        assert "is about app:1.0" in fleet.sidecar.get("receipts", "c2:a2")["message"]


async def test_what_transfers_cost_is_told_after_a_restart(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        await until(lambda: any(two.view.holders(published.manifest_digest)))
        await two.pull(two.resolve("app", "", ""), "test").wait()
        [before] = two.transfers.history.all()
        assert before.status.received >= published.manifest.total_bytes
        await two.pull(two.resolve("app", "", ""), "again").wait()  # costs nothing, and hides nothing
        assert two.transfers.history.all() == [before]
    async with fleet.agent("a2") as two:
        assert two.transfers.history.all() == [before]


async def test_a_revoked_package_is_dropped_not_pulled_and_flagged(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    hub = fleet.credentials("hub", Role.HUB)
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        kept = await one.publish(package(2), "other", "1.0", "any", quiet)
        await fleet.order(fleet.command("c1", "a2", "deploy", package="app"))
        await until(lambda: fleet.sidecar.get("receipts", "c1:a2").get("status") == CommandStatus.COMPLETED)
        revocation = Revocation.of_package(published.manifest_digest, reason="bad build", created_at=int(time.time()))
        await fleet.sidecar.put_document("revocations", revocation.doc_id, seal_revocation(hub, revocation))
        await until(lambda: not fleet.sidecar.get("packages", "a1:app:1.0-any"))
        await until(lambda: not fleet.sidecar.get("packages", "a2:app:1.0-any"))
        assert [s.manifest_digest for s in one.facts.held()] == [kept.manifest_digest]
        assert two.store.stat().chunks == 0
        await until(lambda: fleet.sidecar.get("deployments", "a2:app")["status"] == "revoked")
        assert fleet.sidecar.get("platforms", "a2")["workloads"][0]["status"] == "revoked"
        with pytest.raises(UntrustedError, match="bad build"):
            two.resolve("app", "1.0", "")
        await fleet.order(fleet.command("c2", "a2", package="app", version="1.0"))
        await until(lambda: fleet.sidecar.get("receipts", "c2:a2").get("status") == CommandStatus.FAILED)
        assert "bad build" in fleet.sidecar.get("receipts", "c2:a2")["message"]


async def test_a_revoked_node_gives_no_orders_and_publishes_nothing(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    hub, lost = fleet.credentials("hub", Role.HUB), fleet.credentials("lost", Role.HUB)
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        await one.publish(package(1), "app", "1.0", "any", quiet)
        for endpoint in (lost.identity.endpoint_id, fleet.credentials("a1").identity.endpoint_id):
            revocation = Revocation.of_endpoint(endpoint, reason="captured", created_at=int(time.time()))
            await fleet.sidecar.put_document("revocations", revocation.doc_id, seal_revocation(hub, revocation))
        await fleet.order(fleet.command("c1", "a2", package="app"), by=lost)
        await until(lambda: fleet.sidecar.get("receipts", "c1:a2").get("status") == CommandStatus.FAILED)
        assert "captured" in fleet.sidecar.get("receipts", "c1:a2")["message"]
        with pytest.raises(UntrustedError, match="captured"):
            two.resolve("app", "", "")


async def test_a_revocation_ends_a_pull_that_is_under_way(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    hub = fleet.credentials("hub", Role.HUB)
    async with fleet.agent("a1", upload_limit=500_000) as one, fleet.agent("a2") as two:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        await fleet.order(fleet.command("c1", "a2", package="app"))
        await until(lambda: (s := two.status_of(published.manifest_digest)) is not None and s.verified > 0)
        revocation = Revocation.of_package(published.manifest_digest, reason="bad build", created_at=int(time.time()))
        await fleet.sidecar.put_document("revocations", revocation.doc_id, seal_revocation(hub, revocation))
        await until(lambda: fleet.sidecar.get("receipts", "c1:a2").get("status") == CommandStatus.FAILED)
        assert "bad build" in fleet.sidecar.get("receipts", "c1:a2")["message"]
        assert two.transfers.active() == []


async def test_a_pull_goes_on_with_the_peers_last_known_after_a_restart_without_sidecar(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    other = type(fleet.sidecar)()
    async with fleet.agent("a1", upload_limit=1_500_000) as one:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        assert await one.announced(published.manifest_digest)
        other.documents.update(fleet.sidecar.documents)
        async with fleet.agent("a2", sidecar=other) as two:
            await until(lambda: any(two.view.holders(published.manifest_digest)))
            two.pull(two.resolve("app", "", ""), "test")
            await until(lambda: (fleet.root / "data/a2/agent/last-known.json").exists())
            await until(lambda: (s := two.status_of(published.manifest_digest)) is not None and s.verified > 0)
        other.stop()
        async with fleet.agent("a2", sidecar=other) as two:
            await until(lambda: two.facts.summary(published.manifest_digest) is not None)
            assert not two.view.synced
