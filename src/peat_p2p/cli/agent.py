"""`peat agent`: run the node's agent."""

from __future__ import annotations

import re
from typing import Any

import click

from peat_p2p.cli.connect import local_api
from peat_p2p.cli.options import FILE, HOST_PORT, find_endpoints, node_config, node_options, option
from peat_p2p.cli.run import run_service
from peat_p2p.core.errors import ConfigError, NotFoundError


class _Size(click.ParamType[int]):
    name = "SIZE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,15})([KMGT]?)", str(value).strip().upper())
        if not found:
            self.fail(f"{value!r} is not a size such as 500M or 2G", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


SIZE = _Size()
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def agent_options(command: Any) -> Any:
    """Add the flags of an agent, for `peat agent` and `peat up`."""
    for decorate in reversed(
        (
            option(
                "--download-limit",
                type=SIZE,
                default=0,
                help="Bytes per second fetched from peers at most; 0: no limit.",
            ),
            option(
                "--upload-limit",
                type=SIZE,
                default=0,
                help="Bytes per second given to peers at most; 0: no limit.",
            ),
            option(
                "--site-download-limit",
                type=SIZE,
                default=0,
                help="Bytes per second fetched from other sites at most, such as 500K; 0: no limit.",
            ),
            option(
                "--site-upload-limit",
                type=SIZE,
                default=0,
                help="Bytes per second given to other sites at most; 0: no limit.",
            ),
            option(
                "--bearer-limit",
                type=SIZE,
                default=0,
                help="Bytes per second sent over the UDP bearer at most, to all peers together; 0: no limit.",
            ),
            option(
                "--heartbeat-interval",
                type=click.FloatRange(min=0.2),
                default=30.0,
                show_default=True,
                help="Seconds between heartbeats when nothing changes.",
            ),
            option(
                "--metadata-listen",
                type=HOST_PORT,
                default="127.0.0.1:0",
                show_default=True,
                help="Where other agents read a package's list of chunks from this one.",
            ),
            option(
                "--budget-hour",
                type=SIZE,
                default=0,
                help="Bytes the swarm may move in an hour, both ways, such as 500M.",
            ),
            option("--budget-day", type=SIZE, default=0, help="The same for a day (UTC)."),
            option("--budget-month", type=SIZE, default=0, help="The same for a month (UTC)."),
            option(
                "--transfer-window",
                "transfer_windows",
                multiple=True,
                metavar="HH:MM-HH:MM",
                help="Move bytes only in this part of the day (UTC). Repeatable.  [default: always]",
            ),
            option(
                "--evict-above",
                type=click.IntRange(0, 100),
                default=95,
                show_default=True,
                help="When the disk is fuller than this percentage, remove packages that others in reach hold and "
                "that are neither pinned nor in use; 0: never.",
            ),
            option(
                "--evict-to",
                type=click.IntRange(1, 100),
                help="Stop removing at this percentage.  [default: 10 below --evict-above]",
            ),
            option(
                "--copies",
                type=click.IntRange(min=1),
                default=2,
                show_default=True,
                help="Holders a package shall have; with fewer it is shown as under-replicated.",
            ),
            option(
                "--keep-deployments",
                type=click.IntRange(min=0),
                default=2,
                show_default=True,
                help="Old versions of each deployed package that stay unpacked.",
            ),
            option(
                "--broadcast-listen",
                type=HOST_PORT,
                metavar="GROUP:PORT",
                help="Take in packages that are broadcast to this multicast group, such as 239.7.7.7:7407.",
            ),
            option(
                "--broadcast-interface",
                default="0.0.0.0",  # noqa: S104
                metavar="IP",
                help="Address of the interface to hear broadcasts on.  [default: the system's choice]",
            ),
            option("--arch", default="", help="What this node runs on.  [default: this machine's: amd64, arm64, ...]"),
            option("--classification", default="", help="Said in the heartbeat as it is given."),
            option("--run-mode", default="", help="Said in the heartbeat as it is given."),
            option("--sidecar-token-file", type=FILE, help="A file with the token of a sidecar that asks for one."),
        )
    ):
        command = decorate(command)
    return command


def agent_config(values: dict[str, Any], sidecar: str) -> Any:
    """Build the AgentConfig from the values click collected; `sidecar` is the URL of the sidecar's API."""
    from peat_p2p.agent.config import AgentConfig
    from peat_p2p.content.eviction import Watermarks
    from peat_p2p.swarm.budget import Budget, Window

    above, to = values["evict_above"], values["evict_to"]
    if to is not None and to > above:
        raise ConfigError("--evict-to goes with --evict-above and is not over it")
    if to is None:
        to = max(1, above - 10)
    more: dict[str, Any] = {"arch": values["arch"]} if values["arch"] else {}
    return AgentConfig(
        **more,
        node=node_config(values),
        sidecar=sidecar,
        heartbeat_interval_s=values["heartbeat_interval"],
        download_limit=values["download_limit"],
        upload_limit=values["upload_limit"],
        site_download_limit=values["site_download_limit"],
        site_upload_limit=values["site_upload_limit"],
        bearer_limit=values["bearer_limit"],
        metadata_listen=values["metadata_listen"],
        budget=Budget(
            hour=values["budget_hour"],
            day=values["budget_day"],
            month=values["budget_month"],
            windows=tuple(Window.parse(text) for text in values["transfer_windows"]),
        ),
        watermarks=Watermarks(high=above / 100, low=to / 100) if above else None,
        copies=values["copies"],
        keep_deployments=values["keep_deployments"],
        classification=values["classification"],
        run_mode=values["run_mode"],
        sidecar_token_file=values["sidecar_token_file"],
        broadcast_listen=values["broadcast_listen"],
        broadcast_interface=values["broadcast_interface"],
    )


@click.command()
@node_options
@agent_options
@option("--sidecar", default="", help="URL of the sidecar's API.  [default: the one that runs with this data folder]")
def agent(sidecar: str, **values: Any) -> None:
    """Run the agent: it reports to its sidecar, obeys signed commands, fetches, seeds and deploys packages.

    \b
    peat agent --dev --sidecar http://127.0.0.1:50051
    peat agent --formation ./nodes/edge-1 --site alpha --swarm-listen 0.0.0.0:7401
    """
    from peat_p2p.agent.app import open_agent

    if not sidecar:
        try:
            sidecar = local_api(find_endpoints(values["data_dir"]))
        except NotFoundError:
            raise ConfigError(
                f"no sidecar runs with the data folder {values['data_dir']}: start one, or name one by --sidecar URL"
            ) from None
    config = agent_config(values, sidecar)
    run_service(open_agent(config), config.node, endpoints_name="agent.json", log_level=values["log_level"])
