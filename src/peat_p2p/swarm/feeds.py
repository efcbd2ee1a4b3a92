"""Streams of chunks from complete holders, for one torrent.

Over a long link a torrent loses round trips: to join, to shake hands, to be unchoked, and whenever its requests run
dry; over a LAN it is the processor that it keeps busy (`direct`). A feed is one request to one complete holder,
answered as one stream; what comes is checked against its name and handed to the torrent as a finished piece, so that
everything else (verification from disk, the account, neighbours, seeding) is the torrent's as ever. While nobody else
fetches, what comes by a direct line is put where it belongs at once, and the torrent is made anew when somebody does
who needs it: not neighbours on short paths, who have direct lines to each other and say what they hold (`holdings`).
Where others fetch, too, a feed brings the own share of what the holders have, and the torrent what the others got:
libtorrent cannot be told what not to ask a complete holder for, and would have it give a tenth of all twice.
Rule: what a feed is asked for nobody else is asked for. Must not decide what is wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from blake3 import blake3

from peat_p2p.core.errors import InvalidInputError, PeatError, UnavailableError
from peat_p2p.swarm.asks import ANSWER, NOT_HELD, Ask, Asks, NotHeldError, opening_ask, runs
from peat_p2p.swarm.direct import Came, DirectLine, NotPutError
from peat_p2p.swarm.ledger import Connection
from peat_p2p.swarm.metadata import ChunkAnswer
from peat_p2p.swarm.opening import AHEAD, Opening
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.plan import Decision
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrents import Torrent
from peat_p2p.swarm.ways import Ways

log = logging.getLogger(__name__)
MOST_PEERS = 2  # holders that are asked at the same time: each costs a connection across the link
_MOST_NEAR = 8
_NEAR_LINES = 2  # from one holder: while one thread hashes and writes a chunk, the other reads
TCP_STREAMS = 2  # on leo as full as four, with less work, and fuller than one
FAST = 3_500_000.0  # bytes per second: beyond, the work that a bearer has with each datagram is felt
STALL_S = 10.0
_TCP_STALL_S = 3.0
_PART = 64 << 10
_UNWANTED, _ORDINARY = 0, 4


@dataclass(slots=True)
class _Feed:
    """One stream. `straight`: by TCP, not by a bearer; `near`: by a `DirectLine`, `past` the torrent if so.

    A `retiring` one is asked for nothing more. `opening`: the stream it goes on with.
    """

    name: str
    peer: PeerCandidate
    straight: bool
    near: bool = False
    past: bool = False
    opening: Opening | None = None
    task: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    last: float = 0.0
    retiring: bool = False


class Feeds:
    """The feeds of one torrent. `tasks` runs them; `stop` ends them.

    `begun` is what came of chunks that broke off, by their number: any holder goes on from there, and so do the feeds
    of the torrent that is made in place of this one. `opening` is a stream that has begun, if any: the first feed is
    it, unless it is not to be.
    """

    def __init__(
        self,
        torrent: Torrent,
        around: Surroundings,
        tasks: asyncio.TaskGroup,
        begun: dict[int, bytearray],
        opening: Opening | None = None,
    ) -> None:
        self._torrent = torrent
        self._around = around
        self._tasks = tasks
        self._asks = Asks([chunk.size for chunk in torrent.parsed.chunks])
        self._feeds: dict[str, _Feed] = {}
        self._serial = 0
        self._begun = begun
        self._opening = opening
        self._given: set[int] = set()
        self._landed: list[int] = []
        self._torrent_behind = False
        self._ways = Ways(torrent, around, tasks)
        self._gives: Mapping[str, Collection[int] | None] = {}  # what to ask a peer for, None for anything
        self._received: dict[str, int] = {}
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

    def take_landed(self) -> list[int]:
        """Chunks that were put where they belong since the last call, and that the torrent does not know of."""
        landed, self._landed = self._landed, []
        return landed

    @property
    def torrent_behind(self) -> bool:
        """Whether the torrent does not know of all that is here, and is what goes on."""
        needed = self._ways.alone or not self._ways.past
        return self._torrent_behind and needed and not any(feed.past for feed in self._feeds.values())

    @property
    def torrent_knows(self) -> bool:
        """Whether the torrent had all that came."""
        return not self._torrent_behind

    def givers(self, candidates: Iterable[PeerCandidate]) -> list[PeerCandidate]:
        """Those that can bring anything, as far as is known."""
        around = self._around
        return [
            peer
            for peer in candidates
            if self._ways.able(peer)
            and not around.book.health(peer.endpoint_id).failures
            and (around.routes.perhaps_far(peer) or self._ways.beside([peer]))
        ]

    def look(self, candidates: Collection[PeerCandidate]) -> dict[str, Sequence[bool]]:
        """These are known now. Returns, by endpoint id, what those have that direct lines can bring from them."""
        return self._ways.look(candidates)

    def steer(
        self, decision: Decision, candidates: Collection[PeerCandidate], allowed: Iterable[PeerCandidate]
    ) -> set[str]:
        """Fetch what is wanted from complete holders, of those that may be connected to.

        Returns the endpoint ids of those that need no torrent. In a crowd on several sites, whose members give each
        other what they have, holders are asked for the own share. Who stands beside a complete holder is served there,
        and is no crowd.
        """
        routes, near = self._around.routes, {self._around.site}
        known = [peer for peer in candidates if not peer.kin]
        near.update(peer.site for peer in known if peer.complete)
        near.discard("")
        crowd = any(not peer.complete and peer.site not in near for peer in known)
        holders = [peer for peer in allowed if self._ways.able(peer)]
        far = routes.perhaps_far if decision.inside else routes.far
        able = [peer for peer in holders if far(peer)] if decision.apart or not crowd else []
        if self._ways.past or decision.apart:
            able += self._ways.beside(holders)
        wanted = set(decision.first if decision.apart else decision.wanted) if able else set[int]()
        gives: dict[str, Collection[int] | None]
        gives = {peer.endpoint_id: decision.first if decision.apart else None for peer in able}
        mates = self._ways.beside(peer for peer in allowed if self._ways.past and self._ways.mate(peer))
        for peer in mates:
            if held := self._ways.of(peer):
                able.append(peer)
                gives[peer.endpoint_id] = held
                wanted |= decision.wanted & held
        if able:
            self._steer({peer.endpoint_id: peer for peer in able}, gives, wanted, decision.first)
        else:
            self._use_opening(())
            self.rest()
        return {peer.endpoint_id for peer in (*able, *mates)}

    def _outdated(self, feed: _Feed) -> bool:
        """Whether the path to its peer has turned out to be short."""
        return not feed.near and bool(self._ways.beside([feed.peer]))

    def _steer(
        self,
        able: dict[str, PeerCandidate],
        gives: Mapping[str, Collection[int] | None],
        wanted: set[int],
        first: Collection[int],
    ) -> None:
        now = self._around.clock.monotonic()
        complete = sum(peer.complete for peer in able.values())
        self._gives = gives
        self._asks.want(wanted - self._given, first)
        for feed in list(self._feeds.values()):
            if feed.peer.endpoint_id not in able or (feed.past and not self._ways.past) or self._outdated(feed):
                feed.retiring = True
            elif now - feed.last > (_TCP_STALL_S if feed.straight else STALL_S) and self._asks.owes(feed.name):
                # Through an outage a bearer goes on where it was; TCP sleeps on, and what others can give is theirs.
                if feed.straight:
                    self._ways.broke(feed.peer)
                if feed.straight or complete > 1:
                    self._end(feed)
                    self._around.book.failed(feed.peer.endpoint_id, now, "it has gone silent", 0.0)
            if not feed.near:
                self._ways.find_out(feed.peer)
        self._use_opening(able)
        if self._asks.waiting:
            fed = {feed.peer.endpoint_id: feed.near for feed in self._feeds.values() if not self._outdated(feed)}
            due = [peer for peer in self._around.book.due(able.values(), now) if peer.endpoint_id not in fed]
            far = [peer for peer in due if not self._around.routes.near(peer)]
            lines = sum(fed.values())
            for peer in far[: max(0, MOST_PEERS - (len(fed) - lines))]:
                self._begin(peer, straight=False)
            for peer in [peer for peer in due if peer not in far][: max(0, _MOST_NEAR - lines)]:
                for _ in range(_NEAR_LINES if self._ways.alone else 1):
                    self._begin(peer, straight=True, near=True, past=self._ways.past)
            for peer in able.values():
                self._widen(peer, now)
        for feed in self._feeds.values():
            feed.wake.set()

    def _use_opening(self, able: Collection[str]) -> None:
        """Go on with the stream that has begun, if there is one, or leave it."""
        opening, self._opening = self._opening, None
        if opening is not None and not (opening.peer.endpoint_id in able and self._go_on(opening)):
            self._tasks.create_task(self._leave(opening), name="leave an opening")

    def _go_on(self, opening: Opening) -> bool:
        """Go on with a stream that has begun. False if what it gives is not wanted, or comes better by another way."""
        pieces = range(opening_ask((chunk.size for chunk in self._torrent.parsed.chunks), AHEAD).count)
        if not self._around.routes.far(opening.peer) or not self._asks.waits(pieces):
            return False
        feed = self._begin(opening.peer, straight=False, opening=opening)
        self._asks.begin(feed.name, pieces)
        self._torrent.want(pieces, _UNWANTED)
        return True

    def _widen(self, peer: PeerCandidate, now: float) -> None:
        """Where a bearer has shown a fast link, several TCP connections carry the same with far less work."""
        mine = [feed for feed in self._feeds.values() if feed.peer.endpoint_id == peer.endpoint_id]
        bearer = sum(self._asks.rate_of(feed.name) for feed in mine if not feed.straight)
        straight = sum(self._asks.rate_of(feed.name) for feed in mine if feed.straight)
        if straight > bearer:
            for feed in mine:
                feed.retiring = feed.retiring or not feed.straight
        elif bearer > FAST and not any(feed.straight for feed in mine) and self._ways.straight(peer):
            for _ in range(TCP_STREAMS):
                self._begin(peer, straight=True)

    def rest(self) -> None:
        """Ask for nothing more; what is on its way still comes."""
        self._asks.want(())
        for feed in self._feeds.values():
            feed.retiring = True
            feed.wake.set()

    async def _leave(self, opening: Opening) -> None:
        endpoint, wasted = opening.peer.endpoint_id, await opening.close()
        log.debug("%d bytes that %s sent behind the index are not wanted", wasted, opening.peer.agent_id)
        self._received[endpoint] = self._received.get(endpoint, 0) + wasted

    def stop(self) -> None:
        """End all feeds."""
        self._ways.stop()
        for feed in list(self._feeds.values()):
            self._end(feed)

    def _begin(
        self,
        peer: PeerCandidate,
        *,
        straight: bool,
        near: bool = False,
        past: bool = False,
        opening: Opening | None = None,
    ) -> _Feed:
        now = self._around.clock.monotonic()
        self._serial += 1
        feed = _Feed(f"{peer.endpoint_id} {self._serial}", peer, straight, near, past, opening, last=now)
        self._feeds[feed.name] = feed
        self._asks.open(feed.name)
        way = "a direct line" if near else "TCP" if straight else "its bearer"
        log.debug("chunks from %s by %s%s", peer.agent_id, way, ", past the torrent" if past else "")
        feed.task = self._tasks.create_task(self._run(feed), name=f"feed from {peer.agent_id}")
        feed.task.add_done_callback(lambda _: self._close(feed))  # one that is cancelled at once never begins
        return feed

    def _end(self, feed: _Feed) -> None:
        # What it owes is others' once it has left what it began with them.
        if feed.task is not None and not feed.task.cancelling():
            feed.task.cancel()

    def _close(self, feed: _Feed) -> None:
        if self._feeds.pop(feed.name, None) is not None:
            self._torrent.want(self._asks.close(feed.name), _ORDINARY)
            for other in self._feeds.values():
                other.wake.set()
            self._torrent.wake.set()

    async def _run(self, feed: _Feed) -> None:
        peer, around = feed.peer, self._around
        try:
            await (self._follow(feed) if feed.near else self._read(feed))
        except NotHeldError as error:
            if self._ways.mate(peer):  # what it said that it holds may not be given yet
                self._ways.broke(peer)
                around.book.failed(peer.endpoint_id, around.clock.monotonic(), str(error))
            else:
                self._ways.unable.add(peer.endpoint_id)
        except (PeatError, asyncio.IncompleteReadError) as error:
            log.debug("no more chunks from %s: %s", peer.agent_id, error)
            now = around.clock.monotonic()
            if feed.straight:
                self._ways.broke(peer)
            around.book.failed(peer.endpoint_id, now, str(error) or "the stream broke off")

    async def _read(self, feed: _Feed) -> None:
        """Chunks by HTTPS."""
        if feed.opening is not None:
            try:
                await self._take_all(feed, feed.opening.go_on(self._asking(feed)))
            finally:
                await feed.opening.close()
            return
        infohash, client = self._torrent.parsed.meta.infohash, self._around.client
        async with client.chunks(feed.peer, infohash, self._asking(feed), straight=feed.straight) as answer:
            await self._take_all(feed, answer)

    async def _take_all(self, feed: _Feed, answer: ChunkAnswer) -> None:
        feed.last = self._around.clock.monotonic()
        self._around.book.succeeded(feed.peer.endpoint_id)
        if answer.paced:
            self._ways.paced.add(feed.peer.endpoint_id)
        while not feed.retiring or self._asks.owes(feed.name):
            await self._take(feed, answer.content)

    async def _follow(self, feed: _Feed) -> None:
        """Chunks by a direct line."""
        peer, around, parsed = feed.peer, self._around, self._torrent.parsed

        def put(piece: int, data: memoryview) -> None:
            if feed.past:
                around.store.lay(parsed.chunks[piece], data)
            else:
                self._torrent.give(piece, bytes(data))

        line = await around.client.direct(peer, parsed.meta.infohash, parsed.chunks, put)
        asking = self._tasks.create_task(self._ask_line(feed, line), name=f"ask {peer.agent_id}")
        try:
            while not feed.retiring or self._asks.owes(feed.name):
                event = await line.next()
                if isinstance(event, Came):
                    self._count(feed, event.count)
                    around.book.succeeded(peer.endpoint_id)
                else:
                    self._owed(feed, event.piece)
                    self._judge(feed, event.piece, good=event.good, resumed=event.resumed)
                    if feed.past:
                        self._landed.append(event.piece)
                        self._torrent_behind = True
                        self._torrent.wake.set()
        except NotPutError as error:
            self._torrent.failure = (error.errno, str(error))
            self._torrent.wake.set()
        finally:
            asking.cancel()
            await line.end()
            self._count(feed, line.untold())
            self._begun.update(line.begun)

    async def _ask_line(self, feed: _Feed, line: DirectLine) -> None:
        async for pieces in self._orders(feed):
            asks = self._resuming(pieces)
            begun = {piece: self._begun.pop(piece) for piece in pieces if piece in self._begun}
            line.ask(b"".join(ask.encode() for ask in asks), len(pieces), begun)
        if not self._asks.owes(feed.name):
            line.close()

    async def _asking(self, feed: _Feed) -> AsyncIterator[bytes]:
        """What to ask for, as the request's body: it goes on while chunks come."""
        async for pieces in self._orders(feed):
            yield b"".join(ask.encode() for ask in self._resuming(pieces))

    async def _orders(self, feed: _Feed) -> AsyncIterator[list[int]]:
        """The chunks to ask a feed for, ever more."""
        while not feed.retiring:
            able = self._gives.get(feed.peer.endpoint_id)
            pieces = self._asks.next(feed.name, self._around.routes.round_trip(feed.peer), able)
            if pieces:
                self._torrent.want(pieces, _UNWANTED)  # of anybody else
                yield pieces
                continue
            await feed.wake.wait()
            feed.wake.clear()

    def _resuming(self, pieces: list[int]) -> list[Ask]:
        begun = [Ask(piece, 1, len(self._begun[piece])) for piece in pieces if piece in self._begun]
        return begun + runs(piece for piece in pieces if piece not in self._begun)

    def _owed(self, feed: _Feed, piece: int) -> None:
        if not self._asks.owed(feed.name, piece):
            raise InvalidInputError(f"{feed.peer.agent_id} sends a chunk it was not asked for")

    def _count(self, feed: _Feed, count: int) -> None:
        """Bytes of chunks came."""
        endpoint = feed.peer.endpoint_id
        feed.last = self._around.clock.monotonic()
        self._received[endpoint] = self._received.get(endpoint, 0) + count
        if self._asks.got(feed.name, count, feed.last) and self._asks.waiting and not (feed.retiring or feed.near):
            self._widen(feed.peer, feed.last)

    async def _take(self, feed: _Feed, content: aiohttp.StreamReader) -> None:
        """One chunk."""
        piece, length = ANSWER.unpack(await content.readexactly(ANSWER.size))
        peer, around = feed.peer, self._around
        self._owed(feed, piece)
        if length == NOT_HELD:
            self._ways.unable.add(peer.endpoint_id)  # not complete after all: the torrent knows how to deal with that
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
                self._count(feed, len(part))
                await around.throttle.take(len(part))
        except BaseException:
            if data:
                self._begun[piece] = data
            raise
        whole = bytes(data)
        self._judge(feed, piece, good=blake3(whole).digest() == chunk.digest, resumed=resumed)
        self._torrent.give(piece, whole)

    def _judge(self, feed: _Feed, piece: int, *, good: bool, resumed: bool) -> None:
        """A chunk is here. Raises UnavailableError when it is not what its name says."""
        if not good:
            if not resumed:
                self._bad.append((feed.peer, piece))
                self._ways.unable.add(feed.peer.endpoint_id)
            raise UnavailableError(f"{feed.peer.agent_id} sent a chunk that is not what its name says")
        self._asks.settled(feed.name, piece)
        self._ways.gave(feed.peer)
        self._given.add(piece)
        feed.wake.set()
