"""The configuration every service shares.

Owns the flat set of settings that `peat sidecar`, `peat agent`, `peat hub` and `peat up` have in common. Where values
come from (flags, environment, a TOML file) is the command line's business; here they are only checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from peat_p2p.core.address import HostPort, ListenAddress, PeerAddress
from peat_p2p.core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LOOPBACK = HostPort("127.0.0.1", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Who a node is, where it keeps its data, where it listens and whom it calls. Raises ConfigError when it is wrong.

    `formation` is the node's own folder of certificates (made by `peat formation issue`); `dev` stands for a
    throw-away formation inside `data_dir`. Exactly one of the two is set. `listen` empty means: a port of the system's
    choice on loopback and a Unix socket in `data_dir`.
    """

    data_dir: Path
    node_id: str = ""
    formation: Path | None = None
    dev: bool = False
    listen: tuple[ListenAddress, ...] = ()
    mesh_listen: HostPort = LOOPBACK
    swarm_listen: HostPort = LOOPBACK
    http_listen: HostPort = LOOPBACK
    peers: tuple[PeerAddress, ...] = ()
    site: str = "default"
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    mdns: bool = True
    log_format: str = "text"
    ready_file: Path | None = None

    def __post_init__(self) -> None:
        if self.dev and self.formation is not None:
            raise ConfigError("--dev makes a throw-away formation, --formation names a real one: give one of the two")
        if not self.dev and self.formation is None:
            raise ConfigError(
                "no certificates: give --formation DIR (`peat formation issue` makes it), or --dev for a throw-away one"
            )
        if self.node_id and not _NAME.fullmatch(self.node_id):
            raise ConfigError(f"node id {self.node_id!r}: letters, digits, '.', '_' and '-' only, at most 63")
        if not _NAME.fullmatch(self.site):
            raise ConfigError(f"site {self.site!r}: letters, digits, '.', '_' and '-' only, at most 63")
        if self.log_format not in ("text", "json"):
            raise ConfigError(f"log format {self.log_format!r} is neither text nor json")
        for key in self.labels:
            if not key:
                raise ConfigError("a label has an empty key; write --label KEY=VALUE")

    @property
    def api_listen(self) -> tuple[ListenAddress, ...]:
        """Where the sidecar's API listens, the default included."""
        if self.listen:
            return self.listen
        return (ListenAddress(host_port=LOOPBACK), ListenAddress(path=self.data_dir.absolute() / "api.sock"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """What a running process answers on: the content of the ready file. Absent parts are empty.

    `api` is a URL the SDK takes (`http://HOST:PORT`, `https://…` or `unix://PATH`), `apis` all of them; `mesh`, `swarm`
    and `metadata` are `HOST:PORT`; `http` is the URL of the agent's or hub's HTTP face.
    """

    node_id: str
    endpoint_id: str
    pid: int = 0
    api: str = ""
    apis: tuple[str, ...] = ()
    mesh: str = ""
    swarm: str = ""
    metadata: str = ""
    http: str = ""
    hub: str = ""
