"""By which way each peer of one torrent gives chunks, from what dealing with it has shown.

Owns that memory: who gives nothing, whose TCP stands still or breaks, who is on a short path, and which of those that
fetch, too, do without the torrent (`holdings`). Must not decide what is fetched from whom.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Sequence

from peat_p2p.core.errors import PeatError
from peat_p2p.swarm.holdings import Holdings
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrents import Torrent

_NO_TCP_S = 30.0
_MOST_BROKEN = 3
_FIND_OUT_S = 2.0


class Ways:
    """The ways of the peers of one torrent. `tasks` runs what finds them out; `stop` ends it."""

    def __init__(self, torrent: Torrent, around: Surroundings, tasks: asyncio.TaskGroup) -> None:
        self.unable: set[str] = set()  # by endpoint id
        self.paced: set[str] = set()  # TCP of theirs does not take loss for a full link
        self.alone = True
        self.past = True  # nobody who fetches needs the torrent
        self._torrent = torrent
        self._around = around
        self._tasks = tasks
        self._holdings = Holdings(torrent, around, tasks)
        self._broken: dict[str, int] = {}  # lines in a row that brought nothing, of peers that answer otherwise
        self._no_tcp_until: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        self._finding: set[asyncio.Task[None]] = set()

    def look(self, candidates: Collection[PeerCandidate]) -> dict[str, Sequence[bool]]:
        """These are known now. Returns, by endpoint id, what those have that direct lines can bring from them."""
        self._holdings.look(candidates)
        fetching = [peer for peer in candidates if not peer.complete and not peer.kin]
        # All of a site must see this alike: who does without the torrent shows nothing there to those who do not.
        self.alone, self.past = not fetching, all(self.mate(peer) for peer in fetching)
        if not self.past:
            return {}
        # Who says that it has a chunk and does not give it would have nobody fetch that from elsewhere.
        return {name: held for name, held in self._holdings.fresh().items() if name not in self.unable}

    def stop(self) -> None:
        """Find out nothing more."""
        self._holdings.stop()
        for task in self._finding:
            task.cancel()

    def of(self, peer: PeerCandidate) -> frozenset[int]:
        """The numbers of the chunks that a line can bring from a peer that fetches, too, as it said last."""
        return self._holdings.of(peer.endpoint_id)

    def able(self, peer: PeerCandidate) -> bool:
        """Whether a peer has the whole package and can give it."""
        return peer.complete and not peer.kin and peer.endpoint_id not in self.unable

    def mate(self, peer: PeerCandidate) -> bool:
        """Whether a peer that fetches, too, does without the torrent."""
        return peer.endpoint_id not in self.unable and self._holdings.mate(peer)

    def beside(self, peers: Iterable[PeerCandidate]) -> list[PeerCandidate]:
        """Those on a short path; a direct line counts no bytes."""
        if not self._around.uncounted():
            return []
        return [peer for peer in peers if self._around.routes.near(peer) and self._tcp(peer)]

    def straight(self, peer: PeerCandidate) -> bool:
        """Whether TCP may carry what comes from afar."""
        return peer.endpoint_id in self.paced and self._tcp(peer)

    def _tcp(self, peer: PeerCandidate) -> bool:
        return self._no_tcp_until.get(peer.endpoint_id, 0.0) <= self._around.clock.monotonic()

    def gave(self, peer: PeerCandidate) -> None:
        """A good chunk came."""
        self._broken.pop(peer.endpoint_id, None)

    def broke(self, peer: PeerCandidate) -> None:
        """TCP does not bring it: for a while leave it to the bearer or the torrent, if that is a way."""
        endpoint = peer.endpoint_id
        if not self.mate(peer):
            self._no_tcp_until[endpoint] = self._around.clock.monotonic() + _NO_TCP_S
        elif self._holdings.answers(endpoint):
            self._broken[endpoint] = self._broken.get(endpoint, 0) + 1
            if self._broken[endpoint] >= _MOST_BROKEN:
                self.unable.add(endpoint)

    def find_out(self, peer: PeerCandidate) -> None:
        """Have it found out now and then whether a peer is as far as it looks: a busy one looks farther."""
        now = self._around.clock.monotonic()
        if self._around.routes.far(peer) and now - self._asked_at.get(peer.endpoint_id, -_FIND_OUT_S) >= _FIND_OUT_S:
            self._asked_at[peer.endpoint_id] = now
            task = self._tasks.create_task(self._settle(peer), name=f"how far {peer.agent_id} is")
            self._finding.add(task)
            task.add_done_callback(self._finding.discard)

    async def _settle(self, peer: PeerCandidate) -> None:
        with contextlib.suppress(PeatError):
            await self._around.routes.settle(peer)
        if self._around.routes.near(peer):
            self._torrent.wake.set()
