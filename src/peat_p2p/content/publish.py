"""Publishing: a file or directory becomes chunks in the store and a signed manifest.

Owns the order of the work: scan, read and cut, hash and write in parallel, torrent, manifest, entry in the store. Rule:
what changes while it is read is never published. A second publish of nearly the same content writes only new chunks.
Must not know how torrents are made; it is given a function for that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from peat_p2p.content.batch import ChunkBatch
from peat_p2p.content.chunking import StreamCutter, average_like
from peat_p2p.content.entries import Kind
from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.manifest import Manifest, check_name, seal_manifest
from peat_p2p.content.scan import FileState, Source, SourceEntry, changed, read_error, scan
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import DeniedError, InvalidInputError
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.identity import Role

Progress = Callable[[str, int, int], None]
"""Called with the phase (`read`, `torrent`), what is done and the total, from the thread that publishes."""

_WORKERS = 3
_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class TorrentMeta:
    """A torrent's info dict (bencoded) and its v2 infohash (64 hex digits)."""

    info: bytes
    infohash: str


TorrentBuilder = Callable[[Index, Path], TorrentMeta]
"""Makes the torrent of an index whose chunks lie in the store folder given."""


def publish(
    source: Path,
    name: str,
    version: str,
    arch: str,
    store: ChunkStore,
    credentials: NodeCredentials,
    build_torrent: TorrentBuilder,
    clock: Clock,
    progress: Progress | None = None,
    annotations: Mapping[str, str] | None = None,
) -> StoredPackage:
    """Put `source` into the store as this version of a package and sign its manifest. Blocks; call it from a thread.

    Raises NotFoundError, DeniedError, InvalidInputError for a bad source or name, ConflictError if it changed
    meanwhile, ExhaustedError if the disk is full.
    """
    check_name(name, version, arch)
    if not credentials.identity.has(Role.PUBLISHER):
        raise DeniedError(
            f"{credentials.identity.node_id} has no publisher role, so agents would refuse what it signs; "
            "`peat formation issue ... --role publisher` gives it one"
        )
    report: Progress = progress or (lambda phase, done, total: None)
    if store.root.resolve().is_relative_to(source.resolve()):
        raise InvalidInputError(f"{source} contains the store {store.root}; publish a folder beside it")
    found = scan(source)
    average = average_like(found.total_bytes, _earlier_average(store, name, arch))
    with store.batch() as batch:
        chunks = ingest(found, average, batch, report)
        batch.flush()
        index = Index(tuple(item.entry for item in found.entries), chunks, average, found.root_mode)
        report("torrent", 0, index.unique_bytes)
        torrent = build_torrent(index, store.root)
        report("torrent", index.unique_bytes, index.unique_bytes)
        manifest = Manifest(
            name=name,
            version=version,
            arch=arch,
            digest=index.digest,
            total_bytes=index.total_bytes,
            files=len(index.files),
            chunks=len(index.unique_chunks),
            infohash=torrent.infohash,
            created=int(clock.wall()),
            annotations=dict(annotations or {}),
        )
        envelope, _ = seal_manifest(manifest, credentials)
        return store.put_package(envelope, torrent.info, index)


def _earlier_average(store: ChunkStore, name: str, arch: str) -> int | None:
    earlier = store.find(name, arch=arch)
    package = store.package(earlier[0].manifest_digest) if earlier else None
    return package.index.average if package else None


def ingest(source: Source, average: int, batch: ChunkBatch, report: Progress) -> tuple[ChunkRef, ...]:
    """Read a scanned source, write its new chunks, and return all its chunks in order."""
    total = source.total_bytes
    with Workers(batch) as workers:
        cut = StreamCutter(average, lambda chunks, memory: workers.submit(chunks, lambda: cut.recycle(memory)))
        done = 0
        in_small = False
        for item in source.entries:
            if item.entry.kind is not Kind.FILE or item.entry.size == 0:
                continue
            # A large file starts afresh, so that what lies before it cannot shift its cuts; small ones share chunks.
            large = item.entry.size >= average
            if large or not in_small:
                cut.boundary()
            in_small = not large

            def advance(count: int) -> None:
                nonlocal done
                done += count
                report("read", done, total)

            read_file(item, cut, advance)
        cut.finish()
        return workers.finish()


def read_file(item: SourceEntry, cut: StreamCutter, advance: Callable[[int], None]) -> None:
    """Feed a whole file to the cutter. Raises ConflictError if it is not as it was when scanned."""
    try:
        fd = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise read_error(item.path, error) from error
    try:
        left = item.entry.size
        while left:
            count = os.readv(fd, [cut.space()[:left]])
            if not count:
                raise changed(item.path)
            cut.advance(count)
            left -= count
            advance(count)
        if FileState.of(os.fstat(fd)) != item.state:
            raise changed(item.path)
    except OSError as error:
        raise read_error(item.path, error) from error
    finally:
        os.close(fd)


class Workers:
    """Threads that hash and write lists of chunks while the next are read and cut.

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
