"""What the others of a site that fetch the same package have in their stores, so that direct lines can bring it.

A torrent tells its peers of every piece it gets. What comes by a direct line is put past the torrent, so neighbours ask
each other for a map of the chunks that their stores have verified, one bit for each, a few times a second. Who does not
answer that (an earlier build, or one whose bytes a cap or budget counts) is left to the torrent. Must not decide what
is fetched from whom.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, count

from peat_p2p.core.errors import InvalidInputError, PeatError, TooLargeError
from peat_p2p.swarm.asks import NotHeldError
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrents import Torrent

log = logging.getLogger(__name__)
_MOST_ASKED = 8  # in a larger crowd everybody would be busy with answering
_PAUSE_S, _PAUSE_PER_CHUNK_S, _MOST_PAUSE_S = 0.25, 20e-6, 4.0
_STALE_S, _LATELY_S = 3.0, 1.5  # and two pauses


@dataclass(slots=True)
class _Neighbour:
    peer: PeerCandidate
    task: asyncio.Task[None] | None = None
    heard: float = float("-inf")
    mute: bool = False
    held: Sequence[bool] = ()
    numbers: frozenset[int] = frozenset()


class Holdings:
    """The maps of the neighbours that fetch the package of one torrent. `tasks` runs the asking; `stop` ends it."""

    def __init__(self, torrent: Torrent, around: Surroundings, tasks: asyncio.TaskGroup) -> None:
        self._torrent = torrent
        self._around = around
        self._tasks = tasks
        self._neighbours: dict[str, _Neighbour] = {}
        self._pause = _PAUSE_S + _PAUSE_PER_CHUNK_S * len(torrent.parsed.chunks)

    def look(self, candidates: Iterable[PeerCandidate]) -> None:
        """These are known now: ask those at this site that fetch, too."""
        site = self._around.site
        near = {
            peer.endpoint_id: peer
            for peer in candidates
            if site and peer.site == site and not (peer.complete or peer.kin) and peer.metadata is not None
        }
        if not self._around.uncounted() or len(near) > _MOST_ASKED:
            near = {}
        for name in self._neighbours.keys() - near.keys():
            self._end(self._neighbours.pop(name))
        for name, peer in near.items():
            known = self._neighbours.setdefault(name, _Neighbour(peer))
            known.peer = peer
            if known.task is None:
                known.task = self._tasks.create_task(self._ask(known), name=f"what {peer.agent_id} holds")

    def stop(self) -> None:
        """Ask nobody any more."""
        for neighbour in self._neighbours.values():
            self._end(neighbour)

    def mate(self, peer: PeerCandidate) -> bool:
        """Whether a peer answers when it can be reached: documents tell of some that are gone, or not there yet."""
        known = self._neighbours.get(peer.endpoint_id)
        return known is not None and not known.mute

    def of(self, endpoint_id: str) -> frozenset[int]:
        """The numbers of the chunks that a peer had when it was heard of last."""
        known = self._neighbours.get(endpoint_id)
        return known.numbers if known is not None else frozenset()

    def answers(self, endpoint_id: str) -> bool:
        """Whether a peer has answered just now."""
        known = self._neighbours.get(endpoint_id)
        return known is not None and self._silence(known) < _LATELY_S + 2 * self._pause

    def fresh(self) -> dict[str, Sequence[bool]]:
        """By endpoint id, what those have that answer."""
        return {
            name: known.held
            for name, known in self._neighbours.items()
            if known.held and self._silence(known) < _STALE_S + 2 * self._pause
        }

    def _silence(self, neighbour: _Neighbour) -> float:
        return self._around.clock.monotonic() - neighbour.heard

    @staticmethod
    def _end(neighbour: _Neighbour) -> None:
        if neighbour.task is not None:
            neighbour.task.cancel()

    async def _ask(self, neighbour: _Neighbour) -> None:
        around, parsed = self._around, self._torrent.parsed
        pause = self._pause
        while True:
            try:
                held = await around.client.holdings(neighbour.peer, parsed.meta.infohash, len(parsed.chunks))
            except (NotHeldError, InvalidInputError, TooLargeError) as error:
                log.debug("%s tells nothing of what it holds: %s", neighbour.peer.agent_id, error)
                neighbour.mute = True
                self._torrent.wake.set()
                return
            except PeatError as error:
                log.debug("%s is not heard of: %s", neighbour.peer.agent_id, error)
                pause = max(self._pause, min(_MOST_PAUSE_S, 2 * pause))
            else:
                pause = self._pause
                neighbour.heard = around.clock.monotonic()
                if held != neighbour.held:
                    neighbour.held, neighbour.numbers = held, frozenset(compress(count(), held))
                    self._torrent.wake.set()
            await asyncio.sleep(pause)
