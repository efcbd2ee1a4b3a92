"""The account of one transfer: bytes received, by source, verified, wasted, across restarts.

Owns the arithmetic and its file. Rule: received = fetched and verified + wasted + still in flight; nothing that was
received is forgotten but what came in the last moment before a crash. Must not know libtorrent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peat_p2p.core.atomic import write_atomic

UNKNOWN_SOURCE = ""


@dataclass(frozen=True, slots=True)
class SourceBytes:
    """Payload bytes that came from one peer. `peer` is the first 20 digits of its endpoint id, empty when unknown."""

    peer: str
    agent_id: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Connection:
    """One live connection of the torrent: the peer's id, which connection it is, its payload bytes so far."""

    peer: str
    key: str
    received: int


@dataclass(slots=True)
class Ledger:
    """Counts of one transfer. `reused` is what the store had at the very start; `elapsed` sums up running time."""

    reused: int = 0
    received: int = 0
    fetched: int = 0
    elapsed: float = 0.0
    runs: int = 0
    started: float = 0.0
    by_peer: dict[str, int] = field(default_factory=dict)
    bad_peers: dict[str, int] = field(default_factory=dict)
    _session_received: int = 0
    _attributed: int = 0
    _open: dict[str, Connection] = field(default_factory=dict)
    _last: dict[str, int] = field(default_factory=dict)

    def observe(self, session_received: int, connections: Iterable[Connection]) -> None:
        """Take a reading: the torrent's payload bytes in this session, and those of each live connection.

        The two are read one after the other, so they may differ by what came in between; the next reading evens that
        out. What a connection carried after its last reading is found when it is gone: it belongs to the one peer that
        went, else to nobody known.
        """
        gained = max(0, session_received - self._session_received)
        self._session_received += gained
        self.received += gained
        now = {connection.key: connection for connection in connections}
        for key, connection in now.items():
            # A connection may be missing from one reading; less than before means another one at the same address.
            before = self._last.get(key, 0)
            self._attribute(connection.peer, connection.received - (before if connection.received >= before else 0))
            self._last[key] = connection.received
        gone = {connection.peer for key, connection in self._open.items() if key not in now}
        if gone or not now:
            self._attribute(gone.pop() if len(gone) == 1 else UNKNOWN_SOURCE, self._session_received - self._attributed)
        self._open = now

    def _attribute(self, peer: str, count: int) -> None:
        if count > 0:
            self.by_peer[peer] = self.by_peer.get(peer, 0) + count
            self._attributed += count

    def new_session(self) -> None:
        """The torrent was added anew: its counters begin at zero."""
        self._session_received = 0
        self._attributed = 0
        self._open = {}
        self._last = {}

    @property
    def wasted(self) -> int:
        """Bytes received that did not become a verified chunk. Counts what is in flight while there is any."""
        return max(0, self.received - self.fetched)

    def save(self, path: Path, *, durable: bool = True) -> None:
        """Write the account. Without `durable` it survives the death of the process, not that of the machine."""
        content = {
            "reused": self.reused,
            "received": self.received,
            "fetched": self.fetched,
            "elapsed": round(self.elapsed, 3),
            "runs": self.runs,
            "started": self.started,
            "by_peer": self.by_peer,
            "bad_peers": self.bad_peers,
        }
        data = json.dumps(content, sort_keys=True).encode()
        if durable:
            write_atomic(path, data)
            return
        # Cheap enough to do with every reading: a killed agent still knows whom its bytes came from.
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(data)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Ledger | None:
        """Read an account; None when there is none or it is damaged (then counting begins anew)."""
        try:
            content: Any = json.loads(path.read_bytes())
            return cls(
                reused=int(content["reused"]),
                received=int(content["received"]),
                fetched=int(content["fetched"]),
                elapsed=float(content["elapsed"]),
                runs=int(content["runs"]),
                started=float(content["started"]),
                by_peer={str(peer): int(count) for peer, count in content["by_peer"].items()},
                bad_peers={str(peer): int(count) for peer, count in content["bad_peers"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
