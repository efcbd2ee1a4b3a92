"""How a command finds the node it talks to.

Owns the flags `--data-dir`, `--sidecar`, `--agent` and `--json` that commands share, and the order in which they count:
an address given wins, else the processes that run with the data folder are asked. Must not print.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from peat_p2p import client
from peat_p2p.cli.options import DIRECTORY, FILE, F, default_data_dir, find_endpoints, option
from peat_p2p.core.config import Endpoints
from peat_p2p.core.errors import ConfigError, UnavailableError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the node is, by what the flags said."""

    data_dir: Path
    sidecar_url: str
    agent_url: str
    token_file: Path | None

    def sidecar(self) -> client.SidecarClient:
        """A client of the node's sidecar. Raises NotFoundError or UnavailableError when none runs."""
        url = self.sidecar_url or local_api(find_endpoints(self.data_dir))
        if not url:
            raise UnavailableError(f"no sidecar runs with the data folder {self.data_dir}; name one by --sidecar URL")
        return client.SidecarClient(url, token=self._token())

    def agent(self) -> client.AgentClient:
        """A client of the node's agent. Raises NotFoundError or UnavailableError when none runs."""
        url = self.agent_url
        if not url:
            found = find_endpoints(self.data_dir)
            # Beside a hub's sidecar stands the hub's own API, which is no agent.
            url = found.http if found.http != found.hub else ""
        if not url:
            raise UnavailableError(
                f"no agent runs with the data folder {self.data_dir}; start one with `peat agent` or `peat up`, "
                "or name one by --agent URL"
            )
        return client.AgentClient(url)

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        try:
            return self.token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"--token-file {self.token_file}: {error.strerror}") from None


def local_api(endpoints: Endpoints) -> str:
    """The sidecar's API as a neighbour calls it: by its Unix socket if it has one, which needs no token and no TLS."""
    return next((url for url in endpoints.apis if url.startswith("unix://")), endpoints.api)


def place_options(command: F) -> F:
    """Add the flags that say which node a command talks to; they arrive as one `place`."""

    def gather(ctx: click.Context, **values: Any) -> Any:
        place = Place(
            data_dir=values.pop("data_dir"),
            sidecar_url=values.pop("sidecar"),
            agent_url=values.pop("agent"),
            token_file=values.pop("token_file"),
        )
        return ctx.invoke(command, place=place, **values)

    gather.__doc__ = command.__doc__
    gather.__name__ = command.__name__
    # The flags declared so far hang on the function that is wrapped here.
    gather.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    wrapped: Any = click.pass_context(gather)
    wrapped.__click_params__ = gather.__click_params__  # type: ignore[attr-defined]
    for decorate in (
        option("--token-file", type=FILE, help="A file with the bearer token of a sidecar that asks for one."),
        option("--agent", default="", metavar="URL", help="The agent's HTTP face, instead of the one found."),
        option("--sidecar", default="", metavar="URL", help="The sidecar's API, instead of the one found."),
        option("--data-dir", type=DIRECTORY, default=default_data_dir, help="The data folder of the node to ask."),
    ):
        wrapped = decorate(wrapped)
    return wrapped  # type: ignore[no-any-return]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the asynchronous part of a command."""
    return asyncio.run(work)
