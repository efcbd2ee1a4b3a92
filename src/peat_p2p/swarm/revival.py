"""Noticing that a peer beyond an outage is there again.

A connection that is tried into an outage fails, and each failure makes the next try later; when the link is back for
minutes, waiting would waste them. So a silent peer is asked by UDP meanwhile, which costs a datagram every few seconds,
and its first sign of life ends the waiting. A peer that answers by UDP and fails all the same is left to the PeerBook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from peat_p2p.swarm.peers import PeerBook, PeerCandidate
from peat_p2p.swarm.routes import Routes

_SILENT_S = 5.0


class Revival:
    """The silent peers of one transfer."""

    def __init__(self, book: PeerBook, routes: Routes) -> None:
        self._book = book
        self._routes = routes
        self._since: dict[str, float] = {}

    def look(self, candidates: Iterable[PeerCandidate], now: float, again: Callable[[], None] | None = None) -> bool:
        """Ask those that failed; have those that are back tried at once. Whether any is still silent.

        `again` is called when the next look will find one that is back.
        """
        silent = False
        for peer in candidates:
            health = self._book.known(peer.endpoint_id)
            if health is None or not health.failures or health.retry_at <= now:
                self._since.pop(peer.endpoint_id, None)
                continue
            since = self._since.get(peer.endpoint_id)
            if since is None:
                answers = self._routes.heard_since(peer, now - _SILENT_S)
                since = self._since[peer.endpoint_id] = float("inf") if answers else now
            if self._routes.heard_since(peer, since):
                self._book.succeeded(peer.endpoint_id)
                del self._since[peer.endpoint_id]
            elif since != float("inf"):
                self._routes.ring(peer, again)
                silent = True
        return silent
