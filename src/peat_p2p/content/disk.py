"""What the store asks of a file system.

Owns writing a file, durable syncing of many files at once, cloning of file extents, and the translation of "disk full"
into an error that names the place and the need. Must not know about packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

from peat_p2p.core.atomic import sync_dir, sync_file
from peat_p2p.core.errors import ExhaustedError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FICLONE = 0x40049409
# What a file system answers when it cannot clone or the two files cannot share extents.
_NO_CLONE = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})
_NO_COPY = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS})
# What a file system or a seccomp filter answers that knows no such writes.
_NO_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
_DIRECT_BYTES = 64 << 10
_BLOCK = 4096
_SYNC_EACH = 8  # up to so many files are synced each
_local = threading.local()
_libc = ctypes.CDLL(None, use_errno=True)


def make_durable(root: Path, files: Collection[Path], folders: Collection[Path]) -> None:
    """Make files and folders below `root` durable. Raises OSError."""
    try:
        if max(len(files), len(folders)) <= _SYNC_EACH:
            for file in files:
                sync_file(file)
            for folder in folders:
                sync_dir(folder)
            return
    except PermissionError:  # not even its owner may open it by now
        pass
    sync_file_system(root)


def sync_file_system(path: Path) -> None:
    """Make everything written so far to the file system of `path` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        # A thousand small files cost a thousand fsyncs; one syncfs costs little more than one, and what others wrote.
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)


def write_new(path: Path, data: memoryview | bytes) -> os.stat_result:
    """Make a file with this content and tell its state; it is not yet durable. Raises OSError.

    A large one goes past the page cache where the file system lets it: copying into the cache costs more than writing,
    and what is written once need not push out what is read often.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if len(data) >= _DIRECT_BYTES:
        try:
            return _write_direct(path, flags, memoryview(data))
        except FileExistsError:
            raise
        except OSError as error:
            path.unlink(missing_ok=True)  # it may have been made before the flag was refused
            if error.errno not in _NO_DIRECT:
                raise
    fd = os.open(path, flags, 0o644)
    try:
        _write_all(fd, data, 0)
        return os.fstat(fd)
    finally:
        os.close(fd)


class NewFile:
    """A new file whose parts are written in any order; not durable until its file system is synced.

    Of large parts, whole blocks go past the page cache where the file system lets them, as with `write_new`. Raises
    OSError.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._direct: int | None = None
        self._try_direct = True
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def write(self, data: memoryview, offset: int) -> None:
        """Put `data` at `offset`."""
        begin = -(-offset // _BLOCK) * _BLOCK
        end = (offset + len(data)) // _BLOCK * _BLOCK
        if end - begin >= _DIRECT_BYTES and self._past_cache(data[begin - offset : end - offset], begin):
            # A block that belongs to two parts is the page cache's alone: it puts them together.
            _write_all(self.fd, data[: begin - offset], offset)
            _write_all(self.fd, data[end - offset :], end)
        else:
            _write_all(self.fd, data, offset)

    def close(self) -> None:
        """Let go of it."""
        if self._direct is not None:
            os.close(self._direct)
        os.close(self.fd)

    def _past_cache(self, blocks: memoryview, offset: int) -> bool:
        if not self._try_direct:
            return False
        try:
            if self._direct is None:
                self._direct = os.open(self._path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
            with memoryview(_aligned(len(blocks))) as buffer:
                buffer[: len(blocks)] = blocks
                _write_all(self._direct, buffer[: len(blocks)], offset, block=_BLOCK)
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise
            self._try_direct = False
        return self._try_direct


def _aligned(size: int) -> mmap.mmap:
    """This thread's memory for a write past the page cache, which must start on a block; the next call gives it too."""
    aligned: mmap.mmap | None = getattr(_local, "aligned", None)
    if aligned is None or len(aligned) < size:
        # A mapping starts on a page; it is made anew only for more.
        aligned = _local.aligned = mmap.mmap(-1, max(size, 1 << 20))
    return aligned


def _write_all(fd: int, data: memoryview | bytes, offset: int, *, block: int = 1) -> None:
    """Write all of `data` at `offset`, in multiples of `block`.

    Raises OSError, also where a write was cut short within a block: the rest would not be aligned.
    """
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)
        if written % block:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_direct(path: Path, flags: int, data: memoryview) -> os.stat_result:
    size = len(data)
    padded = -(-size // _BLOCK) * _BLOCK
    with memoryview(_aligned(padded)) as buffer:
        buffer[:size] = data
        fd = os.open(path, flags | os.O_DIRECT, 0o644)
        try:
            _write_all(fd, buffer[:padded], 0, block=_BLOCK)
            os.ftruncate(fd, size)
            return os.fstat(fd)
        finally:
            os.close(fd)


def free_bytes(path: Path) -> int:
    """Bytes an unprivileged writer can still put on the file system of `path`."""
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def disk_full(path: Path, need: int, what: str) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into ExhaustedError naming `path` and the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise exhausted(path, need, what) from error


def exhausted(path: Path, need: int, what: str) -> ExhaustedError:
    """The error for: `need` bytes for `what` do not fit at `path`."""
    try:
        have = f"{human(free_bytes(path))} are free"
    except OSError:
        have = "it is full"
    return ExhaustedError(f"{path}: {what} needs {human(need)}, {have}; free some space or use another data directory")


def human(count: int) -> str:
    """Bytes for people: `12.3 MB`."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def clone(source_fd: int, target_fd: int) -> bool:
    """Let `target` share all of `source`'s extents. False if the file system cannot."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def copy_range(source_fd: int, source_offset: int, target_fd: int, target_offset: int, length: int) -> None:
    """Copy bytes between files inside the kernel where it can. Raises OSError; EOFError if `source` is too short."""
    while length:
        try:
            done = os.copy_file_range(source_fd, target_fd, length, source_offset, target_offset)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            done = os.pwrite(target_fd, os.pread(source_fd, min(length, 1 << 20), source_offset), target_offset)
        if done == 0:
            raise EOFError
        source_offset += done
        target_offset += done
        length -= done
