"""`peat revoke`: take trust away from a node or from a version of a package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import print_json, print_table, when
from peat_p2p.core.errors import ConflictError, NotFoundError
from peat_p2p.fleet import ids
from peat_p2p.fleet.fields import text, whole
from peat_p2p.fleet.holdings import Announcement

_HEX = re.compile(r"(?:blake3:)?([0-9a-f]{64})")


@click.group()
def revoke() -> None:
    """Take trust away from a node or a package, for good.

    A revocation is signed by the sidecar that accepts it (its certificate needs the role operator or hub) and goes
    through the mesh ahead of everything else. Links to a revoked node are closed, its commands and packages refused;
    a revoked package is neither fetched nor deployed.

    \b
    peat revoke node edge-7 --reason "vehicle captured"
    peat revoke package app:1.0 --reason "CVE-2026-0001"
    peat revoke list
    """


_reason = click.option("--reason", default="", help="Why, for people; everybody in the formation can read it.")


@revoke.command()
@click.argument("which", metavar="NODE|ENDPOINT_ID")
@_reason
@json_option
@place_options
def node(which: str, reason: str, as_json: bool, place: Place) -> None:
    """Revoke a node, by its name or its endpoint id (64 hex digits).

    \b
    peat revoke node edge-7 --reason "vehicle captured"
    """
    subject = run(_revoke_node(place, which, reason))
    _say("endpoint", subject, which, as_json)


@revoke.command()
@click.argument("which", metavar="NAME:VERSION|MANIFEST")
@click.option("--arch", default="", help="Which of several, if the version is there for several architectures.")
@_reason
@json_option
@place_options
def package(which: str, arch: str, reason: str, as_json: bool, place: Place) -> None:
    """Revoke one version of a package, by its name or its manifest's digest (blake3:HEX).

    \b
    peat revoke package app:1.0 --reason "CVE-2026-0001"
    """
    subject = run(_revoke_package(place, which, arch, reason))
    _say("package", subject, which, as_json)


@revoke.command("list")
@json_option
@place_options
def list_revocations(as_json: bool, place: Place) -> None:
    """List what is revoked, as far as it is known here.

    \b
    peat revoke list --json
    """
    documents = run(_read(place, ids.REVOCATIONS))
    found = [
        {
            "kind": text(fields, "kind"),
            "subject": text(fields, "subject"),
            "reason": text(fields, "reason"),
            "created_at": whole(fields, "created_at"),
        }
        for _, fields in sorted(documents.items())
    ]
    if as_json:
        print_json(found)
        return
    rows = [(str(it["kind"]), str(it["subject"]), when(int(str(it["created_at"]))), str(it["reason"])) for it in found]
    print_table(("KIND", "WHAT", "SINCE (UTC)", "REASON"), rows, empty="nothing is revoked")


def _say(kind: str, subject: str, which: str, as_json: bool) -> None:
    if as_json:
        print_json({"kind": kind, "subject": subject})
    else:
        click.echo(f"{which} is revoked ({kind} {subject})")


async def _revoke_node(place: Place, which: str, reason: str) -> str:
    async with place.sidecar() as sidecar:
        found = _HEX.fullmatch(which)
        if found:
            subject = found[1]
        else:
            known = {agent.heartbeat.endpoint_id for agent in await sidecar.fleet() if agent.agent_id == which}
            known |= {link.endpoint_id for link in await sidecar.list_links() if link.node_id == which}
            subject = _only(known - {""}, f"node {which!r}", "its endpoint id (`peat formation show` prints them)")
        await sidecar.put_document(ids.REVOCATIONS, f"endpoint:{subject}", {"reason": reason})
    return subject


async def _revoke_package(place: Place, which: str, arch: str, reason: str) -> str:
    async with place.sidecar() as sidecar:
        found = _HEX.fullmatch(which)
        if found:
            subject = found[1]
        else:
            name, _, version = which.rpartition(":")
            manifests = await sidecar.read_collection(ids.MANIFESTS)
            known = {
                doc_id
                for doc_id, document in manifests.items()
                if _is(Announcement.from_document(doc_id, document), name, version, arch)
            }
            subject = _only(known, f"package {which!r}", "--arch, or its manifest's digest (`peat packages --json`)")
        await sidecar.put_document(ids.REVOCATIONS, f"package:{subject}", {"reason": reason})
    return subject


async def _read(place: Place, collection: str) -> Mapping[str, Mapping[str, Any]]:
    async with place.sidecar() as sidecar:
        return await sidecar.read_collection(collection)


def _is(announced: Announcement, name: str, version: str, arch: str) -> bool:
    return (announced.name, announced.version) == (name, version) and arch in ("", announced.arch)


def _only(found: set[str], what: str, instead: str) -> str:
    """The one that is meant. A revocation cannot be taken back, so nothing is guessed."""
    if not found:
        raise NotFoundError(f"{what} is not known here; give {instead}")
    if len(found) > 1:
        raise ConflictError(f"{what} could be any of {', '.join(sorted(found))}; give {instead}")
    return found.pop()
