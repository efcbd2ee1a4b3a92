"""`peat packages`: what the fleet has to offer, and what this node has of it."""

from __future__ import annotations

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import ago, print_json, print_table, size
from peat_p2p.cli.publish import package_json
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb


@click.command()
@json_option
@place_options
def packages(as_json: bool, place: Place) -> None:
    """List the packages known here: who published them, who holds them, and what this node has of them.

    Only packages whose manifest verifies are listed.

    \b
    peat packages
    peat packages --json
    """
    found = run(_packages(place))
    if as_json:
        print_json([package_json(package) for package in found])
        return
    print_table(
        ("PACKAGE", "VERSION", "ARCH", "SIZE", "HERE", "HOLDERS", "PUBLISHED", "BY"),
        (
            (
                package.name,
                package.version,
                package.arch,
                size(package.total_bytes),
                _here(package),
                ", ".join(package.holders) or "nobody",
                ago(package.published_at),
                package.publisher,
            )
            for package in found
        ),
        empty="no packages are known here; publish one: peat publish PATH --name NAME --version VERSION",
    )


def _here(package: pb.Package) -> str:
    if package.deployed:
        return "deployed"
    if package.held_bytes >= package.total_bytes:
        return "yes"
    return f"{100 * package.held_bytes // package.total_bytes}%" if package.held_bytes else "-"


async def _packages(place: Place) -> list[pb.Package]:
    async with place.agent() as agent:
        found = await agent.packages()
    return sorted(found, key=lambda package: package.name)
