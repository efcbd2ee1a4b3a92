"""The agent's composition root: the only place where its parts are chosen and wired."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from peat_p2p.agent.broadcasts import Broadcasts
from peat_p2p.agent.config import AgentConfig
from peat_p2p.agent.http import make_application
from peat_p2p.agent.service import Agent
from peat_p2p.agent.upkeep import Upkeep
from peat_p2p.client import SidecarClient
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.config import Endpoints, NodeConfig
from peat_p2p.core.errors import ConfigError, UnavailableError
from peat_p2p.swarm.engine import SwarmConfig, SwarmEngine
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import dev_credentials
from peat_p2p.trust.identity import Role
from peat_p2p.wire.asgi import make_runner


@contextlib.asynccontextmanager
async def open_agent(config: AgentConfig) -> AsyncIterator[Endpoints]:
    """Run an agent; yields its addresses once all its parts answer. Its sidecar may be away."""
    clock = SystemClock()
    credentials = load_credentials(config.node)
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(ChunkStore.open(config.store_root, clock))
        swarm = SwarmConfig(
            listen=config.node.swarm_listen,
            metadata_listen=config.metadata_listen,
            site=config.node.site,
            download_limit=config.download_limit,
            upload_limit=config.upload_limit,
            outside_download_limit=config.site_download_limit,
            outside_upload_limit=config.site_upload_limit,
            bearer_limit=config.bearer_limit,
            state_dir=config.state_root / "swarm",
            budget=config.budget,
        )
        engine = await stack.enter_async_context(SwarmEngine.open(store, credentials, swarm, clock))
        sidecar = await stack.enter_async_context(SidecarClient(config.sidecar, token=_token(config)))
        agent = Agent(config, credentials, store, engine, sidecar, clock)
        upkeep = Upkeep(agent, clock)
        agent.make_room = upkeep.make_room
        await stack.enter_async_context(agent.run())
        await stack.enter_async_context(upkeep.run())
        broadcasts = Broadcasts(agent, credentials, clock)
        if config.broadcast_listen is not None:
            heard = broadcasts.receive(config.broadcast_listen, config.broadcast_interface)
            await stack.enter_async_context(heard)
        app = make_application(agent, upkeep, broadcasts, clock)
        address = await stack.enter_async_context(_serve(app, config.node.http_listen))
        yield Endpoints(
            node_id=agent.agent_id,
            endpoint_id=credentials.identity.endpoint_id,
            pid=os.getpid(),
            swarm=str(engine.swarm_address),
            metadata=str(engine.metadata_address),
            http=f"http://{address}",
        )


def load_credentials(node: NodeConfig) -> NodeCredentials:
    """The node's certificate and key. Raises ConfigError when they are another node's."""
    if node.dev:
        # A sidecar with the same data folder makes or finds the same formation there.
        return dev_credentials(node.data_dir / "formation", node.node_id or _machine_name(), list(Role))
    credentials = NodeCredentials.load(node.formation or Path())
    if node.node_id and node.node_id != credentials.identity.node_id:
        raise ConfigError(
            f"--node-id {node.node_id}, but the certificate in {node.formation} is {credentials.identity.node_id}'s"
        )
    return credentials


def _token(config: AgentConfig) -> str | None:
    file = config.sidecar_token_file
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the sidecar's token cannot be read from {file}: {error.strerror}") from None


def _machine_name() -> str:
    """A name for a node that was given none; the same as its sidecar makes, so that both are one node."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")[:63] or "node"


@contextlib.asynccontextmanager
async def _serve(app: web.Application, listen: HostPort) -> AsyncIterator[HostPort]:
    runner = make_runner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, listen.host, listen.port)
        try:
            await site.start()
        except OSError as error:
            raise UnavailableError(
                f"the agent cannot listen on {listen}: {error.strerror or error}; give another --http-listen"
            ) from error
        bound = runner.addresses[0]
        yield HostPort(bound[0], bound[1])
    finally:
        await runner.cleanup()
