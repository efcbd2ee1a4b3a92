"""Who may hold a package, and whom to try next.

Owns the port `PeerSource` (candidates come from documents, nowhere else) and the health of peers: who failed, how long
it is left alone, how fast it was. Rule: pure; time is an argument; a peer that fails is tried again later and ever less
often, up to a cap, and never keeps others from being tried. Must not open connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from peat_p2p.core.address import HostPort

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
LAST_SHUN_S = 3600.0
_RATE_MEMORY = 0.3


@dataclass(frozen=True, slots=True)
class PeerCandidate:
    """An agent that may have chunks of a package, as documents tell. `metadata` is where its HTTPS face listens.

    `kin` means that it has not the package but another version of it, which may share chunks.
    """

    agent_id: str
    endpoint_id: str
    swarm: HostPort
    metadata: HostPort | None = None
    site: str = ""
    complete: bool = True
    last_seen: float = 0.0
    kin: bool = False


class PeerSource(Protocol):
    """Where candidates come from."""

    def candidates(self, manifest_digest: str) -> Sequence[PeerCandidate]:
        """Who may hold chunks of the package, by what is known now. May name this node itself."""
        ...

    def shared(self, site: str, me: str) -> bool:
        """Whether another agent than this one is known at a site."""
        ...

    async def wait_change(self) -> None:
        """Return when the answer of `candidates` may have changed since the call began."""
        ...


class StaticPeers:
    """A source that is told its candidates: for command lines with fixed peers, and for tests.

    Of `shared_sites` it is known that they have several agents, whether or not these are candidates.
    """

    def __init__(self, candidates: Iterable[PeerCandidate] = (), shared_sites: Collection[str] = ()) -> None:
        self._candidates = tuple(candidates)
        self._shared_sites = frozenset(shared_sites)
        self._changed = asyncio.Event()

    def candidates(self, manifest_digest: str) -> Sequence[PeerCandidate]:
        """The candidates set last, for any package."""
        return self._candidates

    def shared(self, site: str, me: str) -> bool:
        """Whether the site is known to be, or any candidate is of it."""
        return site in self._shared_sites or any(
            peer.site == site and peer.endpoint_id != me for peer in self._candidates
        )

    async def wait_change(self) -> None:
        """Return at the next `set`."""
        await self._changed.wait()

    def set(self, candidates: Iterable[PeerCandidate]) -> None:
        """Replace the candidates."""
        self._candidates = tuple(candidates)
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(slots=True)
class PeerHealth:
    """What is known of one peer from dealing with it."""

    failures: int = 0
    retry_at: float = 0.0
    rate: float = 0.0
    bad_chunks: int = 0
    last_error: str = ""


@dataclass(slots=True)
class PeerBook:
    """The health of all peers this node dealt with, by endpoint id. Times are monotonic seconds."""

    own_endpoint: str = ""
    own_site: str = ""
    _health: dict[str, PeerHealth] = field(default_factory=dict)

    def health(self, endpoint_id: str) -> PeerHealth:
        """The record of a peer, made if there is none."""
        return self._health.setdefault(endpoint_id, PeerHealth())

    def known(self, endpoint_id: str) -> PeerHealth | None:
        """The record of a peer, None when there is none."""
        return self._health.get(endpoint_id)

    def failed(self, endpoint_id: str, now: float, error: str = "", patience: float | None = None) -> None:
        """A connection or request failed: leave the peer alone for `patience`, or 1, 2, 4 ... up to 60 seconds."""
        health = self.health(endpoint_id)
        health.failures += 1
        health.last_error = error
        if patience is not None:
            health.retry_at = now + patience
            return
        wait = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(health.failures - 1, 16))
        # The end of a connection to one that sent bad data is no reason to try it sooner.
        health.retry_at = max(health.retry_at, now + wait) if health.bad_chunks else now + wait

    def tried(self, endpoint_id: str, now: float, patience: float) -> None:
        """A connection was begun: do not begin another within `patience`."""
        health = self.health(endpoint_id)
        health.retry_at = max(health.retry_at, now + patience)

    def succeeded(self, endpoint_id: str) -> None:
        """The peer answered: its failures are forgotten."""
        health = self.health(endpoint_id)
        health.failures = 0
        health.retry_at = 0.0
        health.last_error = ""

    def network_changed(self, now: float) -> None:
        """Who did not answer may be in reach by now: all are tried at once, but those that sent bad data."""
        for health in self._health.values():
            if health.failures and not health.bad_chunks:
                health.failures, health.retry_at = 0, now

    def measured(self, endpoint_id: str, bytes_per_second: float) -> None:
        """Remember how fast a peer gave, as a moving average."""
        health = self.health(endpoint_id)
        if health.rate == 0.0:
            health.rate = bytes_per_second
        else:
            health.rate += _RATE_MEMORY * (bytes_per_second - health.rate)

    def sent_bad(self, endpoint_id: str, now: float) -> None:
        """A peer sent what does not match: it comes last from now on and is left alone for long, longer each time."""
        health = self.health(endpoint_id)
        health.bad_chunks += 1
        health.retry_at = now + min(LAST_SHUN_S, LAST_RETRY_S * 2.0 ** min(health.bad_chunks - 1, 16))

    def withheld(self, endpoint_id: str, now: float, what: str) -> None:
        """A peer did not give what it promised: as after bad data, but it may have its reasons."""
        self.sent_bad(endpoint_id, now)
        self.health(endpoint_id).last_error = what

    def mended(self, endpoint_id: str, now: float) -> None:
        """A peer that sent bad data looked and dropped it: it may be tried again soon, but still comes last."""
        self.health(endpoint_id).retry_at = now + FIRST_RETRY_S

    def order(self, candidates: Iterable[PeerCandidate]) -> list[PeerCandidate]:
        """Best first: honest, in reach, no kin, of this site, complete, fast, heard of lately. Not this node itself."""

        def key(peer: PeerCandidate) -> tuple[object, ...]:
            health = self._health.get(peer.endpoint_id, _UNKNOWN)
            near = bool(self.own_site) and peer.site == self.own_site
            return (
                health.bad_chunks,
                min(health.failures, 3),
                peer.kin,
                not near,
                not peer.complete,
                -health.rate,
                -peer.last_seen,
                peer.endpoint_id,
            )

        return sorted((peer for peer in candidates if peer.endpoint_id != self.own_endpoint), key=key)

    def due(self, candidates: Iterable[PeerCandidate], now: float) -> list[PeerCandidate]:
        """Those that may be tried now, best first."""
        return [peer for peer in self.order(candidates) if self._health.get(peer.endpoint_id, _UNKNOWN).retry_at <= now]

    def why_nobody(self, candidates: Sequence[PeerCandidate], now: float) -> str:
        """A sentence on why none of the candidates is connected."""
        if not candidates:
            return "no agent known here holds it; waiting for one to appear"
        silent = [peer for peer in candidates if self.health(peer.endpoint_id).failures]
        if len(silent) < len(candidates):
            return f"connecting to {', '.join(peer.agent_id for peer in candidates[:3])}"
        wait = self.next_due(candidates, now) or 0.0
        last = self.health(silent[0].endpoint_id).last_error
        return f"none of {len(candidates)} known holders answers (next try in {wait:.0f} s): {last}"

    def next_due(self, candidates: Iterable[PeerCandidate], now: float) -> float | None:
        """Seconds until the next candidate may be tried, None when there is none."""
        waits = [
            self._health.get(peer.endpoint_id, _UNKNOWN).retry_at - now
            for peer in candidates
            if peer.endpoint_id != self.own_endpoint
        ]
        return max(0.0, min(waits)) if waits else None


_UNKNOWN = PeerHealth()
