"""What a transfer wants at this moment: which pieces, and from inside its site alone or from outside as well.

Owns the decision that joins thrift and holding back. Where a site shares a thin link nothing that a neighbour has or
will have may cross it again. If feeds bring the own share, the torrent keeps to the neighbours and gets what they have
meanwhile. Otherwise two phases alternate: *outside*, in which an agent wants its own share alone and connects to
anybody, and *inside*, in which it wants everything and connects to its neighbours alone. Pieces that are begun are
always finished: nothing is thrown away by a change of mind. Pure. Must not know torrents or sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, count

from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.thrift import Thrift, rendezvous

ASK_PATIENCE_S, ASKING_PATIENCE_S = 8.0, 30.0  # with one of whom nothing is seen, and with one that answers
SHARE_PATIENCE_S, SHARE_PATIENCE = 3.0, 0.15  # at least, and of the time so far
_GIVING_SPAN_S, _FLAGGING = 8.0, 0.7
_LEAST_AHEAD, _AHEAD_S, _HELPED_AT_ONCE = 32, 4.0, 32
_ON_THEIR_WAY = 6  # pieces that each fetching agent has asked of a giver, or so


class Giving:
    """How fast chunks that nobody fetching had come to any of them: what the givers' links carry. Pure."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()
        self._best = 0.0

    def look(self, now: float, left: int) -> None:
        """So many chunks are the givers' alone now."""
        self._looks.append((now, left))
        while now - self._looks[0][0] > _GIVING_SPAN_S:
            self._looks.popleft()
        self._best = max(self._best, self._rate)

    @property
    def _rate(self) -> float:
        (first, before), (last, after) = self._looks[0], self._looks[-1]
        return (before - after) / (last - first) if last - first >= _GIVING_SPAN_S / 2 else 0.0

    @property
    def flags(self) -> bool:
        """Whether the givers have given clearly more: those whose share it is do not fill their links."""
        return self._rate < _FLAGGING * self._best or not self._best


class Pace:
    """How many chunks of the own share to have wanted at a time: more than come in a few seconds. Pure."""

    def __init__(self) -> None:
        self._came: deque[tuple[float, int]] = deque()

    def fetched(self, now: float, count: int) -> None:
        """So many of them came."""
        if count:
            self._came.append((now, count))

    def ahead(self, now: float) -> int:
        """How many to want."""
        while self._came and now - self._came[0][0] > _AHEAD_S:
            self._came.popleft()
        return _LEAST_AHEAD + 2 * sum(count for _, count in self._came)


@dataclass(frozen=True, slots=True)
class Decision:
    """Pieces to want, of these `first`; whether a torrent keeps to neighbours; a remark on that, if any.

    `apart`: complete holders are to be asked for `first` alone, the rest comes from those who fetch, too.
    """

    wanted: frozenset[int]
    inside: bool
    reason: str = ""
    first: frozenset[int] = frozenset()
    apart: bool = False


def whom_to_ask(
    candidates: Sequence[PeerCandidate],
    me: str,
    site: str,
    digest: str,
    elapsed: float,
    answering: Collection[str] = (),
) -> list[PeerCandidate]:
    """Whom to ask for metadata: of the agents of a site that fetch, one asks outside, the next if that takes long.

    Those in `answering` (endpoint ids) answered lately that they do not have it yet: on a slow link that is no wonder.
    """
    able = [peer for peer in candidates if peer.metadata is not None and not peer.kin]
    near = [peer for peer in able if site and peer.site == site and peer.endpoint_id != me]
    fetching = [peer.endpoint_id for peer in near if not peer.complete]
    order = rendezvous(digest.encode(), [me, *fetching])
    before = order[: order.index(me)]
    patience = sum(ASKING_PATIENCE_S if one in answering else ASK_PATIENCE_S for one in before)
    return near if near and elapsed < patience else able


class Plan:
    """The decisions of one transfer of one agent. `site` empty means: no thrift."""

    def __init__(self, me: str, site: str, digests: Sequence[bytes]) -> None:
        self._site = site
        self._me = me
        self._thrift = Thrift(me, digests)
        self._crowd = Thrift(me, digests)
        self._giving = Giving()
        self._pace = Pace()
        self._asked_at = 0.0
        self._began_at: float | None = None
        self._mine: frozenset[int] = frozenset()
        self._own: frozenset[int] = frozenset()

    def near(self, peer: PeerCandidate) -> bool:
        """Whether a candidate is a neighbour."""
        return bool(self._site) and peer.site == self._site and peer.endpoint_id != self._me

    def decide(
        self,
        now: float,
        missing: Collection[int],
        partial: Collection[int],
        candidates: Sequence[PeerCandidate],
        pieces_of: Mapping[str, Sequence[bool]],
        held: str = "",
        *,
        fed: bool = False,
        heard: float | None = None,
    ) -> Decision:
        """Decide. `pieces_of` tells what each connected peer (by endpoint id) has; `held` is a reason to hold back.

        `fed` says that feeds can bring the own share from outside; `heard`, if known, when anything last came from
        there.
        """
        begun = frozenset(piece for piece in partial if piece in missing)
        if held:
            return Decision(begun, False, held)
        everything = frozenset(missing)
        neighbours = {peer.endpoint_id: peer for peer in candidates if self.near(peer)}
        outside = any(not self.near(peer) for peer in candidates)
        if not neighbours or not outside:
            return self._among_all(now, missing, begun, candidates, pieces_of)
        counts = {name: sum(pieces) for name, pieces in pieces_of.items() if name in neighbours}
        fetching = [name for name, peer in neighbours.items() if not peer.complete and not peer.kin]
        self._thrift.observe(now, fetching, counts, heard)
        at_site = _had(pieces_of[name] for name in counts).intersection(missing)
        # A neighbour that says it is complete has what is missing, though it may not be connected yet.
        hoped = self._hoped(now, neighbours, counts)
        mine = self._mine = frozenset() if hoped else frozenset(self._thrift.mine(now, missing, at_site))
        if mine:
            reason = f"own share of {len(mine)} chunks from outside"
            if fed:
                return Decision(mine | begun | at_site, True, reason, first=mine, apart=True)
            return Decision(mine | begun, False, reason)
        return Decision(everything, True, "neighbours fetch the rest from outside" if not at_site else "")

    def _among_all(
        self,
        now: float,
        missing: Collection[int],
        begun: frozenset[int],
        candidates: Sequence[PeerCandidate],
        pieces_of: Mapping[str, Sequence[bool]],
    ) -> Decision:
        """Without thrift: the own share among all that fetch first, so that a giver gives each something else.

        After it, where that leaves the givers idle, what this agent is the next responsible for: who is fast helps who
        is slow, but what one agent takes of the others' shares they have to get through its line. Each goes through its
        own share in the order of the chunks and helpers come from the other end, so that they do not fetch the same: it
        takes seconds until what one was sent is known to the others. In the end, when what only the givers have is
        about what was asked of them already, nothing of that but the own share, or the giver gives the last pieces to
        everybody. Should that last take long, anything.
        """
        everything = frozenset(missing)
        fetching = [p.endpoint_id for p in candidates if not p.complete and not p.kin and p.endpoint_id != self._me]
        if self._began_at is None:
            self._began_at = now
        if not fetching:
            return Decision(everything, False)
        # Those not connected yet count for a while: the first seconds decide how often the giver gives the same.
        connected = {name: pieces_of[name] for name in fetching if name in pieces_of}
        self._crowd.observe(now, fetching, {name: sum(pieces) for name, pieces in connected.items()})
        spread = everything & _had(connected.values())
        self._giving.look(now, len(everything) - len(spread))
        own = self._own = frozenset(self._crowd.mine(now, missing, spread))
        if own - begun or not self._giving.flags:
            self._asked_at = now
        others = len(everything) - len(spread) - len(own)
        patience = max(SHARE_PATIENCE_S, SHARE_PATIENCE * (now - self._began_at))
        if now - self._asked_at > patience:
            return Decision(everything, False, first=own)
        help_with = frozenset[int]()
        if not own - begun and others > _ON_THEIR_WAY * len(fetching) and self._giving.flags:
            help_with = frozenset(sorted(self._crowd.helping(now, missing, spread))[-_HELPED_AT_ONCE:])
        if len(everything) - len(spread) <= len(fetching):
            # The givers have nothing more of their own: they help to bring the rest to everybody.
            return Decision(everything, False, first=everything, apart=True)
        next_own = frozenset(sorted(own - begun)[: self._pace.ahead(now)])
        first = next_own | help_with
        return Decision(first | spread | begun, False, first=first, apart=True)

    def fetched(self, now: float, pieces: Collection[int]) -> None:
        """These came in."""
        self._pace.fetched(now, len(self._own.intersection(pieces)))
        for share, thrift in ((self._mine, self._thrift), (self._own, self._crowd)):
            if not share.isdisjoint(pieces):
                thrift.fetched_own(now)

    def _hoped(self, now: float, neighbours: Mapping[str, PeerCandidate], counts: Mapping[str, int]) -> bool:
        complete = {name for name, peer in neighbours.items() if peer.complete and not peer.kin}
        return self._thrift.worth_waiting(now, complete, counts)


def _had(all_pieces: Iterable[Sequence[bool]]) -> set[int]:
    """The numbers of the pieces that any of these has."""
    found: set[int] = set()
    for pieces in all_pieces:
        found.update(compress(count(), pieces))
    return found
