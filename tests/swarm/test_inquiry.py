"""Whom an agent asks for a package's index, and what it says of it meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from peat_p2p.core.address import HostPort
from peat_p2p.swarm import inquiry
from peat_p2p.swarm.asks import NotHeldError
from peat_p2p.swarm.inquiry import Inquiry
from peat_p2p.swarm.peers import PeerBook, PeerCandidate, StaticPeers
from peat_p2p.swarm.plan import ASK_PATIENCE_S, ASKING_PATIENCE_S
from peat_p2p.swarm.revival import Revival
from peat_p2p.swarm.status import TransferState
from peat_p2p.swarm.thrift import rendezvous

DIGEST = "blake3:" + "ab" * 32
FIRST, SECOND = rendezvous(DIGEST.encode(), ["one", "two"])


class Stepping:
    """A clock that goes on by a while whenever it is looked at."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 0.05
        return self.now


class Asking:
    """A transfer of the second agent of a site: the first fetches, too, and somebody far away has everything."""

    def __init__(self, *, first_answers: bool) -> None:
        here, there = HostPort("127.0.0.1", 1), HostPort("192.0.2.1", 2)
        self.near = PeerCandidate("near", FIRST, here, here, site="s", complete=False)
        self.far = PeerCandidate("far", "ff", there, there, site="t")
        self.manifest = SimpleNamespace(infohash="cd" * 32, digest="index", reference="package:1.0", name="package")
        self.manifest_digest = DIGEST
        self.clock = Stepping()
        self.said: list[tuple[TransferState, str]] = []
        self.asked_far_at = 0.0
        self._first_answers = first_answers

    def candidates(self) -> list[PeerCandidate]:
        return [self.near, self.far]

    def held(self) -> str:
        return ""

    def report(self, state: TransferState, reason: str) -> None:
        if not self.said or self.said[-1] != (state, reason):
            self.said.append((state, reason))

    def blame(self, peer: str) -> None:
        raise AssertionError(peer)

    async def info(self, peer: PeerCandidate, infohash: str, partial: object) -> object:
        if peer is self.near:
            raise NotHeldError("near does not hold it") if self._first_answers else inquiry.UnavailableError("silent")
        self.asked_far_at = self.clock.now
        return SimpleNamespace(index=SimpleNamespace(digest="index"))


@pytest.mark.parametrize(("first_answers", "patience"), [(True, ASKING_PATIENCE_S), (False, ASK_PATIENCE_S)])
async def test_a_neighbour_that_answers_is_given_longer_and_the_wait_is_said_once(
    monkeypatch: pytest.MonkeyPatch, first_answers: bool, patience: float
) -> None:
    monkeypatch.setattr(inquiry, "_LOOK_S", 0.001)
    transfer, book = Asking(first_answers=first_answers), PeerBook()
    around = SimpleNamespace(book=book, client=transfer, clock=transfer.clock, endpoint_id=SECOND, site="s")
    revival = Revival(book, SimpleNamespace(ring=lambda *_: None, heard_since=lambda *_: False))  # type: ignore[arg-type]
    found = Inquiry(transfer, StaticPeers(), around, revival)  # type: ignore[arg-type]
    await found.ask_all()
    assert patience <= transfer.asked_far_at < patience + 3.0
    waiting, asking = transfer.said
    assert waiting == (TransferState.WAITING, "a neighbour is getting the package's index")
    assert asking == (TransferState.METADATA, "asking far for the package's index")
