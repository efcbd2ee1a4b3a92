"""`peat broadcast`: send a package once for all who hear it."""

from __future__ import annotations

import contextlib

import click

from peat_p2p.cli.agent import SIZE
from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import TransferBar, print_json, size
from peat_p2p.cli.packages import split_reference
from peat_p2p.core.errors import UnavailableError
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb


@click.command()
@click.argument("package", metavar="NAME[:VERSION]")
@click.option("--group", required=True, metavar="GROUP:PORT", help="The multicast group, such as 239.7.7.7:7407.")
@click.option("--rate", type=SIZE, required=True, help="Bytes per second, headers counted, such as 100K.")
@click.option(
    "--loss",
    type=click.FloatRange(0, 90),
    default=10.0,
    show_default=True,
    help="Percentage of datagrams that a receiver may lose and still get all.",
)
@click.option("--interface", default="", metavar="IP", help="Address of the interface to send from.")
@click.option(
    "--site",
    "sites",
    multiple=True,
    help="Send only what an agent of this site lacks, by its documents. Repeatable.  [default: send all]",
)
@click.option("--arch", default="", help="Its architecture.  [default: this node's, or any]")
@json_option
@place_options
def broadcast(
    package: str,
    group: str,
    rate: int,
    loss: float,
    interface: str,
    sites: tuple[str, ...],
    arch: str,
    as_json: bool,
    place: Place,
) -> None:
    """Send a package that this node holds to a multicast group, once for all receivers.

    Receivers need not be able to answer: they run with --broadcast-listen GROUP:PORT, take in only what a publisher of
    the formation signed, and fetch what they missed from other agents once it is over. Interrupting the command ends
    the broadcast.

    \b
    peat broadcast app:1.0 --group 239.7.7.7:7407 --rate 100K
    peat broadcast app:2.0 --group 239.7.7.7:7407 --rate 100K --site alpha
    peat broadcast app:1.0 --group 239.7.7.7:7407 --rate 1M --loss 20 --interface 10.1.0.4
    """
    name, version = split_reference(package)
    request = pb.BroadcastRequest(
        name=name,
        version=version,
        arch=arch,
        group=group,
        rate_bytes_per_s=rate,
        loss=loss / 100,
        interface=interface,
        sites=list(sites),
    )
    last = run(_broadcast(place, request, package, quiet=as_json))
    if as_json:
        print_json({"sent_bytes": last.sent_bytes, "package_bytes": last.package_bytes})
    elif not last.sent_bytes:
        click.echo(f"{package}: nobody of site {', '.join(sites)} lacks anything of it; nothing was sent")
    else:
        click.echo(f"{package} of {size(last.package_bytes)} was broadcast to {group}: {size(last.sent_bytes)} sent")


async def _broadcast(place: Place, request: pb.BroadcastRequest, title: str, *, quiet: bool) -> pb.BroadcastProgress:
    async with place.agent() as agent:
        with TransferBar(title, quiet=quiet) as bar:
            stream = agent.stream(lambda stub: stub.broadcast(request))
            async with contextlib.aclosing(stream) as messages:
                async for message in messages:
                    if message.done:
                        return message
                    bar.update(0, 0, f"{size(message.sent_bytes)} sent", message.step)
    raise UnavailableError("the agent stopped before all was sent; broadcast it again")
