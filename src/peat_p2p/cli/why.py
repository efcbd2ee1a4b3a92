"""`peat why`: why a package is here or not."""

from __future__ import annotations

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import plain, print_json, print_table
from peat_p2p.cli.packages import split_reference
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb


@click.command()
@click.argument("package", metavar="NAME[:VERSION]")
@click.option("--arch", default="", help="Its architecture.  [default: this node's, or any]")
@json_option
@place_options
def why(package: str, arch: str, as_json: bool, place: Place) -> None:
    """Say why a package is here, on its way, or not to be had, and everything known that bears on it.

    \b
    peat why app
    peat why app:1.0 --json
    """
    name, version = split_reference(package)
    found = run(_explain(place, pb.ExplainRequest(name=name, version=version, arch=arch)))
    facts = [{"about": f.about, "subject": f.subject, "state": f.state, "text": f.text} for f in found.facts]
    if as_json:
        print_json({"verdict": found.verdict, "facts": facts})
        return
    click.echo(plain(found.verdict))
    click.echo()
    print_table(
        ("ABOUT", "WHICH", "STATE", ""),
        ((fact["about"], fact["subject"], fact["state"], fact["text"]) for fact in facts),
        empty="nothing is known",
    )


async def _explain(place: Place, request: pb.ExplainRequest) -> pb.ExplainResponse:
    async with place.agent() as agent:
        return await agent.call(lambda stub: stub.explain(request), changes=False)
