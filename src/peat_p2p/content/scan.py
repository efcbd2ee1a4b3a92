"""Looking at what is to be published.

Owns the walk over a source: which entries it has, in canonical order, with the state each file had, so that a change
while publishing is noticed. A file in the very state an earlier publish found it in keeps the entry it got then. Must
not read file content.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from peat_p2p.content.entries import FileEntry, Kind, components
from peat_p2p.content.xattrs import read_xattrs
from peat_p2p.core.errors import ConflictError, DeniedError, InvalidInputError, NotFoundError, PeatError

# A file is taken as sparse when its holes save at least this much.
_MIN_HOLES = 64 << 10


@dataclass(frozen=True, slots=True)
class FileState:
    """What identifies the state of a file on disk.

    A program can put back the size and the modification time of a file it rewrote, but not the time of that change.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """The state in a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file as an earlier publish found it: its state, its entry, where in the content stream it began.

    `opened` and `kept` count the compressed streams in it that are, or are not, made again from their content.
    """

    state: FileState
    entry: FileEntry
    at: int
    opened: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """An entry and where it was found; `state` for files only, `known` for one that is as it was before."""

    entry: FileEntry
    path: Path
    state: FileState | None
    known: KnownFile | None = None
    opened: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A scanned source: entries in canonical order; `root_mode` 0 when it is one single file."""

    entries: tuple[SourceEntry, ...]
    root_mode: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(source.entry.size for source in self.entries)

    @property
    def content_bytes(self) -> int:
        """Bytes of the content stream they make."""
        return sum(source.entry.content_bytes for source in self.entries)


def scan(source: Path, known: Mapping[str, KnownFile] | None = None) -> Source:
    """Look at a file or a directory; `known` are the files of an earlier look by their paths in the package.

    Raises NotFoundError, DeniedError or InvalidInputError.
    """
    earlier = known or {}
    try:
        status = source.stat()
    except OSError as error:
        raise read_error(source, error) from error
    if stat.S_ISREG(status.st_mode):
        return Source((_file(source, source.name or source.resolve().name, status, earlier),), 0)
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidInputError(f"{source} is neither a file nor a directory")
    found = sorted(_walk(source, "", earlier), key=lambda entry: components(entry.entry.path))
    mode = stat.S_IMODE(status.st_mode)
    if mode == 0:
        raise InvalidInputError(f"{source} has mode 0000; give its owner access")
    return Source(tuple(found), mode)


def _walk(folder: Path, prefix: str, known: Mapping[str, KnownFile]) -> Iterator[SourceEntry]:
    try:
        with os.scandir(folder) as items:
            children = list(items)
    except OSError as error:
        raise read_error(folder, error) from error
    for child in children:
        path, name = folder / child.name, prefix + child.name
        try:
            status = child.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(path)  # noqa: PTH115  a Path would change how the target is written
                yield SourceEntry(FileEntry(name, Kind.SYMLINK, 0, target=target), path, None)
                continue
        except OSError as error:
            raise read_error(path, error) from error
        if stat.S_ISREG(status.st_mode):
            yield _file(path, name, status, known)
        elif stat.S_ISDIR(status.st_mode):
            entry = FileEntry(name, Kind.DIRECTORY, stat.S_IMODE(status.st_mode), xattrs=read_xattrs(path))
            yield SourceEntry(entry, path, None)
            yield from _walk(path, name + "/", known)
        else:
            raise InvalidInputError(f"{path} is a device, a pipe or a socket; only files, directories and links can be")


def _file(path: Path, name: str, status: os.stat_result, known: Mapping[str, KnownFile]) -> SourceEntry:
    mode, size = stat.S_IMODE(status.st_mode), status.st_size
    state, before = FileState.of(status), known.get(name)
    if before is not None and before.state == state and before.entry.mode == mode:
        return SourceEntry(before.entry, path, state, before, before.opened, before.kept)
    runs = _runs(path, size) if status.st_blocks * 512 + _MIN_HOLES <= size else ()
    entry = FileEntry(name, Kind.FILE, mode, size, xattrs=read_xattrs(path), runs=runs)
    return SourceEntry(entry, path, state)


def _runs(path: Path, size: int) -> tuple[int, ...]:
    """Lengths of hole, data, hole ... of a sparse file; empty if it turns out to have no hole."""
    runs: list[int] = []
    at = 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while at < size:
                try:
                    data = os.lseek(fd, at, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # no more data
                        raise
                    data = size
                runs.append(min(data, size) - at)
                if data >= size:
                    break
                at = min(os.lseek(fd, data, os.SEEK_HOLE), size)
                runs.append(at - data)
        finally:
            os.close(fd)
    except OSError as error:
        raise read_error(path, error) from error
    return () if runs[0] == 0 and len(runs) < 3 else tuple(runs)


def read_error(path: Path, error: OSError) -> PeatError:
    """What a failure to read a source means for the one who publishes it."""
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path} does not exist")
    if isinstance(error, PermissionError):
        return DeniedError(f"{path} cannot be read: permission denied; make it readable or run as another user")
    return InvalidInputError(f"{path} cannot be read: {error.strerror or error}")


def changed(path: Path) -> ConflictError:
    """The error for a file that did not stay as it was."""
    return ConflictError(f"{path} changed while it was published; publish it again when nothing writes to it")
