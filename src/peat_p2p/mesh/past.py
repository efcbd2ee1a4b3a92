"""What is remembered of a peer from one link to the next, in this process.

Owns `Past`. It saves a link that comes back the search for the rate, and the caller of a far peer the round trip in
which it would wait to hear what the peer holds. Nothing depends on its being true.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from peat_p2p.mesh.pace import FIRST_WINDOW, Pacer


@dataclass(frozen=True, slots=True)
class Past:
    """`round_trip` in seconds; `window`: what may be on its way, in bytes; `held`: up to which seq of the first class
    the peer had all, 0 if that is not known."""

    round_trip: float
    window: float
    held: int


def remember(pacer: Pacer, held: int, before: Past | None) -> Past | None:
    """What a link that ends leaves, that began with `before`; None if nothing was ever learnt."""
    if pacer.rtt is None:
        return before and replace(before, held=held)
    return Past(pacer.rtt, max(FIRST_WINDOW, pacer.window / 2), held)
