"""Which chunk is asked of which stream, and how many at once. Pure.

Owns the pool of chunks that a transfer wants by streams (`feeds`) and what each stream still owes. Rule: a chunk is
asked of one stream at a time; a stream that ends gives back what it owes. How much a stream is asked for ahead follows
what it has shown: its rate times a few round trips, so that a long link never runs dry and a slow one owes little.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from peat_p2p.core.errors import InvalidInputError, UnavailableError

FIRST_DEPTH = 256 << 10
SLOW_DEPTH, _SLOW_AHEAD_S = 64 << 10, 20.0  # of a stream that has shown so little: others may have to ask for it
SHORT_PATH_S, SHORT_DEPTH = 0.2, 1 << 20  # no satellite is in between: what is asked for must not hold up the start
MOST_DEPTH = 32 << 20
MOST_RUN = 0xFFFF
ASK = struct.Struct("!IHI")  # first chunk, how many in a row, where in the first one to begin
ANSWER = struct.Struct("!II")  # chunk, bytes that follow
NOT_HELD = 0xFFFFFFFF
_AHEAD_ROUND_TRIPS = 3.0
_AHEAD_S = 1.0
_FIRST_SPAN_S, _RATE_SPAN_S = 0.25, 0.5
_RATE_MEMORY = 0.4


class NotHeldError(UnavailableError):
    """The peer answered that it does not have what was asked for."""


@dataclass(frozen=True, slots=True)
class Ask:
    """So many chunks from `first` on, the first from its byte `offset` on."""

    first: int
    count: int
    offset: int = 0

    def encode(self) -> bytes:
        """As in a request."""
        return ASK.pack(self.first, self.count, self.offset)


def decode_ask(data: bytes, chunks: int) -> Ask:
    """An ask about a package of so many chunks. Raises InvalidInputError."""
    try:
        first, count, offset = ASK.unpack(data)
    except struct.error as error:
        raise InvalidInputError("an ask of the wrong length") from error
    if not 1 <= count <= chunks - first:
        raise InvalidInputError(f"chunks {first} to {first + count} are asked for; there are {chunks}")
    return Ask(first, count, offset)


def runs(pieces: Iterable[int]) -> list[Ask]:
    """Asks for these chunks, in their order, as few as may be."""
    found: list[list[int]] = []
    for piece in pieces:
        if found and piece == found[-1][0] + found[-1][1] and found[-1][1] < MOST_RUN:
            found[-1][1] += 1
        else:
            found.append([piece, 1])
    return [Ask(first, count) for first, count in found]


def opening_ask(sizes: Iterable[int], most: int) -> Ask:
    """The ask for the first chunk and those after it, as many as have `most` bytes at most with it."""
    return Ask(0, max(1, bisect_right(list(accumulate(sizes)), most)))


@dataclass(slots=True)
class _Owing:
    """One stream: what it owes, and how fast it is (bytes per second)."""

    pieces: dict[int, int] = field(default_factory=dict)
    bytes: int = 0
    rate: float = 0.0
    span_began: float | None = None  # with the first bytes: what a stream takes to begin is no part of its rate
    span_bytes: int = 0


class Asks:
    """The pool of one transfer. `sizes` tells the bytes of every chunk of the package."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._pool: list[int] = []  # the next to be asked for at the end
        self._streams: dict[str, _Owing] = {}
        self._asked: dict[int, str] = {}

    @property
    def asked(self) -> Collection[int]:
        """Chunks that some stream owes."""
        return self._asked.keys()

    @property
    def waiting(self) -> int:
        """How many chunks nobody was asked for yet."""
        return len(self._pool)

    @property
    def rate(self) -> float:
        """Bytes per second of all streams together."""
        return sum(owing.rate for owing in self._streams.values())

    def want(self, pieces: Iterable[int], first: Collection[int] = ()) -> None:
        """From now on these are wanted, `first` before the others. What is owed already is not affected."""
        waiting = sorted(piece for piece in pieces if piece not in self._asked)
        self._pool = [*(p for p in reversed(waiting) if p not in first), *(p for p in reversed(waiting) if p in first)]

    def open(self, stream: str) -> None:
        """A stream is about to be asked."""
        self._streams[stream] = _Owing()

    def rate_of(self, stream: str) -> float:
        """Bytes per second of one stream."""
        owing = self._streams.get(stream)
        return owing.rate if owing is not None else 0.0

    def owed(self, stream: str, piece: int) -> bool:
        """Whether a stream owes a chunk."""
        return self._asked.get(piece) == stream

    def owes(self, stream: str) -> int:
        """Bytes that a stream has been asked for and has not given."""
        owing = self._streams.get(stream)
        return owing.bytes if owing is not None else 0

    def next(self, stream: str, round_trip: float, able: Collection[int] | None = None) -> list[int]:
        """The chunks to ask a stream for now, of those it is able to give, or of all; they are owed from now on."""
        owing = self._streams.get(stream)
        if owing is None:
            return []
        if owing.rate:
            least = min(FIRST_DEPTH, max(SLOW_DEPTH, owing.rate * _SLOW_AHEAD_S))
        else:
            least = SHORT_DEPTH if round_trip < SHORT_PATH_S else FIRST_DEPTH
        depth = min(MOST_DEPTH, max(least, owing.rate * (_AHEAD_ROUND_TRIPS * round_trip + _AHEAD_S)))
        # Not one by one: a few long runs are fewer bytes on the way up.
        if owing.bytes > depth * 0.75:
            return []
        out, others = [], []
        while self._pool and owing.bytes < depth:
            piece = self._pool.pop()
            if able is not None and piece not in able:
                others.append(piece)
                continue
            self._owe(stream, owing, piece)
            out.append(piece)
        self._pool += reversed(others)
        return out

    def waits(self, pieces: Iterable[int]) -> bool:
        """Whether all of these are wanted, and nobody was asked for them yet."""
        return set(self._pool).issuperset(pieces)

    def begin(self, stream: str, pieces: Collection[int]) -> None:
        """A stream gives these, which wait, without being asked."""
        owing = self._streams[stream]
        self._pool = [piece for piece in self._pool if piece not in pieces]
        for piece in pieces:
            self._owe(stream, owing, piece)

    def _owe(self, stream: str, owing: _Owing, piece: int) -> None:
        owing.pieces[piece] = self._sizes[piece]
        owing.bytes += self._sizes[piece]
        self._asked[piece] = stream

    def got(self, stream: str, count: int, now: float) -> bool:
        """Bytes came by a stream: for its rate. Whether that is known anew."""
        owing = self._streams.get(stream)
        if owing is None:
            return False
        if owing.span_began is None:
            owing.span_began = now
            return False
        owing.span_bytes += count
        span = now - owing.span_began
        if span < (_RATE_SPAN_S if owing.rate else _FIRST_SPAN_S):
            return False
        sample = owing.span_bytes / span
        owing.rate = sample if sample > owing.rate else owing.rate + _RATE_MEMORY * (sample - owing.rate)
        owing.span_began, owing.span_bytes = now, 0
        return True

    def settled(self, stream: str, piece: int) -> bool:
        """A stream has given a chunk, or said that it has not got it. False when it did not owe it."""
        owing = self._streams.get(stream)
        size = owing.pieces.pop(piece, None) if owing is not None else None
        if owing is None or size is None:
            return False
        owing.bytes -= size
        del self._asked[piece]
        return True

    def close(self, stream: str) -> list[int]:
        """A stream has ended: the chunks it owed, to be wanted of others."""
        owing = self._streams.pop(stream, None)
        if owing is None:
            return []
        for piece in owing.pieces:
            del self._asked[piece]
        back = sorted(owing.pieces, reverse=True)
        self._pool += back
        return back
