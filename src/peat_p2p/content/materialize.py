"""Putting a package's files in place.

Owns the way from chunks to files. Rule: `destination` comes to be all at once and complete, and every byte in it was
checked against its chunk's digest as it was written. Where a file is exactly one chunk it is cloned or, if nobody may
write to it, linked, so that it takes no space of its own. Must not know of peers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from peat_p2p.content.codecs import encoder
from peat_p2p.content.disk import FULL, clone, disk_full, exhausted, free_bytes, sync_file_system
from peat_p2p.content.entries import FileEntry, Kind, Recipe
from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.layout import Span, spans
from peat_p2p.content.store import RESERVE_BYTES, ChunkStore
from peat_p2p.content.xattrs import set_xattrs
from peat_p2p.core.atomic import sync_dir
from peat_p2p.core.errors import ConflictError, DeniedError, InvalidInputError, NotFoundError, UnavailableError

_WRITE_BITS = 0o222
# What one file system takes another may not: a name too long, a character, a link, an owner.
_NOT_TAKEN = frozenset(
    (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EPERM, errno.EOPNOTSUPP, errno.ELOOP, errno.EMLINK)
)


def materialize(
    store: ChunkStore, index: Index, destination: Path, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Make the directory `destination` from the chunks. Blocks; call it from a thread.

    A package of a single file becomes a directory with that file in it. Raises ConflictError if `destination` exists,
    NotFoundError if chunks are missing or rotten, ExhaustedError if the disk is full, DeniedError or InvalidInputError
    if it cannot be there for another reason; then nothing is left behind.
    """
    if os.path.lexists(destination):
        raise ConflictError(f"{destination} exists already; remove it first or choose another place")
    missing = store.missing(index)
    if missing:
        raise NotFoundError(f"{len(missing)} of {len(index.unique_chunks)} chunks are not in the store; pull first")
    parent = destination.parent
    with disk_full(parent, index.total_bytes, f"the content of {destination.name}"):
        temporary = _beside(destination)
        try:
            writer = _Writer(store, index, temporary, progress)
            if not writer.can_clone and index.total_bytes + RESERVE_BYTES > free_bytes(parent):
                raise exhausted(parent, index.total_bytes + RESERVE_BYTES, f"the content of {destination.name}")
            writer.write()
            sync_file_system(temporary)
            if os.path.lexists(destination):
                raise ConflictError(f"{destination} came to be while its content was written")
            temporary.rename(destination)
        except OSError as error:
            _remove(temporary)
            place = os.fsdecode(error.filename) if error.filename else str(temporary)
            if error.errno not in _NOT_TAKEN or not place.startswith(str(temporary)):
                raise
            what = Path(place).name if error.filename else destination.name
            raise InvalidInputError(
                f"{what!r} cannot be written below {parent}: {error.strerror}; choose a place on another file system"
            ) from error
        except BaseException:
            _remove(temporary)
            raise
        sync_dir(parent)


def _beside(destination: Path) -> Path:
    """A new folder where `destination` shall be, so that a rename puts it in place."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Not made of the name itself: with more around it a long one would become too long.
        return Path(tempfile.mkdtemp(prefix=f".{destination.name[:50]}.", suffix=".tmp", dir=destination.parent))
    except PermissionError as error:
        raise DeniedError(f"{destination.parent}: no folder can be made here: permission denied") from error
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InvalidInputError(f"{destination} cannot be made: {error.strerror}; choose another place") from error


def _remove(folder: Path) -> None:
    # A folder of the package may be read-only by now, and then even its owner cannot empty it.
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            Path(path).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


class _Pieces:
    """Takes a stream of content apart by length."""

    def __init__(self, content: Iterator[memoryview]) -> None:
        self._content = content
        self._rest = memoryview(b"")

    def take(self, length: int) -> Iterator[memoryview]:
        while length:
            if not self._rest:
                self._rest = next(self._content)
            view, self._rest = self._rest[:length], self._rest[length:]
            length -= len(view)
            yield view


class _Writer:
    def __init__(
        self, store: ChunkStore, index: Index, root: Path, progress: Callable[[str, int, int], None] | None
    ) -> None:
        self._store = store
        self._index = index
        self._root = root
        self._report = progress or (lambda phase, done, total: None)
        self._chunk: ChunkRef | None = None
        self._data = memoryview(b"")
        self.can_clone = self._try_clone()

    def write(self) -> None:
        folders = []
        for entry in self._index.files:
            path = self._root / entry.path
            if entry.kind is Kind.DIRECTORY:
                path.mkdir()
                folders.append((path, entry.mode))
                set_xattrs(path, entry.xattrs)
            elif entry.kind is Kind.SYMLINK:
                path.symlink_to(entry.target)
        done = 0
        for entry, parts in spans(self._index):
            self._file(entry, self._root / entry.path, parts)
            done += entry.size
            self._report("write", done, self._index.total_bytes)
        # Children before parents: a folder's final mode may forbid what is still to be done below it.
        for path, mode in reversed(folders):
            path.chmod(mode)
        self._root.chmod(self._index.root_mode or 0o755)

    def _file(self, entry: FileEntry, path: Path, parts: Sequence[Span]) -> None:
        whole = (
            parts[0].chunk if len(parts) == 1 and parts[0].is_whole and entry.is_plain and not entry.xattrs else None
        )
        if whole is not None and self._share(whole, path, entry.mode):
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if entry.recipe:
                self._make(entry, entry.recipe, fd, parts)
            else:
                self._put(entry, fd, parts)
            set_xattrs(fd, entry.xattrs)
            os.fchmod(fd, entry.mode)
        finally:
            os.close(fd)

    def _content(self, parts: Sequence[Span]) -> Iterator[memoryview]:
        for part in parts:
            yield self._bytes(part.chunk)[part.offset : part.offset + part.length]

    def _put(self, entry: FileEntry, fd: int, parts: Sequence[Span]) -> None:
        extents = entry.data_extents()
        offset = left = 0
        for view in self._content(parts):
            while view:
                if not left:
                    offset, left = next(extents)
                count = os.pwrite(fd, view[:left], offset)
                offset, left, view = offset + count, left - count, view[count:]
        if entry.runs:
            os.ftruncate(fd, entry.size)

    def _make(self, entry: FileEntry, recipe: Recipe, fd: int, parts: Sequence[Span]) -> None:
        content = _Pieces(self._content(parts))
        digest = hashlib.sha256()
        with open(fd, "wb", closefd=False) as file:

            def put(data: bytes | memoryview) -> None:
                digest.update(data)
                file.write(data)

            for part in recipe.parts:
                if not part.codec:
                    for view in content.take(part.content_bytes):
                        put(view)
                    continue
                stream = encoder(part)
                try:
                    for view in content.take(part.content_bytes):
                        put(stream.feed(view))
                    put(stream.finish())
                finally:
                    stream.close()
        if digest.digest() != recipe.sha256:
            codecs = ", ".join(sorted({part.codec for part in recipe.parts if part.codec}))
            raise UnavailableError(
                f"{entry.path} cannot be made again bit for bit on this machine: its {codecs} compressor differs "
                "from the publisher's; have the package published with its archives kept whole"
            )

    def _bytes(self, chunk: ChunkRef) -> memoryview:
        if self._chunk is not chunk:
            self._data = memoryview(self._store.read_chunk(chunk))
            self._chunk = chunk
        return self._data

    def _share(self, chunk: ChunkRef, path: Path, mode: int) -> bool:
        source = self._store.chunk_path(chunk.hex)
        if self.can_clone:
            self._bytes(chunk)
            with source.open("rb") as original, path.open("xb") as copy:
                cloned = clone(original.fileno(), copy.fileno())
                if cloned:
                    os.fchmod(copy.fileno(), mode)
            if not cloned:
                path.unlink()
            return cloned
        if mode & _WRITE_BITS:
            return False
        # A link shares the file itself, so only what nobody may write to is linked, and only under one mode.
        status = source.stat()
        if status.st_nlink > 1 and status.st_mode & 0o7777 != mode:
            return False
        self._bytes(chunk)
        try:
            os.link(source, path)
        except OSError:
            return False
        path.chmod(mode)
        return True

    def _try_clone(self) -> bool:
        with (
            tempfile.TemporaryFile(dir=self._store.temporary) as original,
            tempfile.TemporaryFile(dir=self._root) as copy,
        ):
            original.write(bytes(4096))
            original.flush()
            return clone(original.fileno(), copy.fileno())
