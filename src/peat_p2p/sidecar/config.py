"""The sidecar's settings.

Owns what `peat sidecar` adds to the settings every service has, and the rule that an API which others than this machine
can reach must know its callers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from peat_p2p.core.config import NodeConfig
from peat_p2p.core.errors import ConfigError

MAX_DOCUMENT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarConfig:
    """How one sidecar runs. Raises ConfigError when it is wrong.

    `tls` serves the API on TCP with the node's certificate and asks callers for one of the formation; `token_file`
    names a file whose content callers on TCP must show. A Unix socket needs neither: its file mode guards it.
    `watch_agent` is the URL of an agent that does not push: it is polled every `watch_interval_s` seconds and written
    as the agent `watch_agent_id` (empty: this node). `link_budget` is the most bytes per second one link of the mesh
    may carry. `store_key` (32 bytes) encrypts the database.
    """

    node: NodeConfig
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    max_pending_changes: int = 10_000
    insecure: bool = False
    tls: bool = False
    token_file: Path | None = None
    watch_agent: str | None = None
    watch_agent_id: str = ""
    watch_interval_s: float = 10.0
    link_budget: float | None = None
    store_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.max_document_bytes < 1024:
            raise ConfigError(f"the largest document may not be under 1024 bytes ({self.max_document_bytes} given)")
        if self.max_pending_changes < 1:
            raise ConfigError("a subscriber must be allowed at least one pending change")
        if self.watch_interval_s <= 0:
            raise ConfigError(f"the watch interval must be over 0 s ({self.watch_interval_s:g} given)")
        if self.insecure or self.tls or self.token_file is not None:
            return
        for address in self.node.api_listen:
            if address.host_port is not None and not address.host_port.is_loopback:
                raise ConfigError(
                    f"{address} can be reached from other machines: give --token-file FILE (callers show the token) or"
                    " --tls (callers show a certificate of the formation), listen on 127.0.0.1 or a Unix socket, or"
                    " say --insecure"
                )

    @property
    def max_message_bytes(self) -> int:
        """The largest request that is read: a document of the largest size, escaped as a JSON string at its worst."""
        return 6 * self.max_document_bytes + 64 * 1024
