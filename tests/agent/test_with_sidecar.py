"""Agents beside real sidecars: the mesh carries what they say, and a sidecar may go and come back."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from peat_p2p.agent.app import open_agent
from peat_p2p.agent.config import AgentConfig
from peat_p2p.client import AgentClient, SidecarClient
from peat_p2p.core.address import ListenAddress, PeerAddress
from peat_p2p.core.config import Endpoints, NodeConfig
from peat_p2p.fleet.commands import CommandStatus
from peat_p2p.sidecar.app import open_sidecar
from peat_p2p.sidecar.config import SidecarConfig
from peat_p2p.trust.identity import Role


class Node:
    """A sidecar and an agent of one node, each to be started and stopped by itself."""

    def __init__(self, fleet: Any, name: str, *roles: Role, peers: tuple[PeerAddress, ...] = ()) -> None:
        self.name = name
        self.credentials = fleet.credentials(name, *roles)
        self.data = fleet.root / "real" / name
        self.data.mkdir(parents=True)
        self.socket = f"unix://{self.data}/api.sock"
        self.config = NodeConfig(
            data_dir=self.data,
            formation=self.credentials.directory,
            listen=(ListenAddress.parse(self.socket),),
            peers=peers,
            mdns=False,
        )

    @contextlib.asynccontextmanager
    async def sidecar(self) -> AsyncIterator[Endpoints]:
        async with open_sidecar(SidecarConfig(node=self.config)) as endpoints:
            yield endpoints

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Endpoints]:
        config = AgentConfig(node=self.config, sidecar=self.socket, heartbeat_interval_s=0.5)
        async with open_agent(config) as endpoints:
            yield endpoints

    def peer(self, endpoints: Endpoints) -> PeerAddress:
        return PeerAddress.parse(f"{endpoints.endpoint_id}@{endpoints.mesh}")


async def wait_for(read: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 60) -> Any:
    import asyncio

    async with asyncio.timeout(seconds):
        while not good(found := await read()):
            await asyncio.sleep(0.05)
    return found


async def test_a_package_and_a_command_cross_the_mesh(fleet: Any, package: Callable[..., Path]) -> None:
    hub = Node(fleet, "h1", Role.HUB, Role.PUBLISHER)
    source = package()
    async with hub.sidecar() as hub_at, hub.agent() as hub_agent, SidecarClient(hub.socket) as client:
        edge = Node(fleet, "e1", Role.AGENT, peers=(hub.peer(hub_at),))
        async with edge.sidecar(), edge.agent():
            async with AgentClient(hub_agent.http) as control:
                [*_, last] = [m async for m in control.publish(str(source), "app", "1.0")]
            await client.put_command(fleet.command("c1", "e1", "deploy", package="app", version="1.0"))
            states = await wait_for(client.command_states, lambda s: bool(s) and s[0].command.status.final)
            assert states[0].command.status is CommandStatus.COMPLETED
            assert "is deployed at" in states[0].receipts[0].message
            agents = {agent.agent_id: agent for agent in await client.fleet()}
            assert agents["e1"].liveness.value == "alive"

            async def held() -> list[Any]:
                return [h for h in await client.holders("app") if h.agent_id == "e1" and h.holding.complete]

            [holder] = await wait_for(held, bool)
            assert holder.holding.manifest == last.done.manifest
        current = edge.data / "deployments/app/current"
        for file in source.iterdir():
            assert file.is_dir() or (current / file.name).read_bytes() == file.read_bytes()


async def test_a_command_written_at_an_edge_moves_no_other_agent(fleet: Any, package: Callable[..., Path]) -> None:
    one = Node(fleet, "e1", Role.AGENT, Role.PUBLISHER)
    async with one.sidecar() as one_at, one.agent() as one_agent, SidecarClient(one.socket) as client:
        two = Node(fleet, "e2", Role.AGENT, peers=(one.peer(one_at),))
        async with two.sidecar(), two.agent():
            async with AgentClient(one_agent.http) as control:
                [m async for m in control.publish(str(package()), "app", "1.0")]
            await client.put_command(fleet.command("c2", "e2", package="app"))
            await client.put_command(fleet.command("c1", "e1", package="app"))

            async def statuses() -> dict[str, int]:
                return {state.command.id: int(state.command.status) for state in await client.command_states()}

            # Its own agent obeys its own sidecar; another one says why it does not.
            found = await wait_for(statuses, lambda s: s.get("c1") == 3 and s.get("c2") == 4)
            assert found == {"c1": 3, "c2": 4}
            receipt = await client.get_document("receipts", "c2:e2")
            assert receipt is not None
            assert "role operator or hub" in receipt["message"]


async def test_the_sidecar_goes_and_comes_back_empty(fleet: Any, package: Callable[..., Path]) -> None:
    node = Node(fleet, "n1", Role.HUB, Role.PUBLISHER, Role.AGENT)
    async with contextlib.AsyncExitStack() as stack:
        async with node.sidecar():
            agent = await stack.enter_async_context(node.agent())
            async with AgentClient(agent.http) as control, SidecarClient(node.socket) as client:
                [*_, last] = [m async for m in control.publish(str(package()), "app", "1.0")]
                await wait_for(lambda: client.get_document("packages", "n1:app:1.0-any"), bool)
        async with AgentClient(agent.http) as control:  # the agent answers without its sidecar
            [*_, pulled] = [m async for m in control.pull("app")]
            assert pulled.state == "complete"
            assert [p.manifest for p in await control.packages()] == [last.done.manifest]
        for file in node.data.glob("sidecar.db*"):
            file.unlink()
        async with node.sidecar(), SidecarClient(node.socket) as client:
            holding = await wait_for(lambda: client.get_document("packages", "n1:app:1.0-any"), bool)
            assert holding["pull_status"] == 3
            assert holding["manifest"] == last.done.manifest
            await wait_for(lambda: client.get_document("manifests", last.done.manifest[7:]), bool)
            beat = await wait_for(lambda: client.get_document("platforms", "n1"), bool)
            assert beat["swarm"]["swarm"] == [agent.swarm]


async def test_an_agent_that_lost_its_store_says_so(fleet: Any, package: Callable[..., Path]) -> None:
    node = Node(fleet, "n1", Role.PUBLISHER, Role.AGENT)
    async with node.sidecar(), SidecarClient(node.socket) as client:
        async with node.agent() as agent, AgentClient(agent.http) as control:
            [m async for m in control.publish(str(package()), "app", "1.0")]
            await wait_for(lambda: client.get_document("packages", "n1:app:1.0-any"), bool)
        shutil.rmtree(node.data / "store")
        async with node.agent():
            await wait_for(lambda: client.get_document("packages", "n1:app:1.0-any"), lambda found: found is None)
