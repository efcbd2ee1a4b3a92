"""From scanned files to chunks in the store.

Owns the reading: which bytes make up the content stream, where segments start, and threads that hash, pack and write
while the next bytes are read and cut. Rule: a file that is not as it was when scanned fails the whole.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import zstandard

from peat_p2p.content.batch import ChunkBatch
from peat_p2p.content.chunking import StreamCutter
from peat_p2p.content.containers import MIN_BYTES, is_tar, read_content
from peat_p2p.content.entries import Kind, Recipe
from peat_p2p.content.index import ChunkRef
from peat_p2p.content.scan import FileState, Source, SourceEntry, changed, read_error
from peat_p2p.content.tars import TarSegments

Progress = Callable[[str, int, int], None]
"""Called with the phase (`open`, `read`, `torrent`), what is done and the total, from the thread that publishes."""

_WORKERS = 3
_IN_FLIGHT = 4
_READ = 1 << 20


def ingest(source: Source, average: int, batch: ChunkBatch, report: Progress) -> tuple[ChunkRef, ...]:
    """Read a scanned source, write its new chunks, and return all its chunks in order."""
    total = source.content_bytes
    with Workers(batch) as workers:
        cut = StreamCutter(average, lambda chunks, memory: workers.submit(chunks, lambda: cut.recycle(memory)))
        done = 0
        in_small = False
        for item in source.entries:
            if item.entry.kind is not Kind.FILE or item.entry.content_bytes == 0:
                continue
            # A large file starts afresh, so that what lies before it cannot shift its cuts; small ones share chunks.
            large = item.entry.content_bytes >= average
            if large or not in_small:
                cut.boundary()
            in_small = not large

            def advance(count: int) -> None:
                nonlocal done
                done += count
                report("read", done, total)

            _read(item, cut, average, advance)
        cut.finish()
        return workers.finish()


def _read(item: SourceEntry, cut: StreamCutter, average: int, advance: Callable[[int], None]) -> None:
    """Feed the content of a file to the cutter. Raises ConflictError if it is not as it was when scanned."""
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
                _read_extent(item, fd, offset, length, cut, advance)
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
        return tuple(chunk for result in self._results for chunk in result.result())
