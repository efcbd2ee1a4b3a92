"""What to drop when the disk fills up.

Owns the decision alone: from sizes, pins, ages and who else holds what, to the packages to remove and the reasons why
others stay. Pure: it is given the facts and changes nothing. Rule: a package nobody else is known to hold, in what this
agent can see now, is never dropped, and neither is a pinned one or one in use. Agents that decide at the same moment do
not drop the last copies together: of the known holders, those first in an order all compute alike stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from blake3 import blake3


class Kept(StrEnum):
    """Why a package stays although space is short."""

    PINNED = "pinned"
    IN_USE = "in use"
    LAST_COPY = "last known copy"
    KEEPER = "kept here so that others may drop it"
    NO_GAIN = "shares all its chunks"
    NOT_NEEDED = "space suffices"


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Eviction starts when the disk is fuller than `high` and ends when it is no fuller than `low` (fractions)."""

    high: float = 0.90
    low: float = 0.80

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"watermarks {self.low} and {self.high} are not 0 < low <= high <= 1")

    def excess(self, total: int, free: int) -> int:
        """Bytes to free now on a disk of `total` bytes; 0 below the high watermark."""
        used = total - free
        return max(0, used - int(self.low * total)) if used > self.high * total else 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A package here: its chunks with sizes, when it was last used, and whether it may not go."""

    manifest_digest: str
    chunks: Mapping[bytes, int]
    used: float
    pinned: bool = False
    in_use: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Eviction:
    """What to remove, in order; what that frees; why the others stay; and what is held by too few."""

    remove: tuple[str, ...]
    freed: int
    kept: Mapping[str, Kept]
    under_replicated: tuple[str, ...]

    def enough(self, need: int) -> bool:
        """Whether the removal frees `need` bytes."""
        return self.freed >= need


def decide_eviction(
    candidates: Sequence[Candidate],
    need: int,
    own_id: str,
    holders: Mapping[str, Collection[str]],
    *,
    copies_wanted: int = 2,
) -> Eviction:
    """Choose packages to remove until `need` bytes are free: least important first, then longest unused.

    `holders` gives, by manifest digest, the agents within reach that are known to hold a package whole; `own_id` may be
    among them. `copies_wanted` is how many copies are enough: with fewer left a package is listed as under-replicated.
    """
    users: dict[bytes, int] = {}
    for candidate in candidates:
        for chunk in candidate.chunks:
            users[chunk] = users.get(chunk, 0) + 1
    remove: list[Candidate] = []
    kept: dict[str, Kept] = {}
    freed = 0
    for candidate in sorted(candidates, key=lambda one: (one.priority, one.used, one.manifest_digest)):
        reason = _must_stay(candidate, own_id, holders.get(candidate.manifest_digest, ()))
        if reason is None and freed >= need:
            reason = Kept.NOT_NEEDED
        if reason is not None:
            kept[candidate.manifest_digest] = reason
            continue
        remove.append(candidate)
        for chunk, size in candidate.chunks.items():
            users[chunk] -= 1
            # A shared chunk goes with the last package that has it.
            freed += size if users[chunk] == 0 else 0
    # Some may go for nothing: their chunks stay with others, or a larger one chosen later frees enough alone.
    for candidate in reversed(list(remove)):
        gain = sum(size for chunk, size in candidate.chunks.items() if users[chunk] == 0)
        if gain and freed - gain < need:
            continue
        remove.remove(candidate)
        kept[candidate.manifest_digest] = Kept.NOT_NEEDED if gain else Kept.NO_GAIN
        freed -= gain
        for chunk in candidate.chunks:
            users[chunk] += 1
    removed = tuple(candidate.manifest_digest for candidate in remove)
    short = []
    for candidate in candidates:
        digest = candidate.manifest_digest
        others = len(set(holders.get(digest, ())) - {own_id})
        if others + (digest not in removed) < copies_wanted:
            short.append(digest)
    return Eviction(removed, freed, kept, tuple(sorted(short)))


def _must_stay(candidate: Candidate, own_id: str, holders: Collection[str]) -> Kept | None:
    if candidate.pinned:
        return Kept.PINNED
    if candidate.in_use:
        return Kept.IN_USE
    others = set(holders) - {own_id}
    if not others:
        return Kept.LAST_COPY
    # In whatever view, the first of all true holders finds nobody before it, so at least that one keeps its copy.
    if _rank(candidate.manifest_digest, own_id) < min(_rank(candidate.manifest_digest, other) for other in others):
        return Kept.KEEPER
    return None


def _rank(manifest_digest: str, agent: str) -> bytes:
    return blake3(f"{manifest_digest} {agent}".encode()).digest()
