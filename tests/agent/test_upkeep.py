"""Removal, verification, explanations: what a person asks of an agent's store."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from peat_p2p.agent.broadcasts import Broadcasts
from peat_p2p.agent.explain import Explanation, explain
from peat_p2p.agent.http import make_application
from peat_p2p.agent.service import Agent
from peat_p2p.agent.upkeep import Upkeep, VerifyState
from peat_p2p.client import AgentClient
from peat_p2p.content.eviction import Watermarks
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.errors import ConflictError, ExhaustedError, InvalidInputError, NotFoundError
from peat_p2p.fleet.commands import CommandStatus
from peat_p2p.swarm.status import Priority
from peat_p2p.wire.asgi import make_runner
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb


def quiet(*_: object) -> None:
    pass


@asynccontextmanager
async def client_of(agent: Agent) -> AsyncIterator[AgentClient]:
    clock = SystemClock()
    broadcasts = Broadcasts(agent, agent._credentials, clock)
    runner = make_runner(make_application(agent, Upkeep(agent, clock), broadcasts, clock))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with AgentClient(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            yield client
    finally:
        await runner.cleanup()


async def test_the_last_known_copy_goes_only_by_force(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1") as one:
        upkeep = Upkeep(one, SystemClock())
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        async with fleet.agent("a2") as two:
            with pytest.raises(ConflictError, match="last known copy"):
                await upkeep.remove(upkeep.find("app", "", ""), force=False)
            await until(lambda: any(two.view.holders(published.manifest_digest)))
            await two.pull(two.resolve("app", "", ""), "test").wait()
            await until(lambda: one.view.copies(published.manifest_digest) == ["a2"])
            freed = await upkeep.remove(upkeep.find("app", "1.0", "any"), force=False)
            assert freed >= 1_200_000
            assert one.facts.held() == []
            await until(lambda: not fleet.sidecar.get("packages", "a1:app:1.0-any"))
            assert fleet.sidecar.get("manifests", published.manifest_digest[7:])  # others hold it still
            with pytest.raises(NotFoundError, match="not held here"):
                upkeep.find("app", "1.0", "")
            # What was removed can be fetched again.
            await one.pull(one.resolve("app", "", ""), "test").wait()
            assert upkeep.find("app", "", "").manifest_digest == published.manifest_digest


async def test_a_pinned_package_stays(fleet: Any, package: Callable[..., Path]) -> None:
    async with fleet.agent("a1") as one:
        upkeep = Upkeep(one, SystemClock())
        await one.publish(package(1), "app", "1.0", "any", quiet)
        await upkeep.pin(upkeep.find("app", "", ""), True)
        with pytest.raises(ConflictError, match="pinned"):
            await upkeep.remove(upkeep.find("app", "", ""), force=False)
        await upkeep.pin(upkeep.find("app", "", ""), False)
        await upkeep.remove(upkeep.find("app", "", ""), force=True)
        assert one.facts.held() == []


async def test_rot_is_found_and_fetched_again(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        await two.publish(package(2), "other", "1.0", "any", quiet)
        await until(lambda: any(two.view.holders(published.manifest_digest)))
        await two.pull(two.resolve("app", "", ""), "test").wait()
        for chunk in published.index.unique_chunks[:2]:
            path = two.store.chunk_path(chunk.hex)
            path.chmod(0o600)
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        states: list[VerifyState] = []
        last = await Upkeep(two, SystemClock()).verify(states.append)
        assert (last.bad, last.repairing) == (2, ("app:1.0",))
        assert last.bytes_done == last.bytes_total >= 2_400_000
        assert states[-1].bytes_done == last.bytes_done
        await until(lambda: two.facts.summary(published.manifest_digest) is not None)
        again = await Upkeep(two, SystemClock()).verify(quiet)
        assert (again.bad, again.repairing) == (0, ())


async def test_why(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    def about(found: Explanation, kind: str) -> list[tuple[str, str]]:
        return [(fact.subject, fact.state) for fact in found.facts if fact.about == kind]

    async with fleet.agent("a2") as two:
        await until(lambda: two.view.synced)
        assert "nobody in reach has published it" in explain(two, "app", "", "").verdict
        async with fleet.agent("a1") as one:
            published = await one.publish(package(1), "app", "1.0", "any", quiet)
            await until(lambda: two.view.copies(published.manifest_digest) == ["a1"])
            found = explain(two, "app", "", "")
            assert found.verdict == (
                "app:1.0 is not here because nothing has asked this agent for it: peat pull app:1.0"
            )
            assert about(found, "holder") == [("a1", "complete")]
            assert about(found, "sidecar") == [("", "in reach")]
            [holder] = [fact for fact in found.facts if fact.about == "holder"]
            assert holder.text == f"at {one.engine.swarm_address}"
            assert explain(one, "app", "", "").verdict == "app:1.0 is here, whole and verified"
            await fleet.sidecar.put_document("platforms", "a3", {"agent_id": "a3", "suspects": ["a1", 7]})
            await until(lambda: ("a1", "suspected") in about(explain(two, "app", "", ""), "holder"))
            await fleet.order(fleet.command("c1", "a2", package="app", version="2.0"))
            await until(lambda: fleet.sidecar.get("receipts", "c1:a2"))
            assert about(explain(two, "app", "", ""), "command") == [("c1", "executing")]
        await fleet.sidecar.delete_document("packages", "a1:app:1.0-any")
        await until(lambda: not two.view.holders(published.manifest_digest))
        assert explain(two, "app", "", "").verdict == "app:1.0 is announced, but no agent known here holds it whole"
        two.pull(two.resolve("app", "", ""), "test")
        await until(lambda: "on its way: waiting, no agent" in explain(two, "app", "", "").verdict)
        fleet.sidecar.stop()
        await until(lambda: about(explain(two, "app", "", ""), "sidecar") == [("", "out of reach")])


async def test_over_the_wire(fleet: Any, package: Callable[..., Path]) -> None:
    async with fleet.agent("a1") as one, client_of(one) as client:
        await one.publish(package(1), "app", "1.0", "any", quiet)
        shown = await client.call(lambda agent: agent.show_package(pb.ShowPackageRequest(name="app")))
        assert (shown.package.copies, shown.package.under_replicated, shown.pinned) == (1, True, False)
        assert {(entry.path, entry.kind, entry.size) for entry in shown.entries} == {
            ("empty", "directory", 0),
            *((f"file{n}.bin", "file", 300_000) for n in range(4)),
        }
        explained = await client.call(lambda agent: agent.explain(pb.ExplainRequest(name="app")))
        assert explained.verdict.endswith("whole and verified")
        states = [m async for m in client.stream(lambda agent: agent.verify_store(pb.VerifyStoreRequest()))]
        assert states[-1].done
        assert states[-1].bad_chunks == 0
        stat = await client.call(lambda agent: agent.stat_store(pb.StatStoreRequest()))
        assert (stat.packages, stat.loose_chunks, stat.delivered_bytes) == (1, 0, 1_200_000)
        pinned = await client.call(lambda agent: agent.pin_package(pb.PinPackageRequest(name="app", pinned=True)))
        assert pinned.package.name == "app"
        with pytest.raises(ConflictError, match="pinned"):
            await client.call(lambda agent: agent.remove_package(pb.RemovePackageRequest(name="app")))
        removed = await client.call(lambda agent: agent.remove_package(pb.RemovePackageRequest(name="app", force=True)))
        assert removed.freed_bytes >= 1_200_000
        collected = await client.call(lambda agent: agent.collect_garbage(pb.CollectGarbageRequest()))
        assert collected.chunks == 0


async def test_what_a_hand_removed_is_fetched_again(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1") as one:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        async with fleet.agent("a2") as two:
            await until(lambda: any(two.view.holders(published.manifest_digest)))
            await two.pull(two.resolve("app", "", ""), "test").wait()
            assert await Upkeep(two, SystemClock()).mend() == ()
        for chunk in published.index.unique_chunks[:3]:
            two.store.chunk_path(chunk.hex).unlink()
        async with fleet.agent("a2") as two, Upkeep(two, SystemClock()).run():
            await until(lambda: two.store.damaged() == {})
            await until(lambda: two.facts.summary(published.manifest_digest) is not None)


async def test_a_full_disk_costs_one_of_two_copies_and_never_the_last(
    fleet: Any, package: Callable[..., Path], until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = Watermarks(0.9, 0.8)
    async with fleet.agent("a1", watermarks=marks) as one, fleet.agent("a2", watermarks=marks) as two:
        shared = await one.publish(package(1), "shared", "1.0", "any", quiet)
        only = await one.publish(package(2), "only", "1.0", "any", quiet)
        await until(lambda: any(two.view.holders(shared.manifest_digest)))
        await two.pull(two.resolve("shared", "", ""), "test").wait()
        await until(lambda: one.view.copies(shared.manifest_digest) == ["a2"])
        rooms = [Upkeep(one, SystemClock()), Upkeep(two, SystemClock())]
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100_000_000, 80_000_000, 20_000_000))
        assert [await room.make_room(0) for room in rooms] == [0, 0]
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100_000_000, 99_000_000, 1_000_000))
        freed = [await room.make_room(0) for room in rooms]
        # They decide at the same moment, in the same view, and still one of them keeps it.
        assert min(freed) == 0
        assert max(freed) >= 1_200_000
        assert [a for a in (one, two) if a.facts.summary(shared.manifest_digest) is not None] != []
        assert one.facts.summary(only.manifest_digest) is not None
        # Off by default.
        monkeypatch.setattr(one, "config", replace(one.config, watermarks=None))
        assert await rooms[0].make_room(1 << 40) == 0


async def test_priority_is_signed_with_the_package(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2") as two:
        with pytest.raises(InvalidInputError, match="mission-critical"):
            await one.publish(package(1), "app", "1.0", "any", quiet, "urgent")
        published = await one.publish(package(2), "app", "1.0", "any", quiet, "mission-critical")
        await until(lambda: any(two.view.holders(published.manifest_digest)))
        ticket = two.pull(two.resolve("app", "", ""), "test")
        assert ticket.transfer.priority is Priority.MISSION_CRITICAL
        await ticket.wait()


async def test_a_full_disk_ends_no_loop_and_no_command(
    fleet: Any,
    package: Callable[..., Path],
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []

    def full(*_: object, **__: object) -> Any:
        calls.append("full")
        raise ExhaustedError("the store's journal needs 1.0 MB, 0 B are free")

    def no_space(*_: object, **__: object) -> None:
        calls.append("no space")
        raise OSError(28, "No space left on device")

    async with fleet.agent("a1") as one:
        published = await one.publish(package(1), "app", "1.0", "any", quiet)
        assert await one.announced(published.manifest_digest)
        monkeypatch.setattr("peat_p2p.agent.upkeep.scrub_step", full)
        monkeypatch.setattr("peat_p2p.agent.upkeep.ScrubPace", lambda: SimpleNamespace(every=0.01))
        for module in ("transfers", "history", "journal", "memory"):
            monkeypatch.setattr(f"peat_p2p.agent.{module}.write_atomic", no_space)
        async with fleet.agent("a2") as two, Upkeep(two, SystemClock()).run():
            monkeypatch.setattr(two.store, "damaged", full)
            await fleet.order(fleet.command("c1", "a2", package="app"))
            await until(lambda: fleet.sidecar.get("receipts", "c1:a2").get("status") == CommandStatus.COMPLETED)
            await until(lambda: calls.count("full") > 5)
            assert two.facts.summary(published.manifest_digest) is not None
        assert calls.count("no space") >= 3
        said = [record.message for record in caplog.records if "scrubbing the store failed" in record.message]
        assert len(said) == 1  # not once for each try
