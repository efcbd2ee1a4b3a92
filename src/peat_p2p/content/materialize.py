"""Putting a package's files in place.

Owns the way from chunks to files, which may begin before all chunks are here. Rule: `destination` comes to be all at
once and complete, and every byte in it was checked against its chunk's digest as it was written. Where a file is
exactly one chunk it is cloned or, if nobody may write to it, linked, so that it takes no space of its own. Must not
know of peers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from peat_p2p.content.codecs import encoder
from peat_p2p.content.disk import FULL, NewFile, clone, disk_full, exhausted, free_bytes, make_durable
from peat_p2p.content.entries import FileEntry, Kind, Recipe
from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.layout import Span, spans
from peat_p2p.content.store import RESERVE_BYTES, ChunkStore
from peat_p2p.content.xattrs import set_xattrs
from peat_p2p.core.atomic import sync_dir
from peat_p2p.core.errors import ConflictError, DeniedError, InvalidInputError, NotFoundError, UnavailableError

_WRITE_BITS = 0o222
_SUFFIX = ".tmp"
_YOUNG_S = 60.0
_OPEN, _LARGE = 32, 8  # so many files of more than so many chunks are written a chunk at a time
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
    with Placement(store, index, destination, progress) as placement:
        placement.finish()


class Placement:
    """The files of a package on their way to `destination`, in a folder beside it until they are complete.

    `advance` writes what can be written while chunks still come; `finish` the rest, and puts the folder in place.
    Leaving it unfinished, or after an error, leaves nothing behind; after a crash the next one at that place clears up.
    Blocks; not to be used from two threads at once. `coming` is how many bytes of chunks are still to be stored on what
    may be the same disk. Raises what `materialize` raises.
    """

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        destination: Path,
        progress: Callable[[str, int, int], None] | None = None,
        coming: int = 0,
    ) -> None:
        self._index = index
        self._destination = destination
        self._parent = destination.parent
        self._finished = False
        self._temporary, self._lock = self._parent, -1
        need = index.total_bytes + coming + RESERVE_BYTES
        with self._told():
            self._temporary, self._lock = _beside(destination)
            try:
                self._writer = _Writer(store, index, self._temporary, progress)
                if not self._writer.can_clone and need > free_bytes(self._parent):
                    raise exhausted(self._parent, need, f"the content of {destination.name}")
            except BaseException:
                self._remove()
                raise

    def __enter__(self) -> Placement:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def advance(self, here: Callable[[ChunkRef], bool], until: Callable[[], bool]) -> None:
        """Write what the chunks allow that are in the store by `here`, until there is no more or `until()`."""
        with self._told():
            self._writer.advance(here, until)

    def finish(self) -> None:
        """Write the rest, of which every chunk must be here, and put the folder in place, durably."""
        with self._told():
            self._writer.finish()
            make_durable(self._temporary, *self._writer.made())
            if os.path.lexists(self._destination):
                raise ConflictError(f"{self._destination} came to be while its content was written")
            self._temporary.rename(self._destination)
            self._finished = True
            sync_dir(self._parent)

    def close(self) -> None:
        """Let go; what was not finished is removed."""
        if self._lock >= 0:
            self._writer.close()
            self._remove()

    def _remove(self) -> None:
        if not self._finished:
            _remove(self._temporary)
        os.close(self._lock)
        self._lock = -1

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the file system refuses into an error that names it."""
        with disk_full(self._parent, self._index.total_bytes, f"the content of {self._destination.name}"):
            try:
                yield
            except OSError as error:
                temporary = str(self._temporary)
                place = os.fsdecode(error.filename) if error.filename else temporary
                if error.errno not in _NOT_TAKEN or not place.startswith(temporary):
                    raise
                what = Path(place).name if error.filename else self._destination.name
                raise InvalidInputError(
                    f"{what!r} cannot be written below {self._parent}: {error.strerror}; choose a place on another"
                    " file system"
                ) from error


def _beside(destination: Path) -> tuple[Path, int]:
    """A new folder where `destination` shall be, so that a rename puts it in place, and the lock that it is in use."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Not made of the name itself: with more around it a long one would become too long.
        prefix = f".{destination.name[:50]}."
        _clear_abandoned(destination.parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=destination.parent))
        return folder, _locked(folder)
    except PermissionError as error:
        raise DeniedError(f"{destination.parent}: no folder can be made here: permission denied") from error
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InvalidInputError(f"{destination} cannot be made: {error.strerror}; choose another place") from error


def is_unfinished(path: Path) -> bool:
    """Whether this is a folder in which a package's files are being put, or were when the process ended."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX) and path.is_dir() and not path.is_symlink()


def _clear_abandoned(parent: Path, prefix: str) -> None:
    """Remove what processes that are gone left unfinished here under names that begin with `prefix`.

    What is in use is locked; a new folder is not for an instant, so what is younger than a minute stays.
    """
    for folder in parent.glob(f"{glob.escape(prefix)}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if not is_unfinished(folder) or time.time() - folder.stat().st_mtime < _YOUNG_S:
                continue
            lock = _locked(folder)
            try:
                _remove(folder)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor of `folder` that holds its lock. Raises BlockingIOError if another process has it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove(folder: Path) -> None:
    # A folder of the package may be read-only by now, and then even its owner cannot empty it.
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            Path(path).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


class _Extents:
    """Where the content of a file lies in it: all of it, but for the holes."""

    def __init__(self, entry: FileEntry) -> None:
        self._extents = list(entry.data_extents())
        self._starts = list(accumulate((length for _, length in self._extents), initial=0))

    def of(self, at: int, length: int) -> Iterator[tuple[int, int]]:
        """Offset and length in the file of `length` bytes of content from `at` on."""
        number = bisect_right(self._starts, at) - 1
        while length:
            offset, size = self._extents[number]
            skip = at - self._starts[number]
            count = min(length, size - skip)
            yield offset + skip, count
            at, length, number = at + count, length - count, number + 1


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


@dataclass(slots=True)
class _File:
    """A file to be written; `work` is set once it is begun."""

    entry: FileEntry
    parts: Sequence[Span]
    work: Generator[bool, None, None] | None = None


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
        self._here: Callable[[ChunkRef], bool] = lambda chunk: True
        self._over: Callable[[], bool] = lambda: False
        self._done = 0
        self._folders: list[tuple[Path, int]] = []
        self._files = [_File(entry, parts) for entry, parts in spans(index)]
        self.can_clone = self._try_clone()
        for entry in index.files:
            path = root / entry.path
            if entry.kind is Kind.DIRECTORY:
                path.mkdir()
                self._folders.append((path, entry.mode))
                set_xattrs(path, entry.xattrs)
            elif entry.kind is Kind.SYMLINK:
                path.symlink_to(entry.target)

    def advance(self, here: Callable[[ChunkRef], bool], until: Callable[[], bool] = lambda: False) -> None:
        self._here, self._over = here, until
        begun = sum(file.work is not None for file in self._files)
        left = []
        for number, file in enumerate(self._files):
            if until():
                left += self._files[number:]
                break
            if file.work is None:
                if not self._ready(file, begun):
                    left.append(file)
                    continue
                file.work = self._file(file.entry, self._root / file.entry.path, file.parts)
                begun += 1
            if next(file.work, True):
                begun -= 1
                self._done += file.entry.size
                self._report("write", self._done, self._index.total_bytes)
            else:
                left.append(file)
        self._files = left

    def finish(self) -> None:
        self.advance(lambda chunk: True)
        # Children before parents: a folder's final mode may forbid what is still to be done below it.
        for path, mode in reversed(self._folders):
            path.chmod(mode)
        self._root.chmod(self._index.root_mode or 0o755)

    def made(self) -> tuple[list[Path], list[Path]]:
        """The files and the folders that are there."""
        files = [self._root / entry.path for entry in self._index.files if entry.kind is Kind.FILE]
        return files, [self._root, *(path for path, _ in self._folders)]

    def close(self) -> None:
        for file in self._files:
            if file.work is not None:
                file.work.close()

    def _ready(self, file: _File, begun: int) -> bool:
        """Whether to begin a file: it can be finished, or it is one of a few large ones that wait for chunks."""
        if file.entry.recipe is None and begun < _OPEN and len(file.parts) > _LARGE:
            return True
        return all(self._here(part.chunk) for part in file.parts)

    def _file(self, entry: FileEntry, path: Path, parts: Sequence[Span]) -> Generator[bool, None, None]:
        """Write one file; yields False where its next chunk is not here yet."""
        whole = (
            parts[0].chunk if len(parts) == 1 and parts[0].is_whole and entry.is_plain and not entry.xattrs else None
        )
        if whole is not None and self._share(whole, path, entry.mode):
            return
        file = NewFile(path, 0o600)
        try:
            if entry.recipe:
                self._make(entry, entry.recipe, file.fd, parts)
            else:
                yield from self._put(entry, file, parts)
            set_xattrs(file.fd, entry.xattrs)
            os.fchmod(file.fd, entry.mode)
        finally:
            file.close()

    def _view(self, part: Span) -> memoryview:
        return self._bytes(part.chunk)[part.offset : part.offset + part.length]

    def _put(self, entry: FileEntry, file: NewFile, parts: Sequence[Span]) -> Generator[bool, None, None]:
        # Chunks come in the order of their names, so each is written where it belongs, whichever is next.
        extents = _Extents(entry)
        waiting = list(zip(accumulate((part.length for part in parts), initial=0), parts, strict=False))
        while waiting:
            later = []
            for at, part in waiting:
                if self._over() or not self._here(part.chunk):
                    later.append((at, part))
                    continue
                view = self._view(part)
                for offset, length in extents.of(at, part.length):
                    file.write(view[:length], offset)
                    view = view[length:]
            waiting = later
            if waiting:
                yield False
        if entry.runs:
            os.ftruncate(file.fd, entry.size)

    def _make(self, entry: FileEntry, recipe: Recipe, fd: int, parts: Sequence[Span]) -> None:
        content = _Pieces(map(self._view, parts))
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
