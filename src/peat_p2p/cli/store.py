"""`peat store`: the chunks on this node's disk."""

from __future__ import annotations

import contextlib
import sys

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import TransferBar, print_json, size
from peat_p2p.core.errors import UnavailableError
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb


@click.group()
def store() -> None:
    """Look after the chunks on this node's disk.

    \b
    peat store stat
    peat store verify
    peat store gc
    """


@store.command()
@json_option
@place_options
def stat(as_json: bool, place: Place) -> None:
    """Count what is in the store."""
    found = run(_stat(place))
    facts = {
        "path": found.path,
        "packages": found.packages,
        "chunks": found.chunks,
        "chunk_bytes": found.chunk_bytes,
        "delivered_bytes": found.delivered_bytes,
        "loose_chunks": found.loose_chunks,
        "loose_bytes": found.loose_bytes,
        "free_bytes": found.free_bytes,
    }
    if as_json:
        print_json(facts)
        return
    click.echo(f"store:    {found.path}")
    click.echo(f"packages: {found.packages}, {size(found.delivered_bytes)} when delivered")
    click.echo(f"chunks:   {found.chunks}, {size(found.chunk_bytes)} on disk")
    click.echo(f"loose:    {found.loose_chunks} of no package, {size(found.loose_bytes)} (`peat store gc` frees them)")
    click.echo(f"free:     {size(found.free_bytes)}")


@store.command()
@json_option
@place_options
def verify(as_json: bool, place: Place) -> None:
    """Read every chunk and check it. What is rotten is removed and fetched again; then the exit status is 1."""
    last = run(_verify(place, quiet=as_json))
    if as_json:
        print_json(
            {
                "chunks": last.chunks,
                "bytes": last.bytes_done,
                "bad_chunks": last.bad_chunks,
                "repairing": list(last.repairing),
            }
        )
    elif last.bad_chunks:
        click.echo(
            f"{last.bad_chunks} of {last.chunks} chunks were rotten and are removed; "
            f"fetched again: {', '.join(last.repairing)}"
        )
    else:
        click.echo(f"{last.chunks} chunks, {size(last.bytes_done)}: all good")
    if last.bad_chunks:
        sys.exit(1)


@store.command()
@json_option
@place_options
def gc(as_json: bool, place: Place) -> None:
    """Remove chunks that belong to no package."""
    found = run(_gc(place))
    if as_json:
        print_json({"chunks": found.chunks, "bytes": found.bytes, "strays": found.strays})
    else:
        click.echo(f"{found.chunks} chunks removed, {size(found.bytes)} freed, {found.strays} stray files")


async def _stat(place: Place) -> pb.StatStoreResponse:
    async with place.agent() as agent:
        return await agent.call(lambda stub: stub.stat_store(pb.StatStoreRequest()), changes=False)


async def _gc(place: Place) -> pb.CollectGarbageResponse:
    async with place.agent() as agent:
        return await agent.call(lambda stub: stub.collect_garbage(pb.CollectGarbageRequest()))


async def _verify(place: Place, *, quiet: bool) -> pb.VerifyStoreProgress:
    async with place.agent() as agent:
        with TransferBar("verify", quiet=quiet) as bar:
            stream = agent.stream(lambda stub: stub.verify_store(pb.VerifyStoreRequest()))
            async with contextlib.aclosing(stream) as messages:
                async for message in messages:
                    if message.done:
                        return message
                    figures = f"{size(message.bytes_done)} of {size(message.bytes_total)}"
                    bar.update(message.bytes_done, message.bytes_total, figures, f"{message.bad_chunks} bad")
    raise UnavailableError("the agent stopped before the store was verified; verify it again")
