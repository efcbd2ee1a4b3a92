"""Who sent bad data to one transfer, and what follows.

Owns the evidence: pieces that did not match, peers that libtorrent banned for it. The senders are told, so that an
honest one with a rotten disk looks and mends, and left out meanwhile. Must not decide whom to fetch from instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from peat_p2p.swarm.dialer import Dialer
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrents import PeerEvent, Torrent

_REPORTS = 8


class Blame:
    """The evidence of one transfer. `blamed(peer)` is told the fingerprint of each that sent bad data."""

    def __init__(self, around: Surroundings, blamed: Callable[[str], None]) -> None:
        self._around = around
        self._blamed = blamed
        self._banned: set[str] = set()
        self._pieces: list[int] = []
        self.shunned: set[str] = set()  # endpoint ids

    def note(self, event: PeerEvent) -> None:
        """Take what libtorrent tells of a peer."""
        if event.what == "banned":
            self._blamed(event.peer)
            self._banned.add(event.peer)
        elif event.what == "bad-piece" and event.piece is not None:
            self._pieces.append(event.piece)

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
