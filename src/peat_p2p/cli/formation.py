"""`peat formation`: make the trust domain and the certificates of its nodes.

Owns the words of the command; the work is in `trust/formation.py`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from peat_p2p.cli.options import DIRECTORY
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

_DIR = click.option(
    "--dir", "directory", type=DIRECTORY, required=True, help="The formation's own folder (holds the CA's key)."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def formation() -> None:
    """Make a formation and issue certificates to its nodes.

    A formation is the trust domain: one CA, whose private key stays in the formation's folder, off the nodes.
    Each node gets a folder with its key, its certificate and the CA's certificate.

    \b
    peat formation init --name fleet7 --dir ./ca
    peat formation issue edge-1 --role agent --dir ./ca --out ./nodes/edge-1
    peat sidecar --formation ./nodes/edge-1
    """


@formation.command()
@click.option("--name", required=True, help="The formation's name: letters, digits, '.', '_' and '-'.")
@_DIR
@_JSON
def init(name: str, directory: Path, as_json: bool) -> None:
    """Make the CA of a new formation."""
    made = Formation.init(directory, name)
    if as_json:
        click.echo(json.dumps({"formation": made.name, "dir": str(directory)}))
    else:
        click.echo(f"formation {made.name} is in {directory}; keep {directory}/ca.key off the nodes")


@formation.command()
@click.argument("node")
@click.option(
    "--role",
    "roles",
    type=click.Choice([role.value for role in Role]),
    multiple=True,
    required=True,
    help="What the node may do; repeatable.",
)
@_DIR
@click.option("--out", type=DIRECTORY, required=True, help="The node's folder, made anew.")
@click.option(
    "--days", type=click.IntRange(1), default=365, show_default=True, help="How long the certificate is good."
)
@click.option("--agent", "agents", multiple=True, help="A further agent id this node may write for; repeatable.")
@click.option("--replace", is_flag=True, help="NODE lost its folder: issue a new key, and revoke the old one.")
@_JSON
def issue(
    node: str,
    roles: tuple[str, ...],
    directory: Path,
    out: Path,
    days: int,
    agents: tuple[str, ...],
    replace: bool,
    as_json: bool,
) -> None:
    """Issue a key and a certificate to NODE.

    Roles: `agent` (holds and deploys packages), `publisher` (signs packages), `hub` and `operator` (give orders).
    """
    identity = Formation.load(directory).issue(
        node, [Role(role) for role in roles], out, days, agents=agents, replace=replace
    )
    if as_json:
        click.echo(json.dumps({"node_id": identity.node_id, "endpoint_id": identity.endpoint_id, "dir": str(out)}))
    else:
        click.echo(f"{identity.node_id} ({', '.join(sorted(identity.roles))}) is in {out}")
        click.echo(f"endpoint id {identity.endpoint_id}")


@formation.command()
@click.argument("node_dir", type=DIRECTORY)
@_DIR
@click.option(
    "--days", type=click.IntRange(1), default=365, show_default=True, help="How long the certificate is good."
)
def renew(node_dir: Path, directory: Path, days: int) -> None:
    """Renew the certificate in NODE_DIR: the same key and endpoint id, new dates."""
    identity = Formation.load(directory).renew(node_dir, days)
    click.echo(f"{identity.node_id} is good until {_day(identity.not_after)}")


@formation.command()
@_DIR
@_JSON
def show(directory: Path, as_json: bool) -> None:
    """Show the formation and the nodes it issued, with their endpoint ids."""
    loaded = Formation.load(directory)
    nodes = loaded.nodes()
    if as_json:
        click.echo(json.dumps({"formation": loaded.name, "nodes": [asdict(node) for node in nodes]}))
        return
    table = Table("NODE", "ROLES", "GOOD UNTIL", title=f"formation {loaded.name}", box=None)
    # Endpoint ids are there to be copied: never cut them, whatever the width of the terminal.
    table.add_column("ENDPOINT ID", no_wrap=True, min_width=64)
    for node in nodes:
        table.add_row(node.node_id, ", ".join(node.roles), _day(node.not_after), node.endpoint_id)
    Console(width=max(Console().width, 120)).print(table)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
