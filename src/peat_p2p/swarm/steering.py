"""Telling libtorrent what a plan decided.

Owns the last decision of one torrent and the difference to the next: piece priorities, and whether the torrent is kept
inside its site. Must not decide anything itself.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.plan import Decision, Plan
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrents import Reading, Torrent

log = logging.getLogger(__name__)
_COMPLETE_OUTSIDE = 2
_PARTING_S = 3.0
_QUIET_S = 1.5
_UNWANTED = 0
_PRIORITIES = (4, 7)  # ordinary; before all others


class Steering:
    """Steers one torrent that begins with all of `pieces` wanted alike."""

    def __init__(self, torrent: Torrent, around: Surroundings, pieces: frozenset[int]) -> None:
        self.decision = Decision(pieces, False)
        self._inside_since = 0.0
        self._owed: frozenset[int] = frozenset()
        self._torrent = torrent
        self._around = around
        self._plan = Plan(around.endpoint_id, around.site, [chunk.digest for chunk in torrent.parsed.chunks])

    def fetched(self, pieces: Collection[int]) -> None:
        """These came in."""
        self._plan.fetched(self._around.clock.monotonic(), pieces)

    @property
    def unasked(self) -> Decision:
        """The last decision without the pieces that peers of the torrent are asked for: they come already."""
        decision = self.decision
        return replace(decision, wanted=decision.wanted - self._owed, first=decision.first - self._owed)

    def steer(
        self,
        reading: Reading,
        pieces: Collection[int],
        candidates: Sequence[PeerCandidate],
        held: str,
        begun: Collection[int] = (),
        givers: Sequence[PeerCandidate] = (),
        told: Mapping[str, Sequence[bool]] = MappingProxyType({}),
    ) -> Sequence[PeerCandidate]:
        """Decide for what is missing (`pieces`) and tell libtorrent what changed. Returns whom to connect to.

        `begun` are pieces that are on their way without libtorrent; `givers` can bring any that way. `told` is what
        peers have, by endpoint id, as they say themselves.
        """
        around, before = self._around, self.decision
        near = [peer for peer in candidates if self._plan.near(peer)]
        outside = [peer for peer in candidates if not self._plan.near(peer)]
        known = {peer_fingerprint(peer.endpoint_id): peer for peer in candidates}
        pieces_of = {known[peer.peer].endpoint_id: peer.pieces for peer in reading.peers if peer.peer in known}
        pieces_of |= told
        owes, gave = self._torrent.debts()
        self._owed = frozenset().union(*owes.values())
        partial = self._owed.union(*gave.values(), begun)
        now = around.clock.monotonic()
        heard = self._heard(outside, now) if near else None
        decision = self._plan.decide(now, pieces, partial, candidates, pieces_of, held, fed=bool(givers), heard=heard)
        if decision.inside:
            strangers = pieces_of.keys() - {peer.endpoint_id for peer in near}
            if not before.inside:
                self._inside_since = now
            if strangers and now - self._inside_since < _PARTING_S:
                # Connections beyond the link are closed first, or they would be asked for what neighbours have.
                decision = replace(decision, wanted=decision.wanted & decision.first.union(partial))
        self.decision = decision
        free = frozenset(pieces).difference(begun)
        for priority, now_at, was_at in zip(_PRIORITIES, _classes(decision), _classes(before), strict=True):
            self._torrent.want((now_at - was_at) & free, priority)
        self._torrent.want((before.wanted - decision.wanted) & free, _UNWANTED)
        led = [peer for peer in reading.peers if peer.outgoing and around.routes.by_bearer(peer.address)]
        far = [around.routes.round_trip(known[peer.peer]) for peer in led if peer.peer in known]
        around.torrents.round_trip(self._torrent, max(far, default=0.0))
        if (decision.inside, decision.reason) != (before.inside, before.reason):
            log.debug(
                "%s: %s, %d of %d missing wanted (%s), connected to %s",
                self._torrent.parsed.meta.infohash[:8],
                "inside" if decision.inside else "outside",
                len(decision.wanted),
                len(pieces),
                decision.reason,
                ", ".join(peer.agent_id for peer in candidates if peer.endpoint_id in pieces_of),
            )
        around.torrents.allow_inside(_hosts(near))
        if decision.inside != before.inside:
            self._torrent.keep_inside(decision.inside)
        if held:
            return []
        if decision.inside:
            return [*near, *givers] if decision.apart else near
        if not near:
            return candidates
        return [*near, *self._few(outside)]

    def _heard(self, outside: Sequence[PeerCandidate], now: float) -> float | None:
        """When anybody outside last gave a sign of life; None where others than bearers lead there, too.

        Who has fetched its own share hears nothing from outside: it asks, or it would take the others for idle when
        it is the link that is down.
        """
        routes = self._around.routes
        if not outside or not all(map(routes.far, outside)):
            return None
        heard = max(map(routes.heard, outside))
        if now - heard > _QUIET_S:
            for peer in [peer for peer in outside if peer.complete][:_COMPLETE_OUTSIDE]:
                routes.ring(peer, None)
        return heard

    def _few(self, outside: Sequence[PeerCandidate]) -> Sequence[PeerCandidate]:
        """Whom of those beyond a thin link to connect to: each connection costs, and complete holders the least."""
        book = self._around.book
        good = [peer for peer in outside if peer.complete and not book.health(peer.endpoint_id).failures]
        return good[:_COMPLETE_OUTSIDE] or outside


def _hosts(near: Sequence[PeerCandidate]) -> set[str]:
    return {peer.swarm.host for peer in near if _is_ip(peer.swarm.host)}


def _classes(decision: Decision) -> tuple[frozenset[int], frozenset[int]]:
    """The pieces that are wanted like any other, and those that are wanted first."""
    return decision.wanted - decision.first, decision.wanted & decision.first


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
