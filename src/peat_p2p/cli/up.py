"""`peat up`: run a whole node, sidecar and agent, in one process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import click

from peat_p2p.cli.agent import agent_config, agent_options
from peat_p2p.cli.connect import local_api
from peat_p2p.cli.options import node_options
from peat_p2p.cli.run import run_service
from peat_p2p.cli.sidecar import sidecar_config, sidecar_options
from peat_p2p.core.config import Endpoints


@click.command()
@node_options
@sidecar_options
@agent_options
def up(**values: Any) -> None:
    """Run a node: sidecar and agent in one process.

    \b
    peat up --dev                            a node of a throw-away formation, with no configuration
    peat up --formation ./nodes/edge-1       a node of a fleet
    peat up --config /etc/peat.toml          the same from a file
    """
    config = sidecar_config(values)
    run_service(_open_node(values), config.node, endpoints_name="node.json", log_level=values["log_level"])


@asynccontextmanager
async def _open_node(values: dict[str, Any]) -> AsyncIterator[Endpoints]:
    from peat_p2p.agent.app import open_agent
    from peat_p2p.sidecar.app import open_sidecar

    async with (
        open_sidecar(sidecar_config(values)) as sidecar,
        open_agent(agent_config(values, local_api(sidecar))) as agent,
    ):
        yield replace(sidecar, pid=os.getpid(), swarm=agent.swarm, metadata=agent.metadata, http=agent.http)
