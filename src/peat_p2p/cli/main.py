"""The `peat` command: its groups, and the one place where an error becomes a line of text and an exit status.

Owns the table of exit statuses. Commands are imported when they are run, so that `peat --help` stays quick.
"""

from __future__ import annotations

import gc
import importlib
import signal
import sys
from typing import Any

import click

from peat_p2p import __version__
from peat_p2p.core.errors import (
    ConfigError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PeatError,
    UnavailableError,
)

# Name of the command -> module of cli/ and the name of the click command in it.
COMMANDS = {
    "up": "up:up",
    "sidecar": "sidecar:sidecar",
    "agent": "agent:agent",
    "hub": "hub:hub",
    "formation": "formation:formation",
    "publish": "publish:publish",
    "pull": "pull:pull",
    "broadcast": "broadcast:broadcast",
    "packages": "packages:packages",
    "why": "why:why",
    "store": "store:store",
    "fleet": "fleet:fleet",
    "peers": "peers:peers",
    "commands": "commands:commands",
    "revoke": "revoke:revoke",
    "demo": "demo:demo",
}

SERVICES = frozenset(("up", "sidecar", "agent", "hub"))

# First match wins. 2 is click's own status for wrong usage.
EXIT_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 2),
    (InvalidInputError, 2),
    (NotFoundError, 3),
    (UnavailableError, 4),
    (DeniedError, 5),
    (ExhaustedError, 6),
    (PeatError, 1),
    (OSError, 1),
    (TimeoutError, 1),
)


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"peat_p2p.cli.{module}"), name)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="peat")
def peat() -> None:
    """Distribute software packages peer to peer through a fleet of edge sites.

    \b
    Try it on one machine:      peat demo
    Start a node at once:       peat up --dev
    Publish something from it:  peat publish ./build --name app --version 1.0
    Fetch it on another node:   peat pull app:1.0

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 out of reach, 5 not allowed or not trusted,
    6 out of space or budget.
    """


def main() -> None:
    """Run the command line; the entry point of `peat`."""
    signal.signal(signal.SIGTERM, _stop_early)
    try:
        _run()
    finally:
        gc.freeze()  # the interpreter would look through all there is for garbage at its end: 50 ms


def _run() -> None:
    try:
        status = peat.main(prog_name="peat", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        known = _known_error(error)
        if known is None:
            raise
        click.echo(f"peat: {known}", err=True)
        sys.exit(exit_status(known))
    sys.exit(status if isinstance(status, int) else 0)


def _stop_early(_number: int, _frame: object) -> None:
    """SIGTERM where nothing better handles it: a service that was still starting has stopped as it was told to."""
    sys.exit(0 if sys.argv[1:2] and sys.argv[1] in SERVICES else 128 + signal.SIGTERM)


def exit_status(error: BaseException) -> int:
    """Return the exit status that stands for `error`."""
    return next((status for kind, status in EXIT_STATUS if isinstance(error, kind)), 1)


def _known_error(error: BaseException) -> BaseException | None:
    """Return the failure a person should read, out of the groups that task groups wrap it in; None if it is a bug."""
    while isinstance(error, BaseExceptionGroup):
        inner: Any = [e for e in error.exceptions if _known_error(e) is not None] or [error.exceptions[0]]
        error = inner[0]
    return error if isinstance(error, (PeatError, OSError, TimeoutError)) else None


if __name__ == "__main__":
    main()
