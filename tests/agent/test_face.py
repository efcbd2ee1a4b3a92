"""What the agent answers over HTTP: the polled face and the control service."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from peat_p2p.agent.broadcasts import Broadcasts
from peat_p2p.agent.http import LIST_PACKAGES, LIST_PULLED, make_application
from peat_p2p.agent.service import Agent
from peat_p2p.agent.upkeep import Upkeep
from peat_p2p.client import AgentClient
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from peat_p2p.fleet.commands import CommandStatus
from peat_p2p.trust.identity import Role
from peat_p2p.wire.asgi import make_runner


@contextlib.asynccontextmanager
async def serve(agent: Agent) -> AsyncIterator[str]:
    clock = SystemClock()
    broadcasts = Broadcasts(agent, agent._credentials, clock)
    runner = make_runner(make_application(agent, Upkeep(agent, clock), broadcasts, clock))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def publish(client: AgentClient, source: Path, name: str = "app", version: str = "1.0") -> list[Any]:
    return [message async for message in client.publish(str(source), name, version, "")]


async def test_the_polled_face(fleet: Any, package: Callable[..., Path], until: Any) -> None:
    async with fleet.agent("a1", arch="arm64", run_mode="edge", classification="open") as agent, serve(agent) as url:
        async with AgentClient(url) as client:
            [*_, last] = await publish(client, package())
        await fleet.order(fleet.command("d1", "a1", "deploy", package="app"))
        await until(lambda: agent.facts.in_force())
        async with aiohttp.ClientSession(url) as session:
            async with session.get("/status") as response:
                status = await response.json()
            async with session.post(LIST_PACKAGES, json={}) as response:
                deployed = await response.json()
            async with session.post(LIST_PULLED, json={}) as response:
                pulled = await response.json()
            async with session.post(LIST_PULLED, data=b"[", headers={"Content-Type": "application/json"}) as response:
                assert response.status == 400
                assert (await response.json())["code"] == "invalid_argument"
    assert isinstance(status.pop("systemTime"), int)
    assert status == {
        "version": "0.1.0",
        "architecture": "arm64",
        "classification": "open",
        "k8sVersion": "",
        "k8sNodeStatus": "",
        "zarfVersion": "",
        "runMode": "edge",
    }
    [entry] = deployed["packages"]
    assert (entry["name"], entry["version"], type(entry["status"])) == ("app", "1.0", int)
    assert entry["annotations"]["manifest"] == last.done.manifest
    [registry] = pulled["registries"]
    [found] = registry["packages"]
    total = 1_200_000
    assert found["tags"] == [
        {
            "reference": "app:1.0",
            "arch": "any",
            "version": "1.0",
            "totalBytes": total,
            "pullInfo": {"downloadedBytes": total, "status": 3},
        }
    ]


async def test_publish_and_pull_by_the_control_service(fleet: Any, package: Callable[..., Path]) -> None:
    source = package()
    async with fleet.agent("a1") as one, serve(one) as first, fleet.agent("a2") as two, serve(two) as second:
        async with AgentClient(first) as client:
            messages = await publish(client, source)
            assert messages[0].step == "scanning"
            done = messages[-1].done
            assert (done.name, done.version, done.arch, done.publisher) == ("app", "1.0", "any", "a1")
            assert done.holders == ["a1"]
        async with AgentClient(second) as client:
            target = fleet.root / "out"
            messages = [m async for m in client.pull("app", "", "", str(target))]
            last = messages[-1]
            assert last.state == "complete"
            assert last.path == str(target)
            assert last.verified_bytes == last.total_bytes == 1_200_000
            assert {source.agent_id: source.bytes for source in last.sources}["a1"] >= 1_200_000
            assert "unpacking" in [m.state for m in messages]
            [package_message] = await client.packages()
            assert package_message.holders == ["a1", "a2"]
            assert package_message.held_bytes == 1_200_000
            [ended] = await client.transfers()
            assert (ended.state, ended.name, ended.received_bytes >= 1_200_000) == ("complete", "app", True)
            assert [source.agent_id for source in ended.sources] == ["a1"]
            with pytest.raises(ConflictError, match="exists already"):
                [m async for m in client.pull("app", "", "", str(target))]
    assert (target / "file0.bin").read_bytes() == (source / "file0.bin").read_bytes()


async def test_errors_keep_their_kind(fleet: Any, package: Callable[..., Path], tmp_path: Path) -> None:
    fleet.credentials("plain", Role.AGENT)
    async with fleet.agent("a1") as agent, serve(agent) as url, AgentClient(url) as client:
        with pytest.raises(NotFoundError, match="ghost:1 is not known here"):
            [m async for m in client.pull("ghost", "1")]
        with pytest.raises(InvalidInputError, match="absolute"):
            [m async for m in client.pull("app", "", "", "relative")]
        with pytest.raises(InvalidInputError, match="package name"):
            await publish(client, package(), name="bad name")
    async with fleet.agent("plain") as agent, serve(agent) as url, AgentClient(url) as client:
        with pytest.raises(DeniedError, match="publisher"):
            await publish(client, package(2))


async def test_pull_waits_for_a_package_when_asked_to(fleet: Any, package: Callable[..., Path]) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2") as two, serve(two) as url, AgentClient(url) as client:
        states: list[str] = []
        async for message in client.pull("app", wait=True):
            states.append(message.state)
            if len(states) == 1:
                assert message.state == "waiting"
                assert "not known here" in message.reason
                await one.publish(package(), "app", "1.0", "any", lambda *_: None)
        assert states[-1] == "complete"


async def test_a_caller_that_goes_away_does_not_stop_the_pull(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    async with fleet.agent("a1", upload_limit=1_500_000) as one, fleet.agent("a2") as two, serve(two) as url:
        await one.publish(package(), "app", "1.0", "any", lambda *_: None)
        async with AgentClient(url) as client, contextlib.aclosing(client.pull("app", wait=True)) as messages:
            async for message in messages:
                if message.state == "fetching":
                    break
        await until(lambda: two.facts.held())


async def test_pages_of_other_sites_and_other_machines_are_refused(fleet: Any) -> None:
    async with fleet.agent("a1") as agent, serve(agent) as url, aiohttp.ClientSession(url) as session:
        async with session.get("/status", headers={"Host": "evil.example"}) as response:
            assert response.status == 403
        call = "/peat.agent.v1.PeatAgent/ListTransfers"
        async with session.post(call, json={}, headers={"Host": "evil.example"}) as response:
            assert response.status == 403
        async with session.post(call, json={}) as response:
            assert response.status == 200
            assert await response.json() == {}


async def test_a_poller_and_this_agent_write_the_same_documents(
    fleet: Any, package: Callable[..., Path], until: Any
) -> None:
    """An agent that pushes and a sidecar that polls it must not fight over ids."""
    async with fleet.agent("a1") as agent, serve(agent) as url, aiohttp.ClientSession(url) as session:
        await agent.publish(package(), "app", "1.0", "any", lambda *_: None)
        await fleet.order(fleet.command("d1", "a1", "deploy", package="app"))
        await until(lambda: fleet.sidecar.get("receipts", "d1:a1").get("status") == CommandStatus.COMPLETED)
        async with session.post(LIST_PULLED, json={}) as response:
            tag = (await response.json())["registries"][0]["packages"][0]["tags"][0]
        async with session.post(LIST_PACKAGES, json={}) as response:
            name = (await response.json())["packages"][0]["name"]
        await until(lambda: fleet.sidecar.get("packages", f"a1:{tag['reference']}-{tag['arch']}"))
        await until(lambda: fleet.sidecar.get("deployments", f"a1:{name}"))


async def test_a_full_disk_is_said_before_a_byte_is_fetched(
    fleet: Any, package: Callable[..., Path], until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.agent("a1") as one, fleet.agent("a2") as two, serve(two) as url, AgentClient(url) as client:
        await one.publish(package(), "app", "1.0", "any", lambda *_: None)
        monkeypatch.setattr("peat_p2p.content.store.free_bytes", lambda _: 1 << 20)
        with pytest.raises(ExhaustedError, match="fetching app"):
            [m async for m in client.pull("app", wait=True)]
        await fleet.order(fleet.command("c1", "a2", package="app"))
        await until(lambda: fleet.sidecar.get("commands", "c1")["status"] == CommandStatus.FAILED)
        assert "free" in fleet.sidecar.get("receipts", "c1:a2")["message"]
        [failed] = await client.transfers()
        assert (failed.state, failed.received_bytes) == ("failed", 0)
        monkeypatch.undo()
        [*_, last] = [m async for m in client.pull("app")]
        assert last.state == "complete"


async def test_who_follows_a_pull_is_told_when_the_agent_stops(fleet: Any, package: Callable[..., Path]) -> None:
    async with fleet.agent("a1") as agent, AsyncExitStack() as server:
        url = await server.enter_async_context(serve(agent))
        async with AgentClient(url) as client:
            with pytest.raises(UnavailableError, match="the agent is stopping"):
                async for message in client.pull("ghost", wait=True):
                    assert message.state == "waiting"
                    agent.stop()
