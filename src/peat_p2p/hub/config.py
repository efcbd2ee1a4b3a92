"""The hub's settings.

Owns what `peat hub` adds to the settings every service has, and the rule that an HTTP API which others than this
machine can reach asks for a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peat_p2p.core.config import NodeConfig
from peat_p2p.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """How one hub runs. Raises ConfigError when it is wrong.

    `history_events` bounds the history: the oldest go first. `token_file` names a file whose content callers of the
    HTTP API must show, and with which the hub calls its own sidecar if that is reached by TCP.
    """

    node: NodeConfig
    history_events: int = 100_000
    max_body_bytes: int = 256 * 1024
    token_file: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.history_events < 100:
            raise ConfigError(f"the history must be allowed at least 100 events ({self.history_events} given)")
        if self.max_body_bytes < 1024:
            raise ConfigError(f"the largest body may not be under 1024 bytes ({self.max_body_bytes} given)")
        if not self.node.http_listen.is_loopback and self.token_file is None and not self.insecure:
            raise ConfigError(
                f"the hub's HTTP API on {self.node.http_listen} can be reached from other machines: give --token-file"
                " FILE (callers show the token), listen on 127.0.0.1, or say --insecure"
            )

    @property
    def history_file(self) -> Path:
        """Where the history is kept."""
        return self.node.data_dir / "hub" / "history.sqlite"
