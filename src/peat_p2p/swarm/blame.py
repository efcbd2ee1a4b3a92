"""Who sent bad data to one transfer or held back what it promised, and what follows.

Owns the evidence: pieces that did not match, peers that libtorrent banned for it, and what `suspicion` noticed.
Senders of bad data are told, so that an honest one with a rotten disk looks and mends, and left out meanwhile; who
holds back is disconnected and left alone for a while. Must not decide whom to fetch from instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from peat_p2p.swarm.dialer import Dialer
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.suspicion import Look, Watch
from peat_p2p.swarm.torrents import PeerEvent, Reading, Torrent

log = logging.getLogger(__name__)
_REPORTS = 8
_LOOK_S = 0.25
_NOTHING: frozenset[int] = frozenset()
BAD_DATA = "sent data that does not match its digest"


class Blame:
    """The evidence of one transfer. `blamed(peer)` is told the fingerprint of each that sent bad data."""

    def __init__(self, around: Surroundings, blamed: Callable[[str], None]) -> None:
        self._around = around
        self._blamed = blamed
        self._banned: set[str] = set()
        self._pieces: list[int] = []
        self._watch = Watch()
        self._looked = 0.0
        self.shunned: set[str] = set()  # endpoint ids
        self.withheld: dict[str, str] = {}  # fingerprint -> what it does

    def note(self, event: PeerEvent) -> None:
        """Take what libtorrent tells of a peer."""
        if event.what == "banned":
            self._blamed(event.peer)
            self._banned.add(event.peer)
        elif event.what == "bad-piece" and event.piece is not None:
            self._pieces.append(event.piece)

    def watch(self, torrent: Torrent, reading: Reading, candidates: Iterable[PeerCandidate]) -> None:
        """Look who gives what it promised. Who does not is left alone, and disconnected where that hits nobody else."""
        now = self._around.clock.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        owes, gave = torrent.debts()
        looks = {
            f"{peer.peer} {peer.address}": Look(
                peer.received,
                frozenset(owes.get(peer.address, _NOTHING)),
                frozenset(gave.get(peer.address, _NOTHING)),
                peer.choked,
            )
            for peer in reading.peers
        }
        # Requests for what is no longer wanted of peers were withdrawn here.
        settled = torrent.unwanted.union(number for number, held in enumerate(reading.have) if held)
        for name, why in self._watch.look(now, looks, settled).items():
            peer = next(peer for peer in reading.peers if name == f"{peer.peer} {peer.address}")
            known = next((one for one in candidates if peer_fingerprint(one.endpoint_id) == peer.peer), None)
            log.warning("%s %s", known.agent_id if known else peer.peer, why)
            self.withheld[peer.peer] = why
            if known is not None:
                self._around.book.withheld(known.endpoint_id, now, why)
            if sum(other.address.host == peer.address.host for other in reading.peers) == 1:
                self._around.torrents.drop(torrent, peer.address.host)

    def fed(self, bad: Iterable[tuple[PeerCandidate, int]]) -> None:
        """Take what feeds got: who sent which piece damaged."""
        for peer, piece in bad:
            self._blamed(peer_fingerprint(peer.endpoint_id))
            self._banned.add(peer_fingerprint(peer.endpoint_id))
            self._pieces.append(piece)

    def report(self, torrent: Torrent, candidates: Iterable[PeerCandidate], dialer: Dialer) -> None:
        """Tell the senders."""
        if not self._banned or not self._pieces:
            return
        digests = [torrent.parsed.chunks[piece].hex for piece in self._pieces[:_REPORTS]]
        for peer in candidates:
            if peer_fingerprint(peer.endpoint_id) in self._banned:
                self.shunned.add(peer.endpoint_id)
                dialer.report(peer, digests)
        self._banned.clear()
        self._pieces.clear()

    def suspects(self, bad: Iterable[str], names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Who did what: those known to have sent `bad` data, and those that held back. `names` are theirs by print."""
        found = self.withheld | dict.fromkeys(bad, BAD_DATA)
        return tuple(sorted((names.get(peer, peer), what) for peer, what in found.items()))

    def honest(self, candidates: Iterable[PeerCandidate]) -> list[PeerCandidate]:
        """Those that are not left out."""
        return [peer for peer in candidates if peer.endpoint_id not in self.shunned]

    def forgive(self, connected: Sequence[object]) -> bool:
        """Whether nobody is left but peers that libtorrent shuns for good, and one of them may be tried again.

        Then they are left out no more, and the torrent is to be added anew.
        """
        now = self._around.clock.monotonic()
        if connected or not any(self._around.book.health(peer).retry_at <= now for peer in self.shunned):
            return False
        self.shunned.clear()
        return True
