"""`peat pull`: fetch a package from the agents that hold it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import TransferBar, duration, plain, print_json, rate, size
from peat_p2p.core.errors import UnavailableError
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb


@click.command()
@click.argument("package", metavar="NAME[:VERSION]")
@click.option("--arch", default="", help="Its architecture.  [default: this node's, or any]")
@click.option("--to", "destination", type=click.Path(path_type=Path), help="Also unpack it to this new folder.")
@click.option("--wait", is_flag=True, help="Wait for a package that nobody has announced yet.")
@json_option
@place_options
def pull(package: str, arch: str, destination: Path | None, wait: bool, as_json: bool, place: Place) -> None:
    """Fetch a package into the node's store, and unpack it when --to is given.

    Without VERSION the newest known is fetched. While no holder is in reach the command waits and says why.
    Interrupting it does not stop the agent: it goes on, also after a restart.

    \b
    peat pull app
    peat pull app:1.0 --to ./app
    peat pull app:2.0 --wait --json
    """
    name, _, version = package.partition(":")
    if not name:
        raise click.UsageError("PACKAGE is NAME or NAME:VERSION")
    target = str(destination.absolute()) if destination is not None else ""
    transfer = run(_pull(place, name, version, arch, target, wait=wait, quiet=as_json))
    if as_json:
        print_json(transfer_json(transfer))
        return
    fetched = f"{size(transfer.received_bytes)} fetched" if transfer.received_bytes else "nothing to fetch"
    click.echo(
        f"{plain(transfer.name)}:{transfer.version} is here, verified: {size(transfer.total_bytes)}, {fetched}, "
        f"{size(transfer.reused_bytes)} had already, in {duration(transfer.elapsed_s)}"
    )
    for source in transfer.sources:
        click.echo(f"  {size(source.bytes):>10}  from {plain(source.agent_id) or 'unknown'}")
    if transfer.path:
        click.echo(f"unpacked to {transfer.path}")


async def _pull(
    place: Place, name: str, version: str, arch: str, target: str, *, wait: bool, quiet: bool
) -> pb.Transfer:
    last: pb.Transfer | None = None
    async with place.agent() as agent:
        title = f"{name}:{version}" if version else name
        with TransferBar(title, quiet=quiet) as bar:
            stream = agent.pull(name, version, arch, target, wait=wait)
            async with contextlib.aclosing(stream) as messages:
                async for message in messages:
                    last = message
                    bar.update(message.verified_bytes, message.total_bytes, _figures(message), _words(message))
    if last is None or last.state != "complete":
        raise UnavailableError("the agent went away before the package was here; it goes on when it is started again")
    return last


def _figures(transfer: pb.Transfer) -> str:
    parts = [f"{size(transfer.verified_bytes)} of {size(transfer.total_bytes)}"] if transfer.total_bytes else []
    if transfer.state == "fetching":
        parts.append(rate(transfer.rate_bytes_per_s))
        if transfer.eta_s:
            parts.append(f"{duration(transfer.eta_s)} left")
    return ", ".join(parts)


def _words(transfer: pb.Transfer) -> str:
    return f"{transfer.state}: {transfer.reason}" if transfer.reason else transfer.state


def transfer_json(transfer: pb.Transfer) -> dict[str, object]:
    """A transfer for programs."""
    return {
        "name": transfer.name,
        "version": transfer.version,
        "arch": transfer.arch,
        "digest": transfer.digest,
        "state": transfer.state,
        "reason": transfer.reason,
        "total_bytes": transfer.total_bytes,
        "verified_bytes": transfer.verified_bytes,
        "reused_bytes": transfer.reused_bytes,
        "received_bytes": transfer.received_bytes,
        "wasted_bytes": transfer.wasted_bytes,
        "elapsed_s": round(transfer.elapsed_s, 3),
        "sources": [{"agent_id": source.agent_id, "bytes": source.bytes} for source in transfer.sources],
        "path": transfer.path,
    }
