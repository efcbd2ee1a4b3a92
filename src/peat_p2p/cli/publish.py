"""`peat publish`: make a package of a file or folder and announce it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import TransferBar, print_json, size
from peat_p2p.core.errors import UnavailableError
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True, help="The package's name: letters, digits, '.', '_' and '-'.")
@click.option("--version", required=True, help="Its version, such as 1.4.2.")
@click.option("--arch", default="any", show_default=True, help="What it runs on, such as amd64 or arm64.")
@click.option(
    "--priority",
    type=click.Choice(("mission-critical", "support", "background")),
    default="support",
    show_default=True,
    help="How much it matters: agents fetch what matters more first.",
)
@json_option
@place_options
def publish(path: Path, name: str, version: str, arch: str, priority: str, as_json: bool, place: Place) -> None:
    """Publish the file or folder PATH as a package.

    The node's agent cuts it into chunks, signs its manifest (the node's certificate needs the role publisher), offers
    it to other agents and announces it in the mesh.

    \b
    peat publish ./build --name app --version 1.0
    peat publish image.tar --name os --version 12.5 --arch arm64
    """
    request = pb.PublishRequest(path=str(path.absolute()), name=name, version=version, arch=arch, priority=priority)
    package = run(_publish(place, request, quiet=as_json))
    if as_json:
        print_json(package_json(package))
        return
    click.echo(
        f"published {package.name}:{package.version} ({package.arch}): {size(package.total_bytes)}, "
        f"{package.files} files, {package.chunks} chunks"
    )
    click.echo(f"manifest {package.manifest}")
    click.echo(f"fetch it on another node: peat pull {package.name}:{package.version}")


async def _publish(place: Place, request: pb.PublishRequest, *, quiet: bool) -> pb.Package:
    async with place.agent() as agent:
        with TransferBar(f"{request.name}:{request.version}", quiet=quiet) as bar:
            stream = agent.stream(lambda stub: stub.publish(request))
            async with contextlib.aclosing(stream) as messages:
                async for message in messages:
                    if message.done is not None:
                        return message.done
                    done, total = message.bytes_done, message.bytes_total
                    bar.update(done, total, f"{size(done)} of {size(total)}" if total else "", message.step)
    raise UnavailableError("the agent stopped before the package was published; publish it again")


def package_json(package: pb.Package) -> dict[str, object]:
    """A package for programs."""
    return {
        "name": package.name,
        "version": package.version,
        "arch": package.arch,
        "digest": package.digest,
        "manifest": package.manifest,
        "total_bytes": package.total_bytes,
        "files": package.files,
        "chunks": package.chunks,
        "publisher": package.publisher,
        "published_at": package.published_at,
        "holders": list(package.holders),
        "held_bytes": package.held_bytes,
        "deployed": package.deployed,
        "copies": package.copies,
        "under_replicated": package.under_replicated,
        "pinned": package.pinned,
    }
