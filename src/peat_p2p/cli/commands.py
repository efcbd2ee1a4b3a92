"""`peat commands`: order something of agents, and see what came of it."""

from __future__ import annotations

import json
import re
import secrets
import time

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import ago, plain, print_json, print_table, when
from peat_p2p.fleet.commands import Command, CommandStatus, fresh_command_id
from peat_p2p.fleet.view import CommandState

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class _Duration(click.ParamType[int]):
    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9})([smhd])", str(value))
        if not found or int(found[1]) == 0:
            self.fail(f"{value!r} is not a duration such as 90s, 30m, 24h or 7d", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


@click.group()
def commands() -> None:
    """Send commands to agents and follow them.

    A command is signed by the sidecar that accepts it and spreads through the mesh; agents act on it when that
    sidecar's certificate has the role operator or hub (or is the agent's own), also long after the sender is gone.

    \b
    peat commands send pull --target '*' --package app:1.0
    peat commands send deploy --target edge-1 --target site:alpha --package app:1.0 --expires 24h
    peat commands list
    """


@commands.command()
@click.argument("kind", metavar="TYPE", type=click.Choice(("pull", "deploy")))
@click.option("--target", "targets", multiple=True, required=True, help="An agent's id, site:NAME, or '*'. Repeatable.")
@click.option("--package", required=True, metavar="NAME:VERSION", help="What it is about.")
@click.option("--arch", default="", help="The package's architecture.  [default: each agent's own, or any]")
@click.option("--manifest", default="", metavar="blake3:HEX", help="Accept only the package with this manifest.")
@click.option("--path", default="", help="deploy: a further symbolic link to move, by absolute path.")
@click.option(
    "--expires", type=_Duration(), default="24h", show_default=True, help="Not begun after this: 90s, 30m, 24h, 7d."
)
@json_option
@place_options
def send(
    kind: str,
    targets: tuple[str, ...],
    package: str,
    arch: str,
    manifest: str,
    path: str,
    expires: int,
    as_json: bool,
    place: Place,
) -> None:
    """Order agents to TYPE (pull or deploy) a package.

    \b
    peat commands send pull --target '*' --package app:1.0
    peat commands send deploy --target edge-1 --package app:1.0 --expires 2h
    """
    name, _, version = package.partition(":")
    if not name:
        raise click.UsageError("--package is NAME:VERSION (or NAME, for the newest an agent knows)")
    if path and kind != "deploy":
        raise click.UsageError("--path goes with deploy only")
    wishes = {"package": name, "version": version, "arch": arch, "manifest": manifest, "path": path}
    payload = json.dumps({key: value for key, value in wishes.items() if value})
    given = time.time()
    now = int(given)
    orders = [
        Command(
            id=fresh_command_id(given, kind, name, secrets.token_hex(6)),
            target_id=target,
            command_type=kind,
            status=CommandStatus.PENDING,
            created_at=now,
            expires_at=now + expires,
            payload_json=payload,
        )
        for target in targets
    ]
    run(_send(place, orders))
    if as_json:
        print_json([{"id": order.id, "target_id": order.target_id, "expires_at": order.expires_at} for order in orders])
        return
    for order in orders:
        click.echo(f"{order.id}: {kind} {package} for {order.target_id}, good until {when(order.expires_at)} UTC")


@commands.command("list")
@click.option("--wide", is_flag=True, help="Also show what each agent said.")
@json_option
@place_options
def list_commands(wide: bool, as_json: bool, place: Place) -> None:
    """List the commands known here and what agents said about them.

    \b
    peat commands list --wide
    peat commands list --json
    """
    states = run(_list(place))
    if as_json:
        print_json([command_json(state) for state in states])
        return
    rows: list[tuple[str, ...]] = []
    for state in states:
        command = state.command
        rows.append(
            (
                command.id,
                command.command_type,
                command.target_id,
                _about(command),
                _summary(state),
                ago(command.created_at),
                when(command.expires_at),
            )
        )
        if wide:
            for receipt in state.receipts:
                said = (receipt.status.name.lower(), ago(receipt.updated_at), receipt.message)
                rows.append(("", "", f"  {receipt.agent_id}", "", *said))
    print_table(
        ("ID", "TYPE", "TARGET", "PACKAGE", "STATUS", "SENT", "EXPIRES" if not wide else "EXPIRES / SAID"),
        rows,
        empty="no commands are known here",
    )


def _about(command: Command) -> str:
    payload = command.payload
    name, version = payload.get("package"), payload.get("version")
    return plain(f"{name}:{version}" if name and version else str(name or "-"))


def _summary(state: CommandState) -> str:
    """One word for a command to one agent, counts for a command to many."""
    if state.command.single:
        return state.command.status.name.lower()
    counts = ", ".join(f"{count} {status.name.lower()}" for status, count in sorted(state.counts.items()))
    silent = f"{len(state.silent)} silent" if state.silent else ""
    return ", ".join(part for part in (counts, silent) if part) or "nobody has answered"


def command_json(state: CommandState) -> dict[str, object]:
    """A command for programs."""
    command = state.command
    return {
        "id": command.id,
        "target_id": command.target_id,
        "command_type": command.command_type,
        "status": int(command.status),
        "status_name": command.status.name.lower(),
        "created_at": command.created_at,
        "expires_at": command.expires_at,
        "payload": command.payload,
        "receipts": [
            {
                "agent_id": receipt.agent_id,
                "status": int(receipt.status),
                "status_name": receipt.status.name.lower(),
                "message": receipt.message,
                "updated_at": receipt.updated_at,
            }
            for receipt in state.receipts
        ],
        "silent": list(state.silent),
    }


async def _send(place: Place, orders: list[Command]) -> None:
    async with place.sidecar() as sidecar:
        for order in orders:
            await sidecar.put_command(order)


async def _list(place: Place) -> list[CommandState]:
    async with place.sidecar() as sidecar:
        return await sidecar.command_states()
