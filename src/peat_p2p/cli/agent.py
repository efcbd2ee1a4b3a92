"""`peat agent`: run the node's agent."""

from __future__ import annotations

from typing import Any

import click

from peat_p2p.cli.connect import local_api
from peat_p2p.cli.options import HOST_PORT, find_endpoints, node_config, node_options, option
from peat_p2p.cli.run import run_service
from peat_p2p.core.errors import ConfigError, NotFoundError


def agent_options(command: Any) -> Any:
    """Add the flags of an agent, for `peat agent` and `peat up`."""
    for decorate in (
        option(
            "--download-limit",
            type=click.IntRange(min=0),
            default=0,
            help="Bytes per second fetched from peers at most; 0: no limit.",
        ),
        option(
            "--upload-limit",
            type=click.IntRange(min=0),
            default=0,
            help="Bytes per second given to peers at most; 0: no limit.",
        ),
        option(
            "--heartbeat-interval",
            type=click.FloatRange(min=0.2),
            default=30.0,
            show_default=True,
            help="Seconds between heartbeats when nothing changes.",
        ),
        option(
            "--metadata-listen",
            type=HOST_PORT,
            default="127.0.0.1:0",
            show_default=True,
            help="Where other agents read a package's list of chunks from this one.",
        ),
    ):
        command = decorate(command)
    return command


def agent_config(values: dict[str, Any], sidecar: str) -> Any:
    """Build the AgentConfig from the values click collected; `sidecar` is the URL of the sidecar's API."""
    from peat_p2p.agent.config import AgentConfig

    return AgentConfig(
        node=node_config(values),
        sidecar=sidecar,
        heartbeat_interval_s=values["heartbeat_interval"],
        download_limit=values["download_limit"],
        upload_limit=values["upload_limit"],
        metadata_listen=values["metadata_listen"],
    )


@click.command()
@node_options
@agent_options
@option("--sidecar", default="", help="URL of the sidecar's API.  [default: the one that runs with this data folder]")
def agent(sidecar: str, **values: Any) -> None:
    """Run the agent: it reports to its sidecar, obeys signed commands, fetches, seeds and deploys packages.

    \b
    peat agent --dev --sidecar http://127.0.0.1:50051
    peat agent --formation ./nodes/edge-1 --site alpha --swarm-listen 0.0.0.0:7401
    """
    from peat_p2p.agent.app import open_agent

    if not sidecar:
        try:
            sidecar = local_api(find_endpoints(values["data_dir"]))
        except NotFoundError:
            raise ConfigError(
                f"no sidecar runs with the data folder {values['data_dir']}: start one, or name one by --sidecar URL"
            ) from None
    config = agent_config(values, sidecar)
    run_service(open_agent(config), config.node, endpoints_name="agent.json", log_level=values["log_level"])
