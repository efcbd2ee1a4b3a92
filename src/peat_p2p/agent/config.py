"""What an agent can be told.

Owns the settings of `peat agent` that are its own; those shared by every service are in `core.config`. Only checks
values, does not look at the machine.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

from peat_p2p import __version__
from peat_p2p.content.eviction import Watermarks
from peat_p2p.core.address import HostPort
from peat_p2p.core.config import LOOPBACK, NodeConfig
from peat_p2p.core.errors import ConfigError
from peat_p2p.swarm.budget import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The agent's settings. `sidecar` is the URL of its own sidecar's API. Raises ConfigError when a value is wrong.

    `heartbeat_interval_s` is the time between heartbeats when nothing changes; a change is pushed at once. Limits are
    bytes per second, 0 for none; those of the `site` bound what crosses to other sites, `bearer_limit` what goes out
    over the UDP bearers. `keep_deployments` old versions of each package stay unpacked for a way back. A
    package that fewer than `copies` agents in reach hold is shown as under-replicated. With `watermarks`, packages
    that others in reach hold are removed when the disk is too full; without, nothing ever is. `budget` bounds what the
    swarm may move and when. `broadcast_listen` is a multicast group whose packages are taken in, heard on the interface
    with the IPv4 address `broadcast_interface`. `sidecar_token_file` holds the token of a sidecar that asks for one.
    """

    node: NodeConfig
    sidecar: str
    heartbeat_interval_s: float = 30.0
    heartbeat_jitter: float = 0.1
    download_limit: int = 0
    upload_limit: int = 0
    site_download_limit: int = 0
    site_upload_limit: int = 0
    bearer_limit: int = 0
    arch: str = field(default_factory=lambda: machine_arch(platform.machine()))
    metadata_listen: HostPort = LOOPBACK
    agent_version: str = __version__
    classification: str = ""
    run_mode: str = ""
    keep_deployments: int = 2
    copies: int = 2
    watermarks: Watermarks | None = None
    budget: Budget = field(default_factory=Budget)
    sidecar_token_file: Path | None = None
    broadcast_listen: HostPort | None = None
    broadcast_interface: str = "0.0.0.0"  # noqa: S104

    def __post_init__(self) -> None:
        if not self.sidecar:
            raise ConfigError("the agent needs the address of its sidecar: --sidecar http://HOST:PORT or unix:///PATH")
        if not 0.05 <= self.heartbeat_interval_s <= 86_400:
            raise ConfigError(f"heartbeat interval {self.heartbeat_interval_s} s is outside 0.05 to 86400")
        if not 0 <= self.heartbeat_jitter < 1:
            raise ConfigError(f"heartbeat jitter {self.heartbeat_jitter} is outside 0 to 1")
        if min(self.limits.values()) < 0:
            raise ConfigError("a rate limit is a number of bytes per second, 0 for none")
        if self.keep_deployments < 0:
            raise ConfigError("keep-deployments is a number of old versions, 0 for none")
        if self.copies < 1:
            raise ConfigError("copies is the number of holders a package shall have, 1 or more")
        if not self.arch:
            raise ConfigError("the agent's architecture is empty; give --arch")

    @property
    def limits(self) -> dict[str, int]:
        """Every rate limit by the name of its flag, in bytes per second, 0 for none."""
        return {
            "download-limit": self.download_limit,
            "upload-limit": self.upload_limit,
            "site-download-limit": self.site_download_limit,
            "site-upload-limit": self.site_upload_limit,
            "bearer-limit": self.bearer_limit,
        }

    @property
    def store_root(self) -> Path:
        """The chunk store's folder."""
        return self.node.data_dir / "store"

    @property
    def deployments_root(self) -> Path:
        """Where deployed packages are unpacked."""
        return self.node.data_dir / "deployments"

    @property
    def state_root(self) -> Path:
        """Where the agent keeps its own small files."""
        return self.node.data_dir / "agent"


def machine_arch(machine: str) -> str:
    """The architecture as package tools write it, of what the kernel calls it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine.lower() or "unknown")
