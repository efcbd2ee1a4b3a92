"""What an engine lends each of its transfers.

Owns the bundle and the port by which transfers of packages with common chunks share work. Must not know how they do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from peat_p2p.content.store import ChunkStore
from peat_p2p.core.clock import Clock
from peat_p2p.swarm.metadata import MetadataClient
from peat_p2p.swarm.peers import PeerBook
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.throttle import Throttle
from peat_p2p.swarm.torrents import TorrentSession

if TYPE_CHECKING:
    from peat_p2p.swarm.transfer import Transfer


class Claims(Protocol):
    """Which transfer fetches a chunk that several packages want, so that it is fetched once."""

    def claim(self, owner: Transfer, digests: Iterable[str]) -> set[str]:
        """Take what nobody else fetches; returns what is taken."""
        ...

    def release(self, owner: Transfer, digests: Iterable[str]) -> None:
        """Give up claims, the chunks being in the store or not; others are woken."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an engine lends each of its transfers."""

    store: ChunkStore
    torrents: TorrentSession
    client: MetadataClient
    routes: Routes
    book: PeerBook
    claims: Claims
    clock: Clock
    ca_pem: bytes
    state_dir: Path
    endpoint_id: str
    site: str
    hold: Callable[[Transfer], str]
    throttle: Throttle
    uncounted: Callable[[], bool]  # whether bytes may come that nothing counts
