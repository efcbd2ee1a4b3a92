"""The chunk store: verified chunks on disk, shared by all packages, and the packages they make up.

Owns the folder: `chunks/ab/abcd...` (one file per chunk, named by its BLAKE3; also the save path of the torrents),
`tmp/`, `journal.db`, `lock`. Rule: a chunk counts as here only if the journal says so and the file still has the size
and time it was checked with; the journal says so only after the content was hashed and synced. So a crash at any
moment loses at most work. Must not know of peers, torrents or documents.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from blake3 import blake3

from peat_p2p.content.batch import ChunkBatch
from peat_p2p.content.disk import disk_full, exhausted, free_bytes, make_durable
from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.journal import ChunkRow, Journal, PackageParts, PackageRow
from peat_p2p.content.manifest import Manifest, manifest_digest, unverified_payload
from peat_p2p.content.packing import unpack
from peat_p2p.content.stored import (
    Checked,
    GcResult,
    PackageSummary,
    Reservation,
    Rotten,
    StoredPackage,
    StoreStat,
)
from peat_p2p.core.atomic import sync_dir
from peat_p2p.core.clock import Clock, SystemClock
from peat_p2p.core.errors import ConflictError, InvalidInputError, NotFoundError

__all__ = ["RESERVE_BYTES", "ChunkStore", "PackageSummary", "StoredPackage", "StoreStat", "missing_bytes"]

RESERVE_BYTES = 64 << 20
_GC_SLICE = 200
_RECHECK_CHUNKS = 1000
_HASHERS = 4
_FEW = 8  # are not worth threads


class ChunkStore:
    """One store folder, open in one process. Safe to use from several threads."""

    def __init__(self, root: Path, clock: Clock, lock_fd: int) -> None:
        self.root = root
        self._clock = clock
        self._lock_fd = lock_fd
        self._guard = threading.RLock()
        self._held: Counter[bytes] = Counter()
        # Files that batches of this process put in place and still hold, with their times.
        self._fresh: dict[bytes, int] = {}
        self._reserved = 0
        self._chunks = root / "chunks"
        self._folder = str(self._chunks)
        self.temporary = root / "tmp"
        for folder in (self._chunks, self.temporary):
            folder.mkdir(exist_ok=True)
        for number in range(256):
            (self._chunks / f"{number:02x}").mkdir(exist_ok=True)
        for left in self.temporary.iterdir():
            left.unlink(missing_ok=True)
        sync_dir(self._chunks)
        sync_dir(root)
        self._journal = Journal(root / "journal.db")

    @classmethod
    def open(cls, root: Path, clock: Clock | None = None) -> Self:
        """Open or make the store at `root`. Raises ConflictError if a process has it open, CorruptError."""
        with disk_full(root, 1 << 20, "a new store"):
            root.mkdir(parents=True, exist_ok=True)
            fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        raise
                    holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise ConflictError(
                        f"the store {root} is in use by process {holder}; stop it or use another data directory"
                    ) from error
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return cls(root, clock or SystemClock(), fd)
            except BaseException:
                os.close(fd)
                raise

    def close(self) -> None:
        """Close the store and let other processes have it."""
        self._journal.close()
        os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Chunks

    def chunk_path(self, digest: str) -> Path:
        """Where the chunk of this digest (64 hex digits) lies or would lie."""
        return Path(self._file(digest))

    def _file(self, digest: str) -> str:
        # Text, because thousands of paths are looked at in one go, and making a Path takes longer than asking the disk.
        return f"{self._folder}/{digest[:2]}/{digest}"

    def has(self, digest: str) -> bool:
        """Whether the chunk is here, verified, synced and unchanged since."""
        row = self._journal.chunk(bytes.fromhex(digest))
        return row is not None and self._intact(row)

    def missing(self, index: Index) -> set[str]:
        """Digests of the chunks of `index` that are not here."""
        rows = self._journal.chunks(chunk.digest for chunk in index.unique_chunks)
        return {
            chunk.hex
            for chunk in index.unique_chunks
            if (row := rows.get(chunk.digest)) is None or not self._intact(row)
        }

    def _intact(self, row: ChunkRow) -> bool:
        try:
            status = os.stat(self._file(row.digest.hex()))  # noqa: PTH116
        except FileNotFoundError:
            return False
        return status.st_size == row.size and status.st_mtime_ns == row.mtime_ns

    def verify(self, digest: str, size: int) -> bool:
        """Hash one chunk from disk; when good make it durable and enter it, when bad remove it."""
        return not self.verify_many([ChunkRef(bytes.fromhex(digest), size)])

    def verify_many(self, chunks: Iterable[ChunkRef]) -> set[str]:
        """As `verify` for many chunks with one sync for all. Returns the digests of the bad ones."""
        bad = self.enter(chunks)
        self._drop(bad)
        return bad

    def enter(self, chunks: Iterable[ChunkRef]) -> set[str]:
        """As `verify_many`, but files that do not match are left as they are: they may still be written."""
        bad: set[str] = set()
        self._enter(self._hash(chunks, bad))
        return bad

    def lay(self, chunk: ChunkRef, data: memoryview) -> None:
        """Write the content of a chunk where it belongs, to be entered later. Raises OSError."""
        path = self.chunk_path(chunk.hex)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            while data:
                data = data[file.write(data) :]

    def _drop(self, digests: Collection[str]) -> None:
        for digest in digests:
            self.chunk_path(digest).unlink(missing_ok=True)
        if digests:
            self._journal.drop_chunks([bytes.fromhex(digest) for digest in digests])

    def adopt(self, index: Index) -> set[str]:
        """Enter those chunks of `index` that lie on disk whole but not in the journal, as after a crash.

        Other files are left alone. Returns the digests of the chunks that are still missing.
        """
        missing = self.missing(index)
        # In a new store nothing lies there, and thousands of files need not be opened to find that out.
        bad = {digest for digest in missing if not os.path.lexists(self._file(digest))}
        candidates = [chunk for chunk in index.unique_chunks if chunk.hex in missing and chunk.hex not in bad]
        self._enter(self._hash(candidates, bad))
        return bad

    def _hash(self, chunks: Iterable[ChunkRef], bad: set[str]) -> list[ChunkRow]:
        wanted = list(chunks)
        if len(wanted) <= _FEW:
            rows = [self._hash_one(chunk) for chunk in wanted]
        else:
            with ThreadPoolExecutor(_HASHERS, thread_name_prefix="hash") as pool:
                rows = list(pool.map(self._hash_one, wanted))
        bad.update(chunk.hex for chunk, row in zip(wanted, rows, strict=True) if row is None)
        return [row for row in rows if row is not None]

    def _hash_one(self, chunk: ChunkRef) -> ChunkRow | None:
        try:
            with self.chunk_path(chunk.hex).open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if status.st_size != chunk.size:
                    return None
                data = file.read(chunk.size + 1)
                while len(data) < chunk.size and (more := file.read(chunk.size - len(data))):
                    data += more
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # a medium that cannot give the bytes back is rot, too
                return None
            raise
        if blake3(data).digest() != chunk.digest:
            return None
        return ChunkRow(chunk.digest, chunk.size, status.st_mtime_ns, None, None, self._clock.wall())

    def _enter(self, rows: Collection[ChunkRow]) -> None:
        if rows:
            self.sync([row.digest.hex() for row in rows])
            self._journal.add_chunks(rows)

    def sync(self, digests: Collection[str]) -> None:
        """Make the files of these chunks durable."""
        files = [self.chunk_path(digest) for digest in digests]
        make_durable(self.root, files, {path.parent for path in files})

    def read_chunk(self, chunk: ChunkRef) -> bytes:
        """The verified content of a chunk. Raises NotFoundError; a rotten chunk is dropped first."""
        try:
            data = self.chunk_path(chunk.hex).read_bytes()
        except FileNotFoundError:
            data = b""
        if blake3(data).digest() != chunk.digest:
            self.verify(chunk.hex, chunk.size)
            raise NotFoundError(f"chunk {chunk.hex} is missing or damaged in {self.root}; pull its package again")
        return unpack(data, chunk.length) if chunk.length else data

    def roots(self, index: Index) -> dict[str, bytes]:
        """SHA-256 Merkle roots over 16 KiB blocks (BitTorrent v2 `pieces root`) of the chunks where known."""
        rows = self._journal.chunks(chunk.digest for chunk in index.unique_chunks)
        return {digest.hex(): row.root for digest, row in rows.items() if row.root is not None}

    @contextlib.contextmanager
    def hold(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep these chunks, here or still to come, from garbage collection."""
        held = [bytes.fromhex(digest) for digest in digests]
        with self._guard:
            self._held.update(held)
        try:
            yield
        finally:
            self._release(held)

    def _release(self, held: Iterable[bytes]) -> None:
        with self._guard:
            self._held.subtract(held)
            self._held = +self._held
            self._fresh = {digest: at for digest, at in self._fresh.items() if digest in self._held}

    @contextlib.contextmanager
    def batch(self, level: int = 3) -> Iterator[ChunkBatch]:
        """Write many chunks, packed at the zstd level given; durable and journaled when left without an error.

        What the batch touched is held from garbage collection until then.
        """
        batch = ChunkBatch(self, self._journal, self._clock, level)
        try:
            yield batch
            batch.flush()
        finally:
            self._release(batch.held)

    def claim(self, digest: bytes) -> None:
        """Hold one chunk; the batch that calls this releases it."""
        with self._guard:
            self._held[digest] += 1

    def settle(self, digest: bytes, temporary: Path, mtime_ns: int) -> int:
        """Put a file with the content of `digest` in place; the time of the file that is there then.

        If another batch was first, its file stays: were it replaced, what is entered about it would be wrong.
        """
        with self._guard:
            if digest in self._fresh:
                temporary.unlink()
                return self._fresh[digest]
            temporary.rename(self.chunk_path(digest.hex()))
            self._fresh[digest] = mtime_ns
            return mtime_ns

    # Space

    def check_space(self, need: int, what: str = "this transfer") -> None:
        """Raise ExhaustedError if `need` bytes do not fit beside what is reserved and a reserve of 64 MiB."""
        with self._guard:
            if need and need + self._reserved + RESERVE_BYTES > free_bytes(self.root):
                raise exhausted(self.root, need + self._reserved + RESERVE_BYTES, what)

    @contextlib.contextmanager
    def reserve(self, need: int, what: str = "this transfer") -> Iterator[Reservation]:
        """Set `need` bytes aside so that no other transfer counts on them. Raises ExhaustedError if they do not fit."""
        with self._guard:
            self.check_space(need, what)
            self._reserved += need
        reservation = Reservation(need)
        try:
            yield reservation
        finally:
            with self._guard:
                self._reserved -= reservation.left

    def use_reserved(self, reservation: Reservation, count: int) -> None:
        """Note that `count` reserved bytes have been written, so that they are not counted twice."""
        with self._guard:
            count = min(count, reservation.left)
            reservation.left -= count
            self._reserved -= count

    # Packages

    def put_package(self, envelope: dict[str, Any], info: bytes, index: Index) -> StoredPackage:
        """Enter a package whose manifest was verified by the caller. Raises ConflictError if a chunk is missing."""
        payload = unverified_payload(envelope)
        manifest = Manifest.from_payload(payload)
        if manifest.digest != index.digest:
            raise InvalidInputError(f"the index given is not the one that the manifest of {manifest.reference} names")
        missing = self.missing(index)
        if missing:
            raise ConflictError(f"{manifest.reference} lacks {len(missing)} of its {len(index.unique_chunks)} chunks")
        now = self._clock.wall()
        name = manifest_digest(payload)
        self._journal.add_package(
            PackageRow(name, payload, pinned=False, added=now, used=now),
            (manifest.name, manifest.version, manifest.arch),
            PackageParts(payload, json.dumps(envelope), info, index.encode()),
            (chunk.digest for chunk in index.unique_chunks),
        )
        return StoredPackage(manifest, name, envelope, info, index)

    def package(self, digest: str) -> StoredPackage | None:
        """The package of this manifest digest."""
        parts = self._journal.parts(digest)
        if parts is None:
            return None
        manifest = Manifest.from_payload(parts.payload)
        return StoredPackage(manifest, digest, json.loads(parts.envelope), parts.info, Index.decode(parts.index))

    def packages(self) -> list[PackageSummary]:
        """Every package, newest first."""
        return [_summary(row) for row in self._journal.packages()]

    def find(self, name: str, version: str | None = None, arch: str | None = None) -> list[PackageSummary]:
        """The packages of a name, and of a version and arch if given; newest first."""
        return [
            summary
            for summary in map(_summary, self._journal.packages(name))
            if version in (None, summary.manifest.version) and arch in (None, summary.manifest.arch)
        ]

    def remove_package(self, digest: str) -> bool:
        """Forget a package; `gc` then frees what no other has. Whether it was here."""
        return self._journal.remove_package(digest)

    def pin(self, digest: str, pinned: bool = True) -> None:
        """Keep a package from eviction, or no longer. Raises NotFoundError."""
        if not self._journal.set_pinned(digest, pinned):
            raise NotFoundError(f"no package {digest} in the store {self.root}")

    def touch(self, digest: str) -> None:
        """Note that a package was used now."""
        self._journal.touch(digest, self._clock.wall())

    # Upkeep

    def recheck(self, budget: int, before: float | None = None) -> Checked:
        """Hash again what was looked at the longest time ago, up to about `budget` bytes.

        With `before` (Unix time) only chunks that were last looked at earlier. Rotten ones are removed. Calling this
        again and again goes round the whole store.
        """
        rows: list[ChunkRow] = []
        size = 0
        for row in self._journal.oldest_checked(_RECHECK_CHUNKS):
            if size >= budget or (before is not None and row.checked >= before):
                break
            rows.append(row)
            size += row.size
        bad: set[str] = set()
        good = self._hash((ChunkRef(row.digest, row.size) for row in rows), bad)
        self._drop(bad)
        times = {row.digest: row.mtime_ns for row in rows}
        self.sync([row.digest.hex() for row in good if row.mtime_ns != times[row.digest]])
        self._journal.add_chunks(good)
        # Bad chunks are forgotten, but packages keep their references to them; those that none has do not matter.
        rotten = [
            Rotten(row.digest.hex(), row.size, packages)
            for row in rows
            if row.digest.hex() in bad and (packages := tuple(sorted(self._journal.referenced(row.digest))))
        ]
        return Checked(len(rows), size, tuple(rotten))

    def damaged(self) -> dict[str, set[str]]:
        """Packages (manifest digests) that lack chunks, and which: what has to be fetched again."""
        found = {}
        for row in self._journal.packages():
            digests = self._journal.digests(row.manifest_digest)
            rows = self._journal.chunks(digests)
            lacking = {
                digest.hex() for digest in digests if (chunk := rows.get(digest)) is None or not self._intact(chunk)
            }
            if lacking:
                found[row.manifest_digest] = lacking
        return found

    def chunk_sizes(self, digest: str) -> dict[bytes, int]:
        """The chunks of a package that are here, with their sizes."""
        return {row.digest: row.size for row in self._journal.chunks(self._journal.digests(digest)).values()}

    def gc(self) -> GcResult:
        """Remove every chunk that belongs to no package and is not held."""
        count = size = 0
        loose = self._journal.unreferenced()
        for start in range(0, len(loose), _GC_SLICE):
            # A slice at a time, so that a large collection never blocks a transfer for long.
            with self._guard:
                some = [row for row in loose[start : start + _GC_SLICE] if row.digest not in self._held]
                gone = {row.digest for row in some} - self._journal.referenced_of([row.digest for row in some])
                self._journal.drop_chunks(gone)
                for row in some:
                    if row.digest in gone:
                        self.chunk_path(row.digest.hex()).unlink(missing_ok=True)
                        count += 1
                        size += row.size
        return GcResult(count, size, self._remove_strays())

    def _remove_strays(self) -> int:
        strays = 0
        for folder in self._chunks.iterdir():
            names = [path.name for path in folder.iterdir()]
            with self._guard:
                digests = {name: digest for name in names if (digest := _digest_of(name)) is not None}
                known = self._journal.chunks(digests.values())
                for name in names:
                    digest = digests.get(name)
                    if digest is None or (digest not in known and digest not in self._held):
                        (folder / name).unlink(missing_ok=True)
                        strays += 1
        return strays

    def stat(self) -> StoreStat:
        """Count what is here."""
        count, size, loose_count, loose_size = self._journal.totals()
        packages = len(self._journal.packages())
        return StoreStat(packages, count, size, loose_count, loose_size, self._reserved, free_bytes(self.root))


def _summary(row: PackageRow) -> PackageSummary:
    return PackageSummary(Manifest.from_payload(row.payload), row.manifest_digest, row.pinned, row.added, row.used)


def _digest_of(name: str) -> bytes | None:
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == 32 and digest.hex() == name else None


def missing_bytes(index: Index, missing: Mapping[str, object] | Collection[str]) -> int:
    """Bytes of the chunks of `index` whose digests are in `missing`."""
    return sum(chunk.size for chunk in index.unique_chunks if chunk.hex in missing)
