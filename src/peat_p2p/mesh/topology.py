"""Whom to link with, when there are too many to link with all.

Owns the plan of one node, made from what every node knows from the documents: who the members are, at which sites. All
nodes compute the same picture, so they agree without talking:
- within a site, members stand on a ring (by endpoint id); each keeps a link to the next one that answers and one
  across the ring, from place i to place 2i+1, so that a change reaches all in a few steps, one death cuts nobody off
  and nobody has more than five; a small site is linked completely;
- sites stand on a ring in the order of their names: each keeps a link to the next site that answers and, when there
  are many sites, one across. For each such link the members of the site are ranked: first those whose configuration
  ties them to the other site (their link is there anyway and is not to be doubled), then by a hash. The first that is
  alive keeps the link, to the first member of the other site that answers. If that one dies, the next takes over.
A link across that once was made stays, though places shift when members come and go.
Keeps the rule that a node wants at most a handful of links. Pure: time, and who is alive or unreachable, are arguments.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

MAX_LINKS = 8
"""A node with so many links refuses one that the other side only chose by its topology."""
TIE = 16
_MAX_TIES = 16
_COMPLETE_SITE = 4
_CHORD_FROM = 6


@dataclass(frozen=True, slots=True)
class Member:
    """A node of the formation that could be linked with. `ties`: beginnings (`TIE` digits) of the endpoint ids of the
    peers that it is configured to link with."""

    endpoint_id: str
    site: str
    ties: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom this node dials because of the topology, and whom of them for its site."""

    within: frozenset[str]
    outward: frozenset[str]

    @property
    def wanted(self) -> frozenset[str]:
        """All of them."""
        return self.within | self.outward


class Topology:
    """The picture of the fleet that plans are made from. Make a new one when members change."""

    def __init__(self, members: Collection[Member]) -> None:
        self._sites: dict[str, list[str]] = {}
        for member in sorted(members, key=lambda member: member.endpoint_id):
            self._sites.setdefault(member.site, []).append(member.endpoint_id)
        self._site_ring = sorted(self._sites)
        self._tied: defaultdict[str, dict[str, str]] = defaultdict(dict)
        if any(member.ties for member in members):
            self._tie(members)

    def _tie(self, members: Collection[Member]) -> None:
        """Note for both ends of each tie between sites the other end and its site."""
        by_beginning = {member.endpoint_id[:TIE]: member for member in members}
        for member in members:
            for tie in member.ties:
                other = by_beginning.get(tie)
                if other is not None and other.site != member.site:
                    self._tied[member.endpoint_id][other.endpoint_id] = other.site
                    self._tied[other.endpoint_id][member.endpoint_id] = member.site

    def plan(
        self,
        own: Member,
        *,
        alive: Callable[[str], bool],
        unreachable: Collection[str] = (),
        linked_sites: Mapping[str, str] | None = None,
        dialled: Collection[str] = (),
    ) -> Plan:
        """Whom `own` should dial now.

        `alive` is asked about members of the own site (their heartbeats are fresh); `unreachable` names nodes that this
        node called in vain lately; `linked_sites` gives the site of each node it is linked with, `dialled` names
        those of them that it called itself.
        """
        within = self._within(own, alive, unreachable, dialled)
        return Plan(frozenset(within), frozenset(self._outward(own, alive, unreachable, linked_sites or {})))

    # -- inside the site ---------------------------------------------------------------------------------------------

    def _within(
        self,
        own: Member,
        alive: Callable[[str], bool],
        unreachable: Collection[str],
        dialled: Collection[str],
    ) -> list[str]:
        ring = [m for m in self._sites.get(own.site, []) if m != own.endpoint_id]
        usable = [m for m in ring if m not in unreachable and alive(m)] or [m for m in ring if m not in unreachable]
        if len(usable) <= _COMPLETE_SITE:
            # of each pair the smaller one dials; the other waits, unless it is alone in knowing
            return [m for m in usable if m > own.endpoint_id] or usable[:1]
        place = bisect_right(usable, own.endpoint_id)
        ring = [*usable[:place], own.endpoint_id, *usable[place:]]
        following = ring[(place + 1) % len(ring)]
        across = ring[(2 * place + 1) % len(ring)]
        if across in (own.endpoint_id, following):
            return [following]
        kept = [m for m in usable if m in dialled and m not in (following, ring[place - 1])]
        return [following, across if across in kept or not kept else min(kept)]

    # -- between sites -----------------------------------------------------------------------------------------------

    def _outward(
        self,
        own: Member,
        alive: Callable[[str], bool],
        unreachable: Collection[str],
        linked_sites: Mapping[str, str],
    ) -> list[str]:
        ring = self._site_ring
        if len(ring) < 2 or own.site not in self._sites:
            return []
        here = ring.index(own.site)
        targets = [here + 1]
        if len(ring) >= _CHORD_FROM:
            targets.append(2 * here + 1)
        chosen: list[str] = []
        gateways: list[str] = []
        for number, target in enumerate(targets):
            site = ring[target % len(ring)]
            gateway = self._gateway(own, number, site, alive, unreachable, gateways)
            gateways.append(gateway)
            if gateway == own.endpoint_id:
                found = self._reach(own, target, unreachable, linked_sites)
                if found is not None and found not in chosen:
                    chosen.append(found)
        return chosen

    def _gateway(
        self,
        own: Member,
        number: int,
        site: str,
        alive: Callable[[str], bool],
        unreachable: Collection[str],
        taken: Collection[str],
    ) -> str:
        """Who keeps outward link `number`, to `site`: the first in its ranking that is alive and has no other."""
        members = self._sites[own.site]
        candidates = [m for m in members if m == own.endpoint_id or (alive(m) and m not in unreachable)]
        tied = [m for m in candidates if site in self._tied.get(m, {}).values()]
        free = tied or [m for m in candidates if m not in taken] or candidates
        return min(free, key=lambda member: _rank(member, f"out {number}"))

    def _reach(
        self, own: Member, target: int, unreachable: Collection[str], linked_sites: Mapping[str, str]
    ) -> str | None:
        """The node to dial for the site at place `target` of the ring, or of the first site after it that answers."""
        ring = self._site_ring
        for offset in range(len(ring)):
            site = ring[(target + offset) % len(ring)]
            if site == own.site:
                continue
            linked = [peer for peer, where in linked_sites.items() if where == site]
            usable = linked or [m for m in self._sites[site] if m not in unreachable]
            if usable:
                tied = self._tied.get(own.endpoint_id, {})
                return min(usable, key=lambda member: (member not in tied, _rank(member, f"in {own.site}")))
        return None


@lru_cache(maxsize=65536)
def _rank(member: str, purpose: str) -> bytes:
    return hashlib.blake2b(f"{purpose}/{member}".encode(), digest_size=8).digest()


def ties_with(endpoint_ids: Iterable[str]) -> frozenset[str]:
    """The `ties` of a member that is told to keep links with these."""
    return frozenset(endpoint_id[:TIE] for endpoint_id in islice(endpoint_ids, _MAX_TIES))
