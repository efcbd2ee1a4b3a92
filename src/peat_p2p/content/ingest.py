"""From scanned files to chunks in the store.

Owns the reading: which bytes make up the content stream, where segments start, and threads that hash, pack and write
while the next bytes are read and cut. Rule: a file that is not as it was when scanned fails the whole. What `reuse.py`
knows unread is not read; what will be is asked for beforehand.
"""

from __future__ import annotations

import os
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import zstandard

from peat_p2p.content.batch import ChunkBatch
from peat_p2p.content.chunking import StreamCutter
from peat_p2p.content.containers import MIN_BYTES, is_tar, read_content
from peat_p2p.content.entries import Recipe
from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.readahead import ReadAhead
from peat_p2p.content.reuse import Earlier, Piece, pieces, segments
from peat_p2p.content.scan import FileState, Source, SourceEntry, changed, read_error
from peat_p2p.content.tars import TarSegments

Progress = Callable[[str, int, int], None]
"""Called with the phase (`open`, `read`, `torrent`), what is done and the total, from the thread that publishes."""

_WORKERS = 3
_IN_FLIGHT = 4
_READ = 1 << 20


def ingest(
    source: Source, average: int, batch: ChunkBatch, report: Progress, earlier: Index | None = None
) -> tuple[ChunkRef, ...]:
    """Read a scanned source, write its new chunks, and return all its chunks in order.

    `earlier` is the index in which the files lie that the source says are known: of those only what shares a chunk
    with something new is read.
    """
    with Workers(batch) as workers:
        ingestion = _Ingestion(source, average, batch, report, workers, earlier)
        with ingestion.ahead:
            for segment in segments(ingestion.pieces):
                ingestion.take(segment)
        ingestion.cut.finish()
        return workers.finish()


class _Ingestion:
    def __init__(
        self,
        source: Source,
        average: int,
        batch: ChunkBatch,
        report: Progress,
        workers: Workers,
        earlier: Index | None,
    ) -> None:
        self.pieces = pieces(source, average)
        self.cut = StreamCutter(
            average, lambda chunks, memory: workers.submit(chunks, lambda: self.cut.recycle(memory))
        )
        self._average = average
        self._workers = workers
        self._report = report
        self._total = source.content_bytes
        self._done = 0
        usable = earlier is not None and earlier.average == average
        self._earlier = Earlier(earlier, self.pieces, batch.keep(earlier)) if earlier is not None and usable else None
        self.ahead = ReadAhead(
            (piece.at, piece.item.path)
            for piece in self.pieces
            if self._earlier is None or not self._earlier.spares(piece)
        )

    def take(self, segment: Sequence[Piece]) -> None:
        """Take one segment: a large file, or small ones in a row."""
        self.cut.boundary()
        if self._earlier is None:
            for piece in segment:
                self._read(piece)
        elif segment[0].large:
            known = self._earlier.whole(segment[0])
            if known is None:
                self._read(segment[0])
            else:
                self._take_over(known)
        else:
            self._take_small(segment, self._earlier)

    def _take_small(self, segment: Sequence[Piece], earlier: Earlier) -> None:
        number, position, end = 0, segment[0].at, segment[-1].end
        while position < end:
            known = []
            while position < end and (chunk := earlier.at(position)) is not None:
                known.append(chunk)
                position += chunk.content_size
            self._take_over(known)
            # Read on until a cut falls where an earlier chunk began.
            read = position
            while read < end:
                while segment[number].end <= read:
                    number += 1
                self._read(segment[number], read - segment[number].at)
                read = segment[number].end
                position = read - self.cut.pending()
                if earlier.at(position) is not None:
                    self.cut.drop()
                    number = bisect_right(segment, position, key=lambda piece: piece.end)
                    break
            else:
                position = end

    def _take_over(self, chunks: Sequence[ChunkRef]) -> None:
        if chunks:
            self.cut.flush()
            self._workers.known(chunks)
            self._advance(sum(chunk.content_size for chunk in chunks))

    def _read(self, piece: Piece, skip: int = 0) -> None:
        self.ahead.reached(piece.at)
        _read(piece.item, self.cut, self._average, self._advance, skip)

    def _advance(self, count: int) -> None:
        # What is read beyond a cut and then known after all is not counted twice.
        self._done = min(self._done + count, self._total)
        self._report("read", self._done, self._total)


def _read(item: SourceEntry, cut: StreamCutter, average: int, advance: Callable[[int], None], skip: int = 0) -> None:
    """Feed the content of a file to the cutter, without its first `skip` bytes.

    Only a small file without a recipe may be skipped into. Raises ConflictError if it is not as it was when scanned.
    """
    try:
        fd = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise read_error(item.path, error) from error
    try:
        if item.entry.recipe:
            _read_recipe(item, item.entry.recipe, fd, TarSegments(cut, average), advance)
        elif item.entry.size >= max(average, MIN_BYTES) and item.entry.is_plain and is_tar(os.pread(fd, 512, 0)):
            _read_tar(item, fd, TarSegments(cut, average), advance)
        else:
            for offset, length in item.entry.data_extents():
                passed = min(skip, length)
                skip -= passed
                _read_extent(item, fd, offset + passed, length - passed, cut, advance)
        if FileState.of(os.fstat(fd)) != item.state:
            raise changed(item.path)
    except OSError as error:
        raise read_error(item.path, error) from error
    finally:
        os.close(fd)


def _read_extent(
    item: SourceEntry, fd: int, offset: int, length: int, cut: StreamCutter, advance: Callable[[int], None]
) -> None:
    while length:
        count = os.preadv(fd, [cut.space()[:length]], offset)
        if not count:
            raise changed(item.path)
        cut.advance(count)
        offset += count
        length -= count
        advance(count)


def _read_tar(item: SourceEntry, fd: int, segments: TarSegments, advance: Callable[[int], None]) -> None:
    offset = 0
    while offset < item.entry.size:
        data = os.pread(fd, min(_READ, item.entry.size - offset), offset)
        if not data:
            raise changed(item.path)
        segments.feed(data)
        offset += len(data)
        advance(len(data))


def _read_recipe(
    item: SourceEntry, recipe: Recipe, fd: int, segments: TarSegments, advance: Callable[[int], None]
) -> None:
    offset = 0
    last = max((number for number, part in enumerate(recipe.parts) if part.codec), default=0)
    with open(fd, "rb", closefd=False) as file:
        for number, part in enumerate(recipe.parts):
            segments.start(plain=not part.codec)
            try:
                for data in read_content(file, offset, part):
                    segments.feed(data)
                    advance(len(data))
            except (ValueError, zlib.error, zstandard.ZstdError) as error:
                raise changed(item.path) from error
            # Headers and trailers of streams are too small to be chunks of their own.
            if part.codec and number != last:
                segments.boundary()
            offset += part.output_bytes


class Workers:
    """Threads that hash, pack and write lists of chunks while the next are read and cut.

    BLAKE3, SHA-256, zstd, the chunker and disk calls all release the interpreter lock, so threads do run at once.
    """

    def __init__(self, batch: ChunkBatch) -> None:
        self._batch = batch
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="publish")
        self._slots = threading.Semaphore(_IN_FLIGHT)
        self._results: list[Future[list[ChunkRef]]] = []
        self._order: list[Future[list[ChunkRef]] | Sequence[ChunkRef]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, chunks: list[memoryview], done: Callable[[], None]) -> None:
        """Give chunks to a thread, which calls `done` after; waits while too many are under way.

        Raises what a thread failed with.
        """
        self._slots.acquire()
        # An early failure (a full disk) must not wait for the end of a long read.
        if self._results and self._results[-1].done():
            self._results[-1].result()
        self._results.append(self._pool.submit(self._work, chunks, done))
        self._order.append(self._results[-1])

    def known(self, chunks: Sequence[ChunkRef]) -> None:
        """Take chunks that are in the store already; they come after what was submitted."""
        self._order.append(chunks)

    def _work(self, chunks: list[memoryview], done: Callable[[], None]) -> list[ChunkRef]:
        try:
            refs = [self._batch.put(data) for data in chunks]
            done()
            return refs
        finally:
            self._slots.release()

    def finish(self) -> tuple[ChunkRef, ...]:
        """Wait for all threads and return the chunks in order. Raises what a thread failed with."""
        wait(self._results, return_when=FIRST_EXCEPTION)
        return tuple(chunk for some in self._order for chunk in (some.result() if isinstance(some, Future) else some))
