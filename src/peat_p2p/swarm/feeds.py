"""Streams of chunks from holders beyond a long link, for one torrent.

Over a long link a torrent loses round trips: to join, to shake hands, to be unchoked, and whenever its requests run
dry. A feed is one request to one complete holder, answered as one stream; what comes is checked against its name and
handed to the torrent as a finished piece, so that everything else (verification from disk, the account, neighbours,
seeding) is the torrent's as ever. Rule: what a feed is asked for nobody else is asked for. Must not decide what is
wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import aiohttp
from blake3 import blake3

from peat_p2p.core.errors import InvalidInputError, PeatError, UnavailableError
from peat_p2p.swarm.asks import ANSWER, NOT_HELD, Ask, Asks, runs
from peat_p2p.swarm.ledger import Connection
from peat_p2p.swarm.metadata import NotHeldError
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.plan import Decision
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrents import Torrent

log = logging.getLogger(__name__)
MOST_PEERS = 2  # holders that are asked at the same time: each costs a connection across the link
TCP_STREAMS = 2  # on leo as full as four, with less work, and fuller than one
FAST = 3_500_000.0  # bytes per second: beyond, the work that a bearer has with each datagram is felt
STALL_S = 10.0
_TCP_STALL_S = 3.0
_NO_TCP_S = 30.0
_PART = 64 << 10
_UNWANTED, _ORDINARY = 0, 4


@dataclass(slots=True)
class _Feed:
    """One stream. `straight`: by TCP, not by a bearer. A `retiring` one is asked for nothing more."""

    name: str
    peer: PeerCandidate
    straight: bool
    task: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    last: float = 0.0
    retiring: bool = False


class Feeds:
    """The feeds of one torrent. `tasks` runs them; `stop` ends them."""

    def __init__(self, torrent: Torrent, around: Surroundings, tasks: asyncio.TaskGroup) -> None:
        self._torrent = torrent
        self._around = around
        self._tasks = tasks
        self._asks = Asks([chunk.size for chunk in torrent.parsed.chunks])
        self._feeds: dict[str, _Feed] = {}
        self._serial = 0
        self._begun: dict[int, bytearray] = {}  # of chunks that broke off: any holder goes on from there
        self._given: set[int] = set()
        self._received: dict[str, int] = {}
        self._unable: set[str] = set()
        self._paced: set[str] = set()
        self._no_tcp_until: dict[str, float] = {}
        self._bad: list[tuple[PeerCandidate, int]] = []

    @property
    def begun(self) -> frozenset[int]:
        """Chunks that are on their way by a feed, or with the torrent already."""
        return frozenset(self._asks.asked) | self._given

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self._asks.rate

    @property
    def received(self) -> int:
        """Payload bytes so far."""
        return sum(self._received.values())

    @property
    def flowing(self) -> list[PeerCandidate]:
        """Peers that give now."""
        now = self._around.clock.monotonic()
        return list({f.peer.endpoint_id: f.peer for f in self._feeds.values() if now - f.last < STALL_S}.values())

    def connections(self) -> list[Connection]:
        """What each peer gave, as the ledger wants it."""
        return [
            Connection(peer_fingerprint(endpoint), f"feed {endpoint}", count)
            for endpoint, count in self._received.items()
        ]

    def take_bad(self) -> list[tuple[PeerCandidate, int]]:
        """Who sent which chunk damaged since the last call."""
        bad, self._bad = self._bad, []
        return bad

    def steer(
        self, decision: Decision, candidates: Collection[PeerCandidate], allowed: Iterable[PeerCandidate]
    ) -> set[str]:
        """Fetch what is wanted from complete holders beyond a long link, of those that may be connected to.

        Returns the endpoint ids of those that need no torrent. A crowd on several sites is the torrent's business: its
        members give each other what they have. Who stands beside a complete holder is served there, and is no crowd.
        """
        routes, near = self._around.routes, {self._around.site}
        known = [peer for peer in candidates if not peer.kin]
        near.update(peer.site for peer in known if peer.complete)
        near.discard("")
        crowd = any(not peer.complete and peer.site not in near for peer in known)
        able = [] if crowd else [peer for peer in allowed if peer.complete and not peer.kin and routes.far(peer)]
        if not able:
            self.rest()
            return set()
        return self._steer(able, decision.wanted, decision.first)

    def _steer(self, peers: Sequence[PeerCandidate], wanted: Collection[int], first: Collection[int]) -> set[str]:
        now = self._around.clock.monotonic()
        able = {peer.endpoint_id: peer for peer in peers if peer.endpoint_id not in self._unable}
        self._asks.want(set(wanted) - self._given, first)
        for feed in list(self._feeds.values()):
            if feed.peer.endpoint_id not in able:
                feed.retiring = True
            elif now - feed.last > (_TCP_STALL_S if feed.straight else STALL_S) and self._asks.owes(feed.name):
                # Through an outage a bearer goes on where it was; TCP sleeps on, and what others can give is theirs.
                if feed.straight:
                    self._no_tcp_until[feed.peer.endpoint_id] = now + _NO_TCP_S
                if feed.straight or len(able) > 1:
                    self._end(feed)
                    self._around.book.failed(feed.peer.endpoint_id, now, "it has gone silent", 0.0)
        if self._asks.waiting:
            fed = {feed.peer.endpoint_id for feed in self._feeds.values()}
            due = [peer for peer in self._around.book.due(able.values(), now) if peer.endpoint_id not in fed]
            for peer in due[: max(0, MOST_PEERS - len(fed))]:
                self._begin(peer, straight=False)
            for peer in able.values():
                self._widen(peer, now)
        for feed in self._feeds.values():
            feed.wake.set()
        return set(able)

    def _widen(self, peer: PeerCandidate, now: float) -> None:
        """Where a bearer has shown a fast link, several TCP connections carry the same with far less work."""
        mine = [feed for feed in self._feeds.values() if feed.peer.endpoint_id == peer.endpoint_id]
        bearer = sum(self._asks.rate_of(feed.name) for feed in mine if not feed.straight)
        straight = sum(self._asks.rate_of(feed.name) for feed in mine if feed.straight)
        if straight > bearer:
            for feed in mine:
                feed.retiring = feed.retiring or not feed.straight
        elif bearer > FAST and not any(feed.straight for feed in mine) and self._may_go_straight(peer, now):
            for _ in range(TCP_STREAMS):
                self._begin(peer, straight=True)

    def _may_go_straight(self, peer: PeerCandidate, now: float) -> bool:
        return peer.endpoint_id in self._paced and self._no_tcp_until.get(peer.endpoint_id, 0.0) <= now

    def rest(self) -> None:
        """Ask for nothing more; what is on its way still comes."""
        self._asks.want(())
        for feed in self._feeds.values():
            feed.retiring = True
            feed.wake.set()

    def stop(self) -> None:
        """End all feeds."""
        for feed in list(self._feeds.values()):
            self._end(feed)

    def _begin(self, peer: PeerCandidate, *, straight: bool) -> None:
        now = self._around.clock.monotonic()
        self._serial += 1
        feed = _Feed(f"{peer.endpoint_id} {self._serial}", peer, straight, last=now)
        self._feeds[feed.name] = feed
        self._asks.open(feed.name)
        feed.task = self._tasks.create_task(self._run(feed), name=f"feed from {peer.agent_id}")

    def _end(self, feed: _Feed) -> None:
        if feed.task is not None:
            feed.task.cancel()
        self._close(feed)

    def _close(self, feed: _Feed) -> None:
        if self._feeds.pop(feed.name, None) is not None:
            self._torrent.want(self._asks.close(feed.name), _ORDINARY)
            for other in self._feeds.values():
                other.wake.set()

    async def _run(self, feed: _Feed) -> None:
        peer, around = feed.peer, self._around
        infohash = self._torrent.parsed.meta.infohash
        try:
            async with around.client.chunks(peer, infohash, self._asking(feed), straight=feed.straight) as answer:
                feed.last = around.clock.monotonic()
                around.book.succeeded(peer.endpoint_id)
                if answer.paced:
                    self._paced.add(peer.endpoint_id)
                while not feed.retiring or self._asks.owes(feed.name):
                    await self._take(feed, answer.content)
        except NotHeldError:
            self._unable.add(peer.endpoint_id)
        except (PeatError, asyncio.IncompleteReadError) as error:
            log.debug("no more chunks from %s: %s", peer.agent_id, error)
            now = around.clock.monotonic()
            if feed.straight:
                self._no_tcp_until[peer.endpoint_id] = now + _NO_TCP_S
            if feed.name in self._feeds:
                around.book.failed(peer.endpoint_id, now, str(error) or "the stream broke off")
        finally:
            self._close(feed)

    async def _asking(self, feed: _Feed) -> AsyncIterator[bytes]:
        """What to ask for, as the request's body: it goes on while chunks come."""
        while not feed.retiring:
            pieces = self._asks.next(feed.name, self._around.routes.round_trip(feed.peer))
            if pieces:
                self._torrent.want(pieces, _UNWANTED)  # of anybody else
                yield b"".join(ask.encode() for ask in self._resuming(pieces))
                continue
            await feed.wake.wait()
            feed.wake.clear()

    def _resuming(self, pieces: list[int]) -> list[Ask]:
        begun = [Ask(piece, 1, len(self._begun[piece])) for piece in pieces if piece in self._begun]
        return begun + runs(piece for piece in pieces if piece not in self._begun)

    async def _take(self, feed: _Feed, content: aiohttp.StreamReader) -> None:
        """One chunk."""
        piece, length = ANSWER.unpack(await content.readexactly(ANSWER.size))
        peer, around = feed.peer, self._around
        if not self._asks.owed(feed.name, piece):
            raise InvalidInputError(f"{peer.agent_id} sends a chunk it was not asked for")
        if length == NOT_HELD:
            self._unable.add(peer.endpoint_id)  # not complete after all: the torrent knows how to deal with that
            raise UnavailableError(f"{peer.agent_id} does not hold all of it")
        chunk = self._torrent.parsed.chunks[piece]
        data = self._begun.pop(piece, bytearray())
        resumed = bool(data)
        if len(data) + length != chunk.size:
            raise InvalidInputError(f"{peer.agent_id} sends {length} bytes of a chunk of {chunk.size}")
        try:
            while len(data) < chunk.size:
                part = await content.read(min(_PART, chunk.size - len(data)))
                if not part:
                    raise asyncio.IncompleteReadError(b"", None)
                data += part
                feed.last = around.clock.monotonic()
                self._received[peer.endpoint_id] = self._received.get(peer.endpoint_id, 0) + len(part)
                if self._asks.got(feed.name, len(part), feed.last) and self._asks.waiting and not feed.retiring:
                    self._widen(peer, feed.last)
                await around.throttle.take(len(part))
        except BaseException:
            if data:
                self._begun[piece] = data
            raise
        whole = bytes(data)
        if blake3(whole).digest() != chunk.digest:
            if not resumed:
                self._bad.append((peer, piece))
                self._unable.add(peer.endpoint_id)
            raise UnavailableError(f"{peer.agent_id} sent a chunk that is not what its name says")
        self._asks.settled(feed.name, piece)
        self._given.add(piece)
        self._torrent.give(piece, whole)
        feed.wake.set()
