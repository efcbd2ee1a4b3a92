"""Flags that commands share, each also `PEAT_…` in the environment and a key of a TOML file.

Owns their names, their order of precedence (flag, environment, file, default) and their turning into a NodeConfig.
Click does the parsing. Must not start anything.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import click

from peat_p2p.core.address import HostPort, ListenAddress, PeerAddress
from peat_p2p.core.config import Endpoints, NodeConfig
from peat_p2p.core.errors import ConfigError, NotFoundError
from peat_p2p.core.lifecycle import read_endpoints

F = TypeVar("F", bound=Callable[..., Any])

ENDPOINTS_FILES = ("node.json", "sidecar.json", "agent.json", "hub.json")


def default_data_dir() -> Path:
    """Return $XDG_DATA_HOME/peat, by default ~/.local/share/peat."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "peat"


class _Parsed(click.ParamType[Any]):
    """A click type from one of our own parsers, whose ConfigError becomes a usage error."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"label {text!r}: write KEY=VALUE")
    return key, value


HOST_PORT = _Parsed("HOST:PORT", lambda text: HostPort.parse(text.removeprefix("tcp://")))
LISTEN = _Parsed("ADDRESS", ListenAddress.parse)
PEER = _Parsed("ENDPOINT_ID@HOST:PORT", PeerAddress.parse)
LABEL = _Parsed("KEY=VALUE", _label)
DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """Declare a click option that is also `PEAT_<NAME>` in the environment."""
    long = next(name for name in names if name.startswith("--")).split("/")[0].removeprefix("--")
    long = long.removeprefix("no-") if "/" in names[0] else long
    return click.option(*names, envvar=f"PEAT_{long.upper().replace('-', '_')}", show_envvar=True, **attributes)


def _read_toml(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--config {path}: {error}") from None
    known = {parameter.name for parameter in ctx.command.params}
    values: dict[str, object] = {}
    for key, value in table.items():
        name = {"no_mdns": "mdns", "peer": "peers", "label": "labels"}.get(key.replace("-", "_"), key.replace("-", "_"))
        if name not in known:
            raise click.UsageError(
                f"--config {path}: there is no setting named {key!r} (see --help for those there are)"
            )
        if key.replace("-", "_") == "no_mdns":
            value = not value
        if name == "labels" and isinstance(value, Mapping):
            value = [f"{k}={v}" for k, v in value.items()]
        values[name] = value
    ctx.default_map = values
    return path


def node_options(command: F) -> F:
    """Add the flags that `peat sidecar`, `agent`, `hub` and `up` share."""
    for decorate in reversed(
        (
            option(
                "--config",
                type=FILE,
                is_eager=True,
                expose_value=False,
                callback=_read_toml,
                help="A TOML file with any of these settings; keys are the flags' names.",
            ),
            option("--data-dir", type=DIRECTORY, default=default_data_dir, help="Where the node keeps its data."),
            option("--node-id", default="", help="The node's name; must be the one in its certificate."),
            option("--formation", type=DIRECTORY, help="The node's certificates, made by `peat formation issue`."),
            option("--dev", is_flag=True, help="Use a throw-away formation inside the data folder."),
            option(
                "--listen",
                type=LISTEN,
                multiple=True,
                help="Where the API answers: tcp://HOST:PORT (port 0: any) or unix:///PATH. Repeatable. "
                "Default: a free port on 127.0.0.1, and DATA_DIR/api.sock.",
            ),
            option(
                "--mesh-listen",
                type=HOST_PORT,
                default="127.0.0.1:0",
                show_default=True,
                help="Where other sidecars reach this one.",
            ),
            option(
                "--swarm-listen",
                type=HOST_PORT,
                default="127.0.0.1:0",
                show_default=True,
                help="Where other agents fetch from this one.",
            ),
            option(
                "--http-listen",
                type=HOST_PORT,
                default="127.0.0.1:0",
                show_default=True,
                help="Where the agent's (or hub's) own HTTP face answers.",
            ),
            option("--peer", "peers", type=PEER, multiple=True, help="A sidecar to keep a link with. Repeatable."),
            option("--site", default="default", show_default=True, help="The site: agents that share a LAN."),
            option("--label", "labels", type=LABEL, multiple=True, help="A label of the node. Repeatable."),
            option("--mdns/--no-mdns", default=True, help="Find peers on the LAN by zeroconf.  [default: on]"),
            option(
                "--log-format",
                type=click.Choice(("text", "json")),
                default="text",
                show_default=True,
                help="The form of the log on standard error.",
            ),
            option(
                "--log-level",
                type=click.Choice(("DEBUG", "INFO", "WARNING", "ERROR"), case_sensitive=False),
                default="INFO",
                show_default=True,
                help="How much to log.",
            ),
            option("--ready-file", type=FILE, help="Written (JSON: ids and addresses) once everything answers."),
        )
    ):
        command = decorate(command)
    return command


def node_config(values: Mapping[str, Any]) -> NodeConfig:
    """Build the NodeConfig from the values click collected. Raises ConfigError."""
    return NodeConfig(
        data_dir=values["data_dir"].expanduser().absolute(),
        node_id=values["node_id"],
        formation=values["formation"],
        dev=values["dev"],
        listen=tuple(values["listen"]),
        mesh_listen=values["mesh_listen"],
        swarm_listen=values["swarm_listen"],
        http_listen=values["http_listen"],
        peers=tuple(values["peers"]),
        site=values["site"],
        labels=MappingProxyType(dict(values["labels"])),
        mdns=values["mdns"],
        log_format=values["log_format"],
        ready_file=values["ready_file"],
    )


def find_endpoints(data_dir: Path) -> Endpoints:
    """Read what runs with `data_dir`, all its processes merged. Raises NotFoundError when nothing runs there."""
    found: dict[str, Any] = {}
    problem: NotFoundError | None = None
    for name in ENDPOINTS_FILES:
        file = data_dir.expanduser() / name
        if not file.exists():
            continue
        try:
            endpoints = read_endpoints(file)
        except NotFoundError as error:
            problem = error
            continue
        for key in Endpoints.__dataclass_fields__:
            found[key] = found.get(key) or getattr(endpoints, key)
    if not found:
        raise problem or NotFoundError(
            f"nothing is running with the data folder {data_dir}; start a node with `peat up --dev`, "
            "or name another by --data-dir, --sidecar URL or --agent URL"
        )
    return Endpoints(**found)
