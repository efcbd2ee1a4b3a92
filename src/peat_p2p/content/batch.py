"""Writing many chunks at once.

Owns the order that makes it crash-safe and fast: files under temporary names, renamed into place, one sync for many,
then one journal entry for all of them. Chunks written but not yet journaled when the power goes are simply written
again.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from blake3 import blake3

from peat_p2p.content.chunking import pieces_root
from peat_p2p.content.disk import disk_full, write_new
from peat_p2p.content.index import CHECK_BYTES, ChunkRef, Index
from peat_p2p.content.journal import ChunkRow, Journal
from peat_p2p.content.packing import pack
from peat_p2p.core.clock import Clock

if TYPE_CHECKING:
    from peat_p2p.content.store import ChunkStore

_FLUSH_BYTES = 256 << 20
_FLUSH_CHUNKS = 4096


class ChunkBatch:
    """Chunks on their way into the store. Safe to use from several threads."""

    def __init__(self, store: ChunkStore, journal: Journal, clock: Clock, level: int) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._level = level
        self._guard = threading.Lock()
        self._flushing = threading.Lock()
        self._taken: set[bytes] = set()
        self._asked: set[bytes] = set()
        self._known: dict[bytes, ChunkRef] = {}
        self._pending: list[ChunkRow] = []
        self._pending_bytes = 0
        self._serial = 0
        self.new_chunks = 0
        self.new_bytes = 0

    @property
    def held(self) -> frozenset[bytes]:
        """Every chunk the batch was asked to take, each held in the store."""
        return frozenset(self._taken)

    def take(self, digest: bytes) -> bool:
        """Announce a chunk; whether its data is wanted: it is new to this batch and not in the store."""
        self._claim(digest)
        with self._guard:
            if digest in self._asked:
                return False
            self._asked.add(digest)
        return not self._store.has(digest.hex())

    def keep(self, index: Index) -> set[str]:
        """Hold the chunks of an index that are in the store; the digests of those that are not."""
        for chunk in index.unique_chunks:
            self._claim(chunk.digest)
        return self._store.missing(index)

    def _claim(self, digest: bytes) -> None:
        with self._guard:
            if digest in self._taken:
                return
            self._taken.add(digest)
        self._store.claim(digest)

    def put(self, content: memoryview | bytes) -> ChunkRef:
        """Take content, packed where that is worth while, and write it unless it is here. Returns its chunk."""
        plain = blake3(content).digest()
        known = self._known.get(plain)
        if known is None:
            known = self._known[plain] = self._find(plain, len(content)) or self._make(plain, content)
        return known

    def _find(self, plain: bytes, length: int) -> ChunkRef | None:
        # Looked up by its content, so that another release of zstd does not make another chunk of it.
        row = self._journal.packed(plain)
        if row is not None:
            self._claim(row.digest)
            if self._store.has(row.digest.hex()):
                return ChunkRef(row.digest, row.size, length, plain[:CHECK_BYTES])
        self._claim(plain)
        return ChunkRef(plain, length) if self._store.has(plain.hex()) else None

    def _make(self, plain: bytes, content: memoryview | bytes) -> ChunkRef:
        frame = pack(content, self._level)
        if frame is None:
            if self.take(plain):
                self.write(plain, content, pieces_root(content))
            return ChunkRef(plain, len(content))
        digest = blake3(frame).digest()
        if self.take(digest):
            self.write(digest, frame, pieces_root(frame), plain)
        return ChunkRef(digest, len(frame), len(content), plain[:CHECK_BYTES])

    def write(self, digest: bytes, data: memoryview | bytes, root: bytes | None, content: bytes | None = None) -> None:
        """Put a wanted chunk on disk. `data` must have that digest.

        `root` is its v2 pieces root and `content` the digest of what is packed in it, if known.
        """
        with self._guard:
            self._serial += 1
            temporary = self._store.temporary / f"{os.getpid()}-{id(self):x}-{self._serial}"
        size = len(data)
        with disk_full(self._store.root, size, "a chunk"):
            try:
                status = write_new(temporary, data)
                mtime_ns = self._store.settle(digest, temporary, status.st_mtime_ns)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        row = ChunkRow(digest, size, mtime_ns, root, content, self._clock.wall())
        with self._guard:
            self._pending.append(row)
            self._pending_bytes += size
            self.new_chunks += 1
            self.new_bytes += size
            full = self._pending_bytes >= _FLUSH_BYTES or len(self._pending) >= _FLUSH_CHUNKS
        # Whoever fills the batch syncs it; the others go on writing meanwhile.
        if full and self._flushing.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._flushing.release()

    def flush(self) -> None:
        """Make everything written so far durable and enter it in the journal."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        with self._guard:
            rows, self._pending, self._pending_bytes = self._pending, [], 0
        if rows:
            with disk_full(self._store.root, sum(row.size for row in rows), "new chunks"):
                self._store.sync([row.digest.hex() for row in rows])
            self._journal.add_chunks(rows)
