"""Cutting the content stream into chunks.

Owns the choice of chunk size and where cuts fall. Rule: cuts depend on content and on `average` alone, never on how the
content was read, so equal content anywhere gives equal chunks. Must not touch a disk.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

from pyfastcdc import FastCDC

from peat_p2p.content.index import MAX_AVERAGE

MIN_AVERAGE = 16 << 10
# More chunks find more that two versions share; each costs a file in the store, about 100 bytes of metadata and 50
# microseconds of a fetch. Of small files many change at once, each in a chunk of its own: of 5 GB in 100,000 files of
# which 1,000 change 926 MB are new with chunks of 1 MiB, 271 MB with these. A huge package must not make too many.
_CHUNKS_WANTED = 4096
_AMPLE_AVERAGE = 1 << 20
_AMPLE_FOR_SMALL_FILES = 256 << 10
_CHUNKS_MOST = 32768
_BUFFER_BYTES = 8 << 20
_BLOCK = 16 << 10
_ZERO = bytes(32)


def average_for(total_bytes: int, files: int = 1) -> int:
    """The average chunk size for a package of this size in so many files: a power of two."""
    ample = _AMPLE_FOR_SMALL_FILES if total_bytes < files * _AMPLE_AVERAGE else _AMPLE_AVERAGE
    average = MIN_AVERAGE
    while average < MAX_AVERAGE:
        wanted = _CHUNKS_WANTED if average < ample else _CHUNKS_MOST
        if average * wanted >= total_bytes:
            break
        average *= 2
    return average


def average_like(total_bytes: int, files: int, earlier: int | None) -> int:
    """As `average_for`, but what an earlier version used if that still fits, so that the two can share chunks."""
    average = average_for(total_bytes, files)
    if earlier is not None and average // 4 <= earlier <= average * 4:
        return earlier
    return average


def cutter(average: int) -> FastCDC:
    """The chunker for an average size."""
    return FastCDC(average, min_size=average // 4, max_size=average * 4, normalized_chunking=2)


def starts_segment(content_bytes: int, average: int, *, after_small: bool) -> bool:
    """Whether a file starts a segment: no chunk holds bytes of it and of files before it.

    A large file starts afresh, so that what lies before it cannot shift its cuts; small ones share chunks.
    """
    return content_bytes >= average or not after_small


class StreamCutter:
    """Takes the content stream in pieces of any size and gives it out in chunks.

    `emit` gets lists of chunks in order, which are views of a buffer, and that buffer, which is the caller's from then
    on; once done with the chunks it may give the buffer to `recycle`. `boundary` says that a new segment starts: no
    chunk spans it.
    """

    def __init__(self, average: int, emit: Callable[[list[memoryview], bytearray], None]) -> None:
        self._fastcdc = cutter(average)
        self._min = self._fastcdc.min_size
        self._capacity = max(_BUFFER_BYTES, 2 * self._fastcdc.max_size)
        self._emit = emit
        self._ready: list[memoryview] = []
        # New memory costs a page fault every 4 KiB, as much as hashing it: buffers go round.
        self._spare: deque[bytearray] = deque()
        self._memory = bytearray(self._capacity)
        self._buffer = memoryview(self._memory)
        self._start = 0
        self._end = 0

    def recycle(self, memory: bytearray) -> None:
        """Take a buffer back whose chunks nobody looks at any more. May be called from any thread."""
        self._spare.append(memory)

    def space(self) -> memoryview:
        """Where to put the next bytes; never empty. Call `advance` with how many were put."""
        return self._buffer[self._end :]

    def advance(self, count: int) -> None:
        """Take `count` bytes that were put into `space()`."""
        self._end += count
        if self._end == self._capacity:
            self._cut(final=False)
            self._roll()

    def feed(self, data: bytes | memoryview) -> None:
        """Take these bytes."""
        view = memoryview(data)
        while view:
            space = self.space()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            self.advance(count)
            view = view[count:]

    def pending(self) -> int:
        """Cut what can be cut by now; how many of the bytes taken are in no chunk yet."""
        if self._end - self._start > self._min:
            self._cut(final=False)
        return self._end - self._start

    def drop(self) -> None:
        """Forget the bytes that are in no chunk yet."""
        self._end = self._start

    def flush(self) -> None:
        """Give out the chunks that are ready. Only right after a boundary or a drop."""
        if self._ready:
            self._roll()

    def boundary(self) -> None:
        """End the segment."""
        if self._end > self._start:
            self._cut(final=True)

    def finish(self) -> None:
        """End the last segment and give out what is left."""
        self.boundary()
        self._roll()

    def _cut(self, *, final: bool) -> None:
        view = self._buffer[self._start : self._end].toreadonly()
        size = len(view)
        for chunk in self._fastcdc.cut_buf(view):
            # A cut before the end is where the bytes before it put it; the last chunk may only end for want of more.
            if not final and chunk.offset + chunk.length == size:
                break
            self._ready.append(view[chunk.offset : chunk.offset + chunk.length])
            self._start += chunk.length

    def _roll(self) -> None:
        full, memory, rest = self._ready, self._memory, self._buffer[self._start : self._end]
        try:
            self._memory = self._spare.popleft()
        except IndexError:
            self._memory = bytearray(self._capacity)
        self._buffer = memoryview(self._memory)
        self._buffer[: len(rest)] = rest
        self._ready, self._start, self._end = [], 0, len(rest)
        self._emit(full, memory)


def pieces_root(data: bytes | memoryview) -> bytes:
    """The SHA-256 Merkle root over 16 KiB blocks that BitTorrent v2 calls a file's `pieces root`."""
    view = memoryview(data)
    level = [hashlib.sha256(view[at : at + _BLOCK]).digest() for at in range(0, len(view), _BLOCK)]
    width = 1
    while width < len(level):
        width *= 2
    level += [_ZERO] * (width - len(level))
    while len(level) > 1:
        level = [hashlib.sha256(level[at] + level[at + 1]).digest() for at in range(0, len(level), 2)]
    return level[0]
