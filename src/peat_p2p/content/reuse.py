"""Which chunks of an earlier index the content stream of a source has again.

Owns the argument why a chunk can be taken over without reading its content: cuts depend on the bytes from the last cut
on and on where segments start, and on nothing else. So where a chunk began in the earlier stream and one begins in the
new one, over files that are as they were then, and no segment starts or ends inside it that did not then, it is the
same chunk. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from peat_p2p.content.chunking import starts_segment
from peat_p2p.content.entries import Kind
from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.scan import Source, SourceEntry

_CUTS_UNTIL_ALIKE = 1  # behind a change, usually


@dataclass(frozen=True, slots=True)
class Piece:
    """A file with content and where in the content stream it lies; `starts` tells whether it starts a segment."""

    item: SourceEntry
    at: int
    end: int
    large: bool
    starts: bool


def pieces(source: Source, average: int) -> list[Piece]:
    """The files that have content, in order."""
    found: list[Piece] = []
    at = 0
    after_small = False
    for item in source.entries:
        size = item.entry.content_bytes
        if item.entry.kind is not Kind.FILE or size == 0:
            continue
        large = size >= average
        starts = starts_segment(size, average, after_small=after_small)
        found.append(Piece(item, at, at + size, large, starts))
        at += size
        after_small = not large
    return found


def segments(found: Sequence[Piece]) -> Iterator[list[Piece]]:
    """The pieces of one segment after the other: one large file, or small ones in a row."""
    some: list[Piece] = []
    for piece in found:
        if piece.starts and some:
            yield some
            some = []
        some.append(piece)
    if some:
        yield some


@dataclass(frozen=True, slots=True)
class _Run:
    """A stretch of the new stream that lies in the earlier one as it is, `shift` bytes further on."""

    start: int
    end: int
    shift: int
    begins_segment: bool
    ends_segment: bool


class Earlier:
    """The chunks of an earlier index, by where they would begin in the new stream.

    `missing` are the digests of those that are not in the store any more.
    """

    def __init__(self, index: Index, found: Sequence[Piece], missing: Set[str]) -> None:
        self._missing = missing
        self._chunks = index.chunks
        self._begins: dict[int, int] = {}
        at = 0
        for number, chunk in enumerate(index.chunks):
            self._begins[at] = number
            at += chunk.content_size
        self._cuts = [*self._begins, at]
        self._segments = _segment_starts(index) | {at}
        self._runs = _runs(found)
        self._starts = [run.start for run in self._runs]

    def at(self, offset: int) -> ChunkRef | None:
        """The chunk that begins at this offset of the new stream, where a cut is, if it is known unread."""
        number = bisect_right(self._starts, offset) - 1
        if number < 0 or offset >= self._runs[number].end:
            return None
        run = self._runs[number]
        begin = self._begins.get(offset + run.shift)
        if begin is None:
            return None
        chunk = self._chunks[begin]
        end = offset + chunk.content_size
        if end > run.end:
            return None
        if end == run.end and end + run.shift in self._segments and not run.ends_segment:
            return None  # it ended there only because its segment did
        return None if chunk.hex in self._missing else chunk

    def whole(self, piece: Piece) -> list[ChunkRef] | None:
        """All chunks of a large file, if they are known unread."""
        known = piece.item.known
        if known is None:
            return None
        chunks: list[ChunkRef] = []
        at, end = known.at, known.at + known.entry.content_bytes
        while at < end:
            number = self._begins.get(at)
            if number is None or self._chunks[number].hex in self._missing:
                return None
            chunks.append(self._chunks[number])
            at += self._chunks[number].content_size
        return chunks if at == end else None

    def spares(self, piece: Piece) -> bool:
        """Whether a file will hardly be read, as far as the earlier cuts tell: no chunk near anything new is in it."""
        if piece.item.known is None or piece.item.entry.recipe is not None:
            return False
        if piece.large:
            return True
        run = self._runs[bisect_right(self._starts, piece.at) - 1]
        # A memory that does not fit the index may point beyond its end.
        first = bisect_left(self._cuts, run.start + run.shift) + (0 if run.begins_segment else _CUTS_UNTIL_ALIKE)
        last = bisect_right(self._cuts, run.end + run.shift) - 1
        return first <= last and self._cuts[first] <= piece.at + run.shift and piece.end + run.shift <= self._cuts[last]


def _segment_starts(index: Index) -> set[int]:
    starts: set[int] = set()
    at, after_small = 0, False
    for entry in index.files:
        size = entry.content_bytes
        if entry.kind is Kind.FILE and size:
            if starts_segment(size, index.average, after_small=after_small):
                starts.add(at)
            at += size
            after_small = size < index.average
    return starts


def _runs(found: Sequence[Piece]) -> list[_Run]:
    runs: list[_Run] = []
    start, begins, before = 0, True, None
    for piece in found:
        shift = _shift(piece)
        if shift == before:
            continue
        if before is not None:
            runs.append(_Run(start, piece.at, before, begins, piece.starts))
        start, begins, before = piece.at, piece.starts, shift
    if before is not None:
        runs.append(_Run(start, found[-1].end, before, begins, ends_segment=True))
    return runs


def _shift(piece: Piece) -> int | None:
    known = piece.item.known
    # Inside a file with a recipe segments may start that only its reader knows of. A large one is asked for whole.
    if known is None or piece.large or piece.item.entry.recipe is not None:
        return None
    return known.at - piece.at
