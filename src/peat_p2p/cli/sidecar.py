"""`peat sidecar`: run the node's sidecar."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from peat_p2p.cli.options import FILE, node_config, node_options, option
from peat_p2p.cli.run import run_service


def sidecar_options(command: Any) -> Any:
    """Add the flags of a sidecar, for `peat sidecar`, `peat hub` and `peat up`."""
    for decorate in (
        option(
            "--link-budget",
            type=click.FloatRange(min=0, min_open=True),
            help="Bytes per second a mesh link may use at most.  [default: measured]",
        ),
        option(
            "--store-key-file",
            type=FILE,
            help="Keep the documents encrypted at rest (AES-256-GCM) with the key in this file; "
            "PEAT_STORE_KEY holds the key itself.",
        ),
        option("--tls", is_flag=True, help="Answer API calls by mutual TLS with the formation's certificates."),
        option("--insecure", is_flag=True, help="Answer beyond loopback with no token and no TLS."),
        option("--token-file", type=FILE, help="A file with the bearer token API callers must show."),
        option(
            "--max-document-bytes",
            type=click.IntRange(min=1024),
            default=256 * 1024,
            show_default=True,
            help="The largest document that is accepted.",
        ),
        option(
            "--watch-interval",
            type=click.FloatRange(min=0.1),
            default=10.0,
            show_default=True,
            help="Seconds between two polls of --watch-agent.",
        ),
        option(
            "--watch-agent-id", default="", help="The id of the agent that --watch-agent polls.  [default: the node's]"
        ),
        option("--watch-agent", default="", help="Poll the agent at this URL, for agents that do not push yet."),
    ):
        command = decorate(command)
    return command


def sidecar_config(values: dict[str, Any]) -> Any:
    """Build the SidecarConfig from the values click collected."""
    from peat_p2p.sidecar.config import SidecarConfig

    token: Path | None = values["token_file"]
    return SidecarConfig(
        node=node_config(values),
        max_document_bytes=values["max_document_bytes"],
        insecure=values["insecure"],
        tls=values["tls"],
        link_budget=values["link_budget"],
        store_key=_store_key(values["store_key_file"]),
        watch_agent_id=values["watch_agent_id"],
        token_file=token,
        watch_agent=values["watch_agent"] or None,
        watch_interval_s=values["watch_interval"],
    )


def _store_key(file: Path | None) -> bytes | None:
    from peat_p2p.trust.atrest import load_storage_key, parse_storage_key

    if file is not None:
        return load_storage_key(file)
    # Not a flag: command lines are seen by everybody on the machine.
    text = os.environ.get("PEAT_STORE_KEY")
    return parse_storage_key(text, "PEAT_STORE_KEY") if text else None


@click.command()
@node_options
@sidecar_options
def sidecar(**values: Any) -> None:
    """Run the sidecar: it keeps the fleet's documents and exchanges them with other sidecars.

    \b
    peat sidecar --dev
    peat sidecar --formation ./nodes/edge-1 --site alpha --peer ENDPOINT_ID@10.0.0.5:7400 --mesh-listen 0.0.0.0:7400
    """
    from peat_p2p.sidecar.app import open_sidecar

    config = sidecar_config(values)
    run_service(open_sidecar(config), config.node, endpoints_name="sidecar.json", log_level=values["log_level"])
