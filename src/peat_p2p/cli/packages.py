"""`peat packages`: what the fleet has to offer, and what this node has of it."""

from __future__ import annotations

import json

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import ago, plain, print_json, print_table, size, when
from peat_p2p.cli.publish import package_json
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb


@click.group(invoke_without_command=True)
@json_option
@place_options
@click.pass_context
def packages(ctx: click.Context, as_json: bool, place: Place) -> None:
    """List the packages known here: who published them, who holds them, and what this node has of them.

    Only packages whose manifest verifies are listed. `!` marks those with fewer copies in reach than there should be.

    \b
    peat packages
    peat packages --json
    peat packages show app:1.0
    peat packages rm app:1.0
    peat packages pin app:1.0
    """
    if ctx.invoked_subcommand is not None:
        return
    found = run(_packages(place))
    if as_json:
        print_json([package_json(package) for package in found])
        return
    print_table(
        ("PACKAGE", "VERSION", "ARCH", "SIZE", "HERE", "COPIES", "HOLDERS", "PUBLISHED", "BY"),
        (
            (
                package.name,
                package.version,
                package.arch,
                size(package.total_bytes),
                _here(package),
                f"{package.copies}{' !' if package.under_replicated else ''}",
                ", ".join(package.holders) or "nobody",
                ago(package.published_at),
                package.publisher,
            )
            for package in found
        ),
        empty="no packages are known here; publish one: peat publish PATH --name NAME --version VERSION",
    )


@packages.command()
@click.argument("package", metavar="NAME[:VERSION]")
@click.option("--arch", default="", help="Its architecture.  [default: this node's, or any]")
@click.option("--files", is_flag=True, help="Also list its files, where this node holds it.")
@json_option
@place_options
def show(package: str, arch: str, files: bool, as_json: bool, place: Place) -> None:
    """Show one package: its manifest, its holders, how it is cut.

    \b
    peat packages show app:1.0 --files
    """
    name, version = split_reference(package)
    found = run(_show(place, pb.ShowPackageRequest(name=name, version=version, arch=arch)))
    about = found.package
    assert about is not None
    if as_json:
        entries = [
            {
                "path": e.path,
                "kind": e.kind,
                "mode": e.mode,
                "size": e.size,
                "target": e.target,
                "opened": list(e.opened),
            }
            for e in found.entries
        ]
        more = {
            "annotations": dict(found.annotations),
            "unique_bytes": found.unique_bytes,
            "average_chunk_bytes": found.average_chunk_bytes,
            "pinned": found.pinned,
            "entries": entries,
        }
        print_json({**package_json(about), **more})
        return
    lines = {
        "package": f"{about.name}:{about.version} for {about.arch}",
        "manifest": about.manifest,
        "content": about.digest,
        "published": f"{when(about.published_at)} UTC by {about.publisher}",
        "size": f"{size(about.total_bytes)} in {about.files} entries",
        "chunks": f"{about.chunks}"
        + (f", {size(found.unique_bytes)} to fetch for a node with nothing" if found.unique_bytes else ""),
        "here": _here(about),
        "holders": f"{', '.join(about.holders) or 'nobody'} ({about.copies} in reach"
        + (", fewer than there should be)" if about.under_replicated else ")"),
        **_archives(found),
        **{f"annotation {key}": text for key, text in sorted(found.annotations.items()) if key not in _ARCHIVES},
    }
    for key, value in lines.items():
        click.echo(f"{plain(key) + ':':<12} {plain(value)}")
    if files:
        click.echo()
        print_table(
            ("MODE", "SIZE", "PATH"),
            ((f"{e.mode:04o}", size(e.size) if e.kind == "file" else e.kind, _path(e)) for e in found.entries),
            empty="its files are not known here: pull it first",
        )


@packages.command("rm")
@click.argument("package", metavar="NAME[:VERSION]")
@click.option("--arch", default="", help="Its architecture, when several are held.")
@click.option("--force", is_flag=True, help="Also when it is pinned, or no other agent in reach holds it.")
@json_option
@place_options
def remove(package: str, arch: str, force: bool, as_json: bool, place: Place) -> None:
    """Remove a package from this node's store, and stop offering it. What is deployed stays.

    \b
    peat packages rm app:1.0
    peat packages rm app:1.0 --force
    """
    name, version = split_reference(package)
    request = pb.RemovePackageRequest(name=name, version=version, arch=arch, force=force)
    removed = run(_remove(place, request))
    about = removed.package
    assert about is not None
    if as_json:
        print_json({"manifest": about.manifest, "freed_bytes": removed.freed_bytes})
    else:
        click.echo(f"{about.name}:{about.version} is removed from this node; {size(removed.freed_bytes)} freed")


@packages.command()
@click.argument("package", metavar="NAME[:VERSION]")
@click.option("--arch", default="", help="Its architecture, when several are held.")
@json_option
@place_options
def pin(package: str, arch: str, as_json: bool, place: Place) -> None:
    """Keep a package that this node holds from being removed or evicted.

    \b
    peat packages pin app:1.0
    """
    _set_pin(place, package, arch, pinned=True, as_json=as_json)


@packages.command()
@click.argument("package", metavar="NAME[:VERSION]")
@click.option("--arch", default="", help="Its architecture, when several are held.")
@json_option
@place_options
def unpin(package: str, arch: str, as_json: bool, place: Place) -> None:
    """Allow a package to be removed or evicted again.

    \b
    peat packages unpin app:1.0
    """
    _set_pin(place, package, arch, pinned=False, as_json=as_json)


def _set_pin(place: Place, reference: str, arch: str, *, pinned: bool, as_json: bool) -> None:
    name, version = split_reference(reference)
    about = run(_pin(place, pb.PinPackageRequest(name=name, version=version, arch=arch, pinned=pinned)))
    if as_json:
        print_json(package_json(about))
    else:
        click.echo(f"{about.name}:{about.version} ({about.arch}) is {'pinned' if pinned else 'no longer pinned'}")


# These annotations are said in words of their own.
_ARCHIVES = ("archives.opened", "archives.kept", "archives.kept.in")
_NAMED = 5


def _archives(found: pb.ShowPackageResponse) -> dict[str, str]:
    """Which archives are cut by their content, and which as they are."""
    opened, kept, inside = (found.annotations.get(key, "") for key in _ARCHIVES)
    lines = {}
    if opened not in ("", "0"):
        made = [f"{e.path} ({', '.join(e.opened)})" for e in found.entries if e.opened]
        more = ", ..." if len(made) > _NAMED else ""
        names = f": {', '.join(made[:_NAMED])}{more}" if made else ""
        lines["opened"] = f"{opened} compressed, cut by content and made again bit for bit{names}"
    if kept not in ("", "0"):
        try:
            names = ", ".join(str(name) for name in json.loads(inside))
        except ValueError:
            names = ""
        lines["kept whole"] = (
            f"{kept} compressed that cannot be made again, cut as they are{f': {names}' if names else ''}"
        )
    return lines


def split_reference(text: str) -> tuple[str, str]:
    """Read NAME or NAME:VERSION. Raises a usage error."""
    name, _, version = text.partition(":")
    if not name:
        raise click.UsageError(f"{text!r} is not NAME or NAME:VERSION")
    return name, version


def _here(package: pb.Package) -> str:
    pinned = ", pinned" if package.pinned else ""
    if package.deployed:
        return f"deployed{pinned}"
    if package.held_bytes >= package.total_bytes:
        return f"yes{pinned}"
    return f"{100 * package.held_bytes // package.total_bytes}%" if package.held_bytes else "-"


def _path(entry: pb.Entry) -> str:
    return f"{entry.path} -> {entry.target}" if entry.kind == "symlink" else entry.path


async def _packages(place: Place) -> list[pb.Package]:
    async with place.agent() as agent:
        found = await agent.packages()
    return sorted(found, key=lambda package: package.name)


async def _show(place: Place, request: pb.ShowPackageRequest) -> pb.ShowPackageResponse:
    async with place.agent() as agent:
        return await agent.call(lambda stub: stub.show_package(request), changes=False)


async def _pin(place: Place, request: pb.PinPackageRequest) -> pb.Package:
    async with place.agent() as agent:
        response = await agent.call(lambda stub: stub.pin_package(request))
    assert response.package is not None
    return response.package


async def _remove(place: Place, request: pb.RemovePackageRequest) -> pb.RemovePackageResponse:
    async with place.agent() as agent:
        return await agent.call(lambda stub: stub.remove_package(request))
