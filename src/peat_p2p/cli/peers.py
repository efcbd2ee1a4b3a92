"""`peat peers`: the mesh links of a node's sidecar."""

from __future__ import annotations

from dataclasses import asdict

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import print_json, print_table, size
from peat_p2p.client.model import Link


@click.command()
@json_option
@place_options
def peers(as_json: bool, place: Place) -> None:
    """List the sidecars this node's sidecar is linked with or tries to reach, and why a link is not there.

    \b
    peat peers
    peat peers --json
    """
    links = run(_links(place))
    if as_json:
        print_json([asdict(link) for link in links])
        return
    print_table(
        ("NODE", "STATE", "ADDRESS", "SITE", "LEARNED", "ROUND TRIP", "SENT", "RECEIVED", "REASON", "ENDPOINT"),
        (
            (
                link.node_id or "-",
                link.state,
                link.address,
                link.site or "-",
                link.learned,
                f"{link.round_trip_ms:.1f} ms" if link.round_trip_ms else "-",
                size(link.bytes_sent),
                size(link.bytes_received),
                link.reason,
                link.endpoint_id[:12],
            )
            for link in links
        ),
        empty="no peers: give one by --peer ENDPOINT_ID@HOST:PORT, or wait for one on this LAN",
    )


async def _links(place: Place) -> list[Link]:
    async with place.sidecar() as sidecar:
        return await sidecar.list_links()
