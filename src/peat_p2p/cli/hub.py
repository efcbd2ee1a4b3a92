"""`peat hub`: run the hub beside its own sidecar, in one process."""

from __future__ import annotations

from typing import Any

import click

from peat_p2p.cli.options import node_options
from peat_p2p.cli.run import run_service
from peat_p2p.cli.sidecar import sidecar_config, sidecar_options


@click.command()
@node_options
@sidecar_options
def hub(**values: Any) -> None:
    """Run a hub: a sidecar of role hub, and an HTTP API to give orders and to see the fleet.

    The fleet never needs it: what it wrote is in the mesh and goes on without it.

    \b
    peat hub --dev
    peat hub --formation ./nodes/hub --mesh-listen 0.0.0.0:7400 --http-listen 127.0.0.1:8080
    """
    from peat_p2p.hub.app import open_hub
    from peat_p2p.hub.config import HubConfig
    from peat_p2p.sidecar.app import open_sidecar

    sidecar = sidecar_config(values)
    config = HubConfig(node=sidecar.node, token_file=sidecar.token_file, insecure=sidecar.insecure)
    service = open_hub(config, open_sidecar(sidecar))
    run_service(service, config.node, endpoints_name="hub.json", log_level=values["log_level"])
