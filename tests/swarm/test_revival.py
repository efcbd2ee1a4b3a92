"""A peer beyond an outage is tried at once when it gives a sign of life, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peat_p2p.core.address import HostPort
from peat_p2p.swarm.peers import PeerBook, PeerCandidate
from peat_p2p.swarm.revival import Revival

PEER = PeerCandidate("ann", "aa", HostPort("192.0.2.1", 1), HostPort("192.0.2.1", 2))


class Ears:
    """Routes that hear when told to."""

    def __init__(self) -> None:
        self.heard_at = float("-inf")
        self.rung = 0
        self.answered: Callable[[], None] | None = None

    def ring(self, peer: PeerCandidate, answered: Callable[[], None] | None) -> None:
        self.rung += 1
        self.answered = answered

    def heard_since(self, peer: PeerCandidate, when: float) -> bool:
        return self.heard_at > when


def test_a_sign_of_life_ends_the_waiting() -> None:
    book, ears = PeerBook(), Ears()
    revival = Revival(book, ears)  # type: ignore[arg-type]
    assert not revival.look([PEER], 100.0)
    for _ in range(6):
        book.failed("aa", 100.0, "no answer")
    assert book.due([PEER], 101.0) == []
    assert revival.look([PEER], 101.0)
    again = asyncio.Event().set
    assert revival.look([PEER], 104.0, again)
    assert ears.rung == 2
    assert ears.answered is again
    ears.heard_at = 104.2
    assert not revival.look([PEER], 104.5)
    assert book.due([PEER], 104.5) == [PEER]


def test_a_peer_that_answers_and_fails_all_the_same_is_not_tried_in_a_loop() -> None:
    book, ears = PeerBook(), Ears()
    revival = Revival(book, ears)  # type: ignore[arg-type]
    ears.heard_at = 99.0
    for _ in range(3):
        book.failed("aa", 100.0, "refused")
    assert not revival.look([PEER], 100.1)
    ears.heard_at = 101.0
    assert not revival.look([PEER], 101.1)
    assert book.due([PEER], 101.1) == []
    assert ears.rung == 0
    assert revival.look([PEER], 200.0) is False
    assert book.due([PEER], 200.0) == [PEER]
