"""Crossing a thin link once: which agent of a site fetches which chunk from outside.

Owns the agreement. Agents of a site never talk about it: each computes it from whom it sees fetching at its site, by
rendezvous hashing of chunk and member, and gets the same answer when it sees the same members; in a large crowd, where
that is too much work, by consistent hashing on a ring. Rule: every missing chunk is always somebody's, and in the end
mine: a member that goes or stands still loses its chunks to the next in the chunk's own order. Two agents that see
different members may fetch a chunk twice; none waits for ever. Pure: time is an argument. Must not know torrents or
documents.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

GRACE_S = 6.0
MIN_PATIENCE_S = 5.0
_PATIENCE_CHUNKS = 4.0
_MOST_FIRST_S = 30.0  # the holder may not have been in reach before
_OUTAGE_S = 5.0  # of silence of all outside
_REMEMBERED = 4
_MOST_RANKED = 32  # members that are weighed for every chunk; more of them stand on a ring
_POINTS = 32  # of each member on a ring: shares differ by about a fifth


@dataclass(slots=True)
class _Member:
    seen: float
    progress: float
    count: int = -1
    connected: bool = False


@dataclass(slots=True)
class Thrift:
    """The share of one agent (`me`) in the fetch of one package whose chunks are `digests`."""

    me: str
    digests: Sequence[bytes]
    _members: dict[str, _Member] = field(default_factory=dict)
    _awaited: dict[str, float] = field(default_factory=dict)
    _owners: dict[frozenset[str], list[str]] = field(default_factory=dict)
    _chunk_time: float = 0.0
    _last_own: float | None = None
    _first_look: float | None = None
    _heard: float = 0.0
    _owes: bool = False

    def observe(
        self, now: float, members: Collection[str], held: Mapping[str, int], heard: float | None = None
    ) -> None:
        """Take in who fetches at this site (by documents), and how many chunks each connected one has.

        `heard` is when anything last came from outside, if that is known: through an outage nobody gets on, and for
        that nobody's share is taken over.
        """
        if self._first_look is None:
            self._first_look = self._heard = now
        if heard is None:
            heard = now
        elif heard - self._heard > _OUTAGE_S:
            for known in self._members.values():
                known.progress = max(known.progress, heard)
        self._heard = max(self._heard, heard)
        for name in [name for name in self._members if name not in members]:
            del self._members[name]
        for name in members:
            if name == self.me:
                continue
            member = self._members.get(name)
            if member is None:
                member = self._members[name] = _Member(now, now)
            count = held.get(name)
            if count is None:
                if member.connected:
                    # It was there and is gone: no grace a second time until it comes back.
                    member.seen = now - GRACE_S
                member.connected = False
                continue
            if not member.connected or count > member.count:
                member.progress = now
            member.connected = True
            member.count = count

    def worth_waiting(self, now: float, complete: Collection[str], connected: Collection[str]) -> bool:
        """Whether a neighbour that says it has everything is still being connected to; each gets its grace once."""
        for name in complete:
            self._awaited.setdefault(name, now)
            if name in connected:
                self._awaited[name] = now - GRACE_S
        return any(now - self._awaited[name] < GRACE_S for name in complete if name not in connected)

    def fetched_own(self, now: float) -> None:
        """A chunk came in from outside: tells how long chunks take on this link.

        The first, too: where it took long the others may not have had any, either, and do not stand still.
        """
        if self._last_own is not None:
            self._chunk_time = 0.7 * self._chunk_time + 0.3 * (now - self._last_own)
        elif self._first_look is not None:
            self._chunk_time = min(now - self._first_look, _MOST_FIRST_S)
        self._last_own = now

    @property
    def patience(self) -> float:
        """How long a connected member may stand still before others take its chunks."""
        return max(MIN_PATIENCE_S, _PATIENCE_CHUNKS * self._chunk_time * max(1, len(self._members) + 1))

    def live(self, now: float) -> list[str]:
        """Members that count now, this agent included."""
        alive = [self.me]
        # While nothing comes to this agent either, though it asked, it is the link that stands still.
        asked = self._first_look if self._last_own is None else self._last_own
        moved = min(asked if self._owes and asked is not None else now, self._heard)
        for name, member in self._members.items():
            still, limit = (
                (moved - member.progress, self.patience) if member.connected else (now - member.seen, GRACE_S)
            )
            if still <= limit:
                alive.append(name)
        return sorted(alive)

    def mine(self, now: float, missing: Collection[int], at_site: Collection[int]) -> set[int]:
        """Which of the missing chunks this agent fetches from outside; those in `at_site` a neighbour has already."""
        self._excuse(now, missing, at_site)
        owners = self._owners_among(self.live(now))
        return {n for n in missing if owners[n] == self.me and n not in at_site}

    def helping(self, now: float, missing: Collection[int], at_site: Collection[int]) -> set[int]:
        """Which of the others' chunks this agent fetches when it has its own: those it is the next responsible for.

        So no more than one agent helps with a chunk at first. In a crowd too large for that it helps with any.
        """
        live = self.live(now)
        left = [n for n in missing if n not in at_site]
        if len(live) > _MOST_RANKED:
            return set(left)
        ranks = {n: self._rank(n, live) for n in left}
        nearest = min((rank for rank in ranks.values() if rank), default=0)
        return {n for n, rank in ranks.items() if nearest and rank == nearest}

    def _rank(self, chunk: int, live: Collection[str]) -> int:
        """How many of `live` are responsible for a chunk before this agent is."""
        digest = self.digests[chunk]
        mine = _weight(self.me, digest), self.me
        return sum((_weight(name, digest), name) > mine for name in live)

    def _excuse(self, now: float, missing: Collection[int], at_site: Collection[int]) -> None:
        """A member that owes nothing does not stand still, it waits."""
        around = {self.me}
        around.update(
            name for name, member in self._members.items() if member.connected or now - member.seen <= GRACE_S
        )
        owners = self._owners_among(around)
        owing = {owners[n] for n in missing if n not in at_site}
        self._owes = self.me in owing
        for name, member in self._members.items():
            if member.connected and name not in owing:
                member.progress = now

    def _owners_among(self, alive: Collection[str]) -> list[str]:
        """Whose each chunk is when these are alive. Asked for at every look at a torrent: kept for a few sets."""
        key = frozenset(alive)
        owners = self._owners.get(key)
        if owners is None:
            while len(self._owners) >= _REMEMBERED:
                del self._owners[next(iter(self._owners))]
            owners = self._owners[key] = (
                _on_a_ring(key, self.digests)
                if len(key) > _MOST_RANKED
                else [max(key, key=lambda name: (_weight(name, digest), name)) for digest in self.digests]
            )
        return owners


def _on_a_ring(members: Collection[str], digests: Iterable[bytes]) -> list[str]:
    """Whose each chunk is by consistent hashing (Karger and others, 1997): that of the first point after it."""
    ring = sorted((point, name) for name in members for point in _points(name))
    places = [point for point, _ in ring]
    return [ring[bisect_right(places, digest[:8]) % len(ring)][1] for digest in digests]


@lru_cache(maxsize=8192)
def _points(name: str) -> tuple[bytes, ...]:
    hashes = b"".join(blake2b(name.encode(), person=bytes([number])).digest() for number in range(_POINTS // 8))
    return tuple(hashes[at : at + 8] for at in range(0, len(hashes), 8))


def _weight(name: str, digest: bytes) -> bytes:
    return blake2b(name.encode(), key=digest[:32], digest_size=8).digest()


def rendezvous(key: bytes, members: Collection[str]) -> list[str]:
    """Members in the order in which they are responsible for `key`. One going changes nothing among the others."""
    return sorted(members, key=lambda name: (_weight(name, key), name), reverse=True)
